"""The run directory: a commit is one rename, so readers see a whole round or none.

plan.yaml                       the resolved plan
run.json                        name, plan digest, seed, versions, sessions
rounds.jsonl                    one record a committed round
privacy.jsonl                   one line a noised sum, written before it is made (aggregation.privacy)
checkpoints/round-00007/        record.json; where the round trained, state.safetensors, and step.safetensors if the server's step or SCAFFOLD remembers
stages/NAME.safetensors         the final weights of each finished stage
spool/                          updates of the round in flight, where the rule needs all of them at once
tensorboard/, report.json, report.html, export/, examples.npz (pictures of the report)
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cxrbase_model.files import sync_folder
from cxrbase_model.plan import Plan, read_plan
from cxrbase_model.settings import SettingsError, to_mapping

if TYPE_CHECKING:  # weights are read and written with torch, which the commands about a run need not wait for
    from torch import Tensor

    from cxrbase_model.state import State

SCHEMA = 1
_PACKAGES = ("torch", "timm", "flwr", "pydicom", "numpy", "cxrbase")


class StoreError(RuntimeError):
    """The run directory cannot be used; the message says what is there and what to do."""


class RunStore:
    """One run on disk. `create` starts one, `resume` goes on with one; both return it ready for the next commit."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self._records: list[dict[str, Any]] = []  # of the file's first `_read` bytes
        self._read = 0

    @classmethod
    def create(cls, folder: Path, plan: Plan) -> RunStore:
        """Start a new run in an empty or missing folder; StoreError where a run is there already."""
        if (folder / "run.json").exists():
            raise StoreError(f"{folder}: holds a run already; go on with it by --resume, or name another folder")
        for name in ("checkpoints", "stages"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        store = cls(folder, plan)
        write_atomic(folder / "plan.yaml", yaml.safe_dump(to_mapping(plan), sort_keys=False).encode())
        store._write_run(
            {
                "schema": SCHEMA,
                "name": plan.name,
                "plan_digest": plan.digest,
                "seed": plan.seed,
                "versions": {"python": platform.python_version()} | _versions(),
                "started": _now(),
                "sessions": [{"started": _now(), "from_round": 0}],
            }
        )
        return store

    @classmethod
    def resume(cls, folder: Path, plan: Plan | None = None) -> RunStore:
        """Go on with a run; StoreError where there is none, or it was started with another plan."""
        store = cls(folder, cls.check(folder, plan))
        store._repair()
        run = store.run
        run["sessions"].append({"started": _now(), "from_round": store.next_round})
        store._write_run(run)
        return store

    @classmethod
    def check(cls, folder: Path, plan: Plan | None = None) -> Plan:
        """The plan of the run in a folder; StoreError where there is none, or it was started with another plan."""
        if not (folder / "run.json").exists():
            raise StoreError(f"{folder}: holds no run to resume; start one without --resume")
        try:
            own = read_plan(folder / "plan.yaml")
        except SettingsError as error:
            raise StoreError(str(error)) from None
        if plan is not None and plan.digest != own.digest:
            raise StoreError(
                f"{folder}: was started with plan {own.digest[:12]}, found {plan.digest[:12]}; "
                "resume with the plan it was started with, or name another folder"
            )
        return own

    @property
    def run(self) -> dict[str, Any]:
        """The content of run.json."""
        content: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return content

    def records(self) -> list[dict[str, Any]]:
        """The records of all committed rounds, in order, to be left as they are; a line that is being written, or was torn by a kill, is none.

        The file only grows, so what was read before is kept; one that is shorter was put back by hand, and is read anew.
        """
        path = self.folder / "rounds.jsonl"
        if not path.exists():
            return []
        if path.stat().st_size < self._read:
            self._records, self._read = [], 0
        with path.open("rb") as file:
            file.seek(self._read)
            lines = [line for line in file if line.endswith(b"\n")]
        self._records += [json.loads(line) for line in lines]  # all or none
        self._read += sum(map(len, lines))
        return list(self._records)

    @property
    def next_round(self) -> int:
        """The number of the first round that is not committed; 0 is the description of the hospitals."""
        path = self.folder / "rounds.jsonl"
        lines = path.read_bytes().rsplit(b"\n", 2)[:-1] if path.exists() else []  # the last alone is parsed
        return int(json.loads(lines[-1])["round"]) + 1 if lines else 0

    def commit(
        self,
        record: Mapping[str, Any],
        state: Mapping[str, Tensor] | None,
        *,
        ends_stage: bool,
        memory: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Make one round permanent: record, weights and the memory of the server's step appear together or not at all."""
        from cxrbase_model.codec import parts

        final = self._checkpoint(record["round"])
        draft = final.with_name(f".{final.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _write_synced(draft / "record.json", _line({**record, "ends_stage": ends_stage}))
        if state is not None:
            _write_synced(draft / "state.safetensors", *parts(state))
        if memory:
            _write_synced(draft / "step.safetensors", *parts(memory))
        sync_folder(draft)
        draft.rename(final)
        sync_folder(final.parent)
        self._publish(final)
        self._prune()

    def state(self, round_number: int) -> State:
        """The weights that a round left; StoreError where its checkpoint is gone or unreadable."""
        return _read_state(self._checkpoint(round_number) / "state.safetensors")

    def memory(self, round_number: int) -> State:
        """What the server's step remembered after a round; StoreError where that is gone or unreadable."""
        return _read_state(self._checkpoint(round_number) / "step.safetensors")

    def stage_state(self, stage: str) -> State:
        """The final weights of a finished stage."""
        return _read_state(self.folder / "stages" / f"{stage}.safetensors")

    def _checkpoint(self, round_number: int) -> Path:
        return self.folder / "checkpoints" / f"round-{round_number:05d}"

    def _checkpoints(self) -> list[Path]:
        found = {path.name.removeprefix("round-"): path for path in (self.folder / "checkpoints").glob("round-*")}
        return [found[number] for number in sorted(filter(str.isdecimal, found), key=int)]

    def _publish(self, checkpoint: Path) -> None:
        """Bring the files that are derived from a committed checkpoint up to date; safe to repeat."""
        record = json.loads((checkpoint / "record.json").read_text(encoding="utf-8"))
        weights = checkpoint / "state.safetensors"
        if record.pop("ends_stage") and weights.exists():
            _copy_atomic(weights, self.folder / "stages" / f"{record['stage']}.safetensors")
        if record["round"] >= self.next_round:
            with (self.folder / "rounds.jsonl").open("ab") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())

    def _repair(self) -> None:
        """Undo what a kill left behind: a torn last line, a draft, a commit that was not yet published."""
        path = self.folder / "rounds.jsonl"
        if path.exists():
            data = path.read_bytes()
            if not data.endswith(b"\n"):
                write_atomic(path, data[: data.rfind(b"\n") + 1])
        for draft in (self.folder / "checkpoints").glob(".*.draft"):
            shutil.rmtree(draft)
        for checkpoint in self._checkpoints():
            if (checkpoint / "record.json").exists():
                self._publish(checkpoint)
            else:  # a release that removed old ones in place was killed at it
                shutil.rmtree(checkpoint)

    def _prune(self) -> None:
        for checkpoint in self._checkpoints()[: -self.plan.federation.keep_checkpoints]:
            shutil.rmtree(
                checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.draft"))
            )  # a kill leaves no half of one

    def _write_run(self, content: Mapping[str, Any]) -> None:
        write_atomic(self.folder / "run.json", json.dumps(content, indent=2).encode() + b"\n")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    _write_synced(draft, data)
    draft.rename(path)
    sync_folder(path.parent)


def _copy_atomic(source: Path, path: Path) -> None:
    """As `write_atomic`, of a file that need not fit into memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    shutil.copyfile(source, draft)
    with draft.open("rb+") as file:
        os.fsync(file.fileno())
    draft.rename(path)
    sync_folder(path.parent)


def _write_synced(path: Path, *data: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.writelines(data)
        file.flush()
        os.fsync(file.fileno())


def _read_state(path: Path) -> State:
    from cxrbase_model.codec import CodecError
    from cxrbase_model.stored import load

    try:
        return load(path)
    except FileNotFoundError:
        raise StoreError(f"{path}: the weights are not there; was the run directory changed by hand?") from None
    except CodecError as error:
        raise StoreError(f"{path}: {error}") from None


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
