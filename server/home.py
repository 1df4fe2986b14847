"""The consortium's own folder besides keys and certificates: the server's database, the bundle, logs and locks.

superlink.db     what Flower's SuperLink must not forget
bundle.fab       the code that is sent to hospitals
current.json     digests of that bundle and of the plan that is run
flower/          Flower's own files
logs/            what the programs print
start.lock       held by the one `cxrbase-server start`
"""

from __future__ import annotations

import json
from pathlib import Path

from cxrbase_model.files import private_folder, write_private


class Home:
    """Where the operator's running parts keep their files; nothing is made before it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "superlink.db"
        self.bundle = folder / "bundle.fab"
        self.flower = folder / "flower"
        self.logs = folder / "logs"
        self.lock = folder / "start.lock"
        self._current = folder / "current.json"

    def make(self) -> None:
        """Make the folders."""
        for folder in (self.folder, self.flower, self.logs):
            private_folder(folder)

    def use(self, bundle: bytes, bundle_digest: str, plan_digest: str) -> None:
        """Note what hospitals are sent from now on."""
        write_private(self.bundle, bundle)
        write_private(self._current, json.dumps({"bundle": bundle_digest, "plan": plan_digest}).encode())

    def bundle_digest(self) -> str:
        """The SHA-256 of the bundle, empty where none was sent yet."""
        return self._digest("bundle")

    def plan_digest(self) -> str:
        """The digest of the plan, empty where none was run yet."""
        return self._digest("plan")

    def _digest(self, name: str) -> str:
        try:
            return str(json.loads(self._current.read_text(encoding="ascii"))[name])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
