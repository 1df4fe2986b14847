"""What a hospital holds of a secured round: its encoded update, which does not leave, and the secrets of the session in which it is masked.

The keys of a session are for one roster. A training that is asked for again after its keys were used gets new keys for the same update,
so that no mask is used twice; one that is asked for again before that gets the same answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from client.outbox import task_key
from client.site import Site
from cxrbase_model.files import private_folder, remove_abandoned, write_private
from cxrbase_model.messages import Reply, Task
from cxrbase_model.secure.keys import new_private, public_of
from cxrbase_model.secure.letters import Advert

FOLDER = "secure"

_SCHEMA = 1
_FOLDERS = 2  # a run's, and one of a rehearsal or of a run that was interrupted
_UPDATE, _SESSION, _OPENED = "update.bin", "session.json", "opened.json"


@dataclass(frozen=True)
class Session:
    """The secrets of one attempt at a round, and what has happened in it; names are those of hospitals, bytes are hexadecimal."""

    key: str  # of the training task
    round: int
    state_digest: str
    sha256: str  # of the update's file
    count: int  # numbers of the update
    reply: dict[str, Any] = field(default_factory=dict)  # fields of the answer to the training
    seal: str = field(default_factory=lambda: new_private().hex(), repr=False)
    mask: str = field(default_factory=lambda: new_private().hex(), repr=False)
    seed: str = field(default_factory=lambda: new_private().hex(), repr=False)
    signature: str = ""
    roster: str = ""  # the letter; empty until it has come
    parcels: str = field(default="", repr=False)  # the letter that answered it
    masked: tuple[str, ...] = ()  # whose masks are on the update that has left
    shares: dict[str, str] = field(
        default_factory=dict, repr=False
    )  # of their seeds and mask keys, this hospital's own included

    @property
    def advert(self) -> Advert:
        """The public half."""
        seal, mask, seed, signature = map(bytes.fromhex, (self.seal, self.mask, self.seed, self.signature))
        return Advert(public_of(seal), public_of(mask), hashlib.sha256(seed).digest(), signature)

    def renewed(self) -> Session:
        """A session with new keys for the same update."""
        return Session(self.key, self.round, self.state_digest, self.sha256, self.count, self.reply)


class Held:
    """The held update and session of the stage that a task belongs to, below the hospital's private folder."""

    def __init__(self, site: Site, task: Task) -> None:
        self._site, self._task = site, task
        self._top = site.private / FOLDER
        key = hashlib.sha256(f"{task.run}\n{task.plan_digest}\n{task.stage}".encode()).hexdigest()[:16]
        self._folder = self._top / key

    def begin(self, data: bytearray, count: int) -> Session:
        """Hold the encoded update of a training, of `count` numbers, in place of the one before, in a session with new keys.

        OSError on a full disk.
        """
        private_folder(self._top)
        private_folder(self._folder)
        (self._folder / _SESSION).unlink(missing_ok=True)
        remove_abandoned(self._folder)
        write_private(self._folder / _UPDATE, data, durable=False)  # what a power cut takes is trained again
        others = [each for each in self._top.iterdir() if each.is_dir() and each != self._folder]
        others.sort(key=lambda each: -each.stat().st_mtime)
        for old in others[_FOLDERS - 1 :]:  # not by age alone: the clock may have been ahead
            shutil.rmtree(old, ignore_errors=True)
        key, digest = task_key(self._site, self._task), hashlib.sha256(data).hexdigest()
        return Session(key, self._task.round, self._task.state_digest, digest, count)

    def trained(self) -> Session | None:
        """The session of this very training task, None where it has not been done, or its update was lost."""
        session = self.session()
        if session is None or session.key != task_key(self._site, self._task) or not session.reply:
            return None
        return session if self.update(session) is not None else None

    def session(self) -> Session | None:
        """The session of the round and the weights that a task names, None where there is none or it is damaged."""
        try:
            content = json.loads((self._folder / _SESSION).read_bytes())
            if content.pop("schema") != _SCHEMA:
                return None
            session = Session(**content | {"masked": tuple(content["masked"])})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        same = session.round == self._task.round and session.state_digest == self._task.state_digest
        return session if same else None

    def keep(self, session: Session, reply: Reply | None = None) -> Session:
        """Write a session before anything of it leaves, so that a power cut cannot let it be used twice; OSError on a full disk."""
        if reply is not None:
            fields = {name: value for name, value in vars(reply).items() if name != "update"}
            session = replace(session, reply=fields)
        write_private(self._folder / _SESSION, json.dumps({"schema": _SCHEMA} | vars(session)).encode())
        return session

    def update(self, session: Session) -> bytearray | None:
        """The bytes of the held update, None where they are gone or damaged."""
        try:
            with (self._folder / _UPDATE).open("rb") as file:
                data = bytearray(os.fstat(file.fileno()).st_size)
                file.readinto(data)
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == session.sha256 else None

    def may_open(self, context: bytes, survivors: frozenset[str]) -> bool:
        """Note that a round is unmasked for these survivors; false where it was for others, whose sum would give theirs away."""
        path = private_folder(self._top) / _OPENED
        try:
            opened = json.loads(path.read_bytes())
        except FileNotFoundError:
            opened = {}
        names = hashlib.sha256("\n".join(sorted(survivors)).encode()).hexdigest()
        if opened.setdefault(context.hex(), names) != names:
            return False
        write_private(path, json.dumps(opened).encode())
        return True

    def drop(self) -> None:
        """Remove what is held of the stage."""
        shutil.rmtree(self._folder, ignore_errors=True)


def forget_held(private: Path) -> None:
    """Remove all held updates: they were computed from pictures that may have to be forgotten. What was unmasked stays noted."""
    for folder in (private / FOLDER).glob("*/"):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
