"""The last answer that left, kept so that a hospital which is asked again for the same task sends the same answer again.

A server that has not got an answer, because it or the network failed in between, asks again; nothing is trained twice for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from client.site import Site
from cxrbase_model.files import private_folder, remove_abandoned, write_private
from cxrbase_model.messages import Reply, Task

FOLDER = "outbox"

_SCHEMA = 1
_FILE = "last"

log = logging.getLogger("cxrbase.client")


class Outbox:
    """The kept answer to one task, below the hospital's private folder.

    The same task asks for the same work in the same round from the same weights; the answer also depends on the cache, and on what
    the hospital lets leave.
    """

    def __init__(self, site: Site, task: Task) -> None:
        self._file = site.private / FOLDER / _FILE
        self._key = task_key(site, task)

    def find(self) -> Reply | None:
        """The answer that was given to this task, None where there is none or it is damaged."""
        try:
            head, body = self._file.read_bytes().split(b"\n", 1)
            known = json.loads(head)
            if known != _head(self._key, body):
                return None
            fields, update = body.split(b"\n", 1)
            return Reply(**json.loads(fields), update=update)
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, reply: Reply) -> None:
        """Keep an answer in place of the one before; a full disk costs the copy and not the answer."""
        if reply.code is not None or reply.kind == "describe":
            return
        fields = {name: value for name, value in vars(reply).items() if name != "update"}
        body = json.dumps(fields).encode() + b"\n" + reply.update
        try:
            remove_abandoned(private_folder(self._file.parent))
            write_private(self._file, json.dumps(_head(self._key, body)).encode() + b"\n" + body)
        except OSError:
            log.exception("round %d: the answer could not be kept; asked again, the task is done again", reply.round)


def forget_outbox(private: Path) -> None:
    """Remove the kept answer: it was computed from pictures that may have to be forgotten."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(private / FOLDER)


def _head(key: str, body: bytes) -> dict[str, Any]:
    return {"schema": _SCHEMA, "key": key, "sha256": hashlib.sha256(body).hexdigest()}


def task_key(site: Site, task: Task) -> str:
    """The SHA-256 of everything that an answer follows from; the weights go in by their digest, which was checked."""
    fields = {name: value for name, value in vars(task).items() if name not in ("state", "base_digest", "plan_text")}
    try:
        cache = hashlib.sha256((site.cache_folder / "cache.json").read_bytes()).hexdigest()
    except OSError:  # what is wrong with it is said where it is opened
        cache = ""
    policy = site.policy
    limits = [site.minimum_cell, site.least_patients, policy.parameters, policy.parameters_per_picture]
    text = json.dumps([fields, cache, site.site, limits], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
