"""Plans that the consortium has asked for and those that the hospital has approved, as files in its private folder."""

from __future__ import annotations

from pathlib import Path

from cxrbase_model.files import private_folder, write_private
from cxrbase_model.plan import Plan, plan_from_text, plan_to_text
from cxrbase_model.settings import SettingsError

_MOST_ASKED = 50  # plans that wait; a server cannot fill the disk with more


class Approvals:
    """The plans below the hospital's private folder, by digest."""

    def __init__(self, private: Path) -> None:
        self._top = private / "plans"

    def approved(self, plan: Plan) -> bool:
        """Whether this plan, to the letter, was approved."""
        return self._file("approved", plan).exists()

    def state(self, digest: str) -> str:
        """approved, asked, or empty: what is known of the plan with this digest."""
        return next((kind for kind in ("approved", "asked") if (self._top / kind / f"{digest}.json").exists()), "")

    def ask(self, plan: Plan) -> None:
        """Note a plan that waits for approval; the oldest makes room where too many do."""
        self._write("asked", plan)
        waiting = sorted((self._top / "asked").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in waiting[:-_MOST_ASKED]:
            path.unlink(missing_ok=True)

    def approve(self, plan: Plan) -> None:
        """Let a plan run."""
        self._write("approved", plan)
        self._file("asked", plan).unlink(missing_ok=True)

    def revoke(self, plan: Plan) -> None:
        """Let a plan not run any more; a round that is on its way is finished."""
        self._file("approved", plan).unlink(missing_ok=True)

    def plans(self, kind: str) -> list[Plan]:
        """The plans that were asked for or approved; what cannot be read, after an update of the release, is left out."""
        found = []
        for path in sorted((self._top / kind).glob("*.json")):
            try:
                found.append(plan_from_text(path.read_text(encoding="utf-8")))
            except (SettingsError, OSError, UnicodeDecodeError):
                continue
        return found

    def _write(self, kind: str, plan: Plan) -> None:
        private_folder(self._top)
        private_folder(self._top / kind)
        write_private(self._file(kind, plan), plan_to_text(plan).encode())

    def _file(self, kind: str, plan: Plan) -> Path:
        return self._top / kind / f"{plan.digest}.json"
