"""The runner answers one task and ends. It decides which code may run for it.

The installed release's own bundle: the installed code runs, and of the bundle not one file is unpacked. A bundle that the hospital has
approved: it is unpacked below the private folder and run from there. Any other: nothing of it is unpacked or imported, the
installed code answers BUNDLE, and the bundle is kept for somebody to look at.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import Context, Message

from client.bundles import FOLDER, Bundles, Verdict
from client.node.flower import Exchange, Given, failure
from client.node.node import RUN, TASK_LOCK
from client.node.tally import note
from cxrbase_model.bundle import bundle_digest, bundle_files
from cxrbase_model.files import locked, private_folder
from cxrbase_model.messages import WireError, reply_from_message
from cxrbase_model.processes import end_with_parent

_PACKAGES = ("client", "cxrbase_model", "server")
_APP = "client.app"

LIBRARIES = _APP  # what takes seconds to load and every task needs

log = logging.getLogger("cxrbase.runner")

App = Callable[[Message, Context], Message]


def run_task(token: str, address: str, private: Path, agent: bool, told: Connection) -> None:
    """Be the process that answers the task of a token and ends, with status 0 where the answer was handed back.

    told: hears the stub of the task (`Given.stub`), and nothing when the answer is about to be handed back.
    """
    os.umask(0o077)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log each of five requests a second
    end_with_parent()
    threading.Thread(target=_end_with_executor, name="executor", daemon=True).start()
    exchange = Exchange(address, token)
    with locked(private_folder(private / RUN) / TASK_LOCK), exchange.alive():
        sys.exit(0 if serve(exchange, private, told.send_bytes, agent=agent) else 1)


def _end_with_executor() -> None:
    """End this process once the executor is gone: its parent is the fork server, which waits for this process meanwhile."""
    executor = multiprocessing.parent_process()
    assert executor is not None  # else nobody has started this
    executor.join()
    os._exit(1)


def serve(
    exchange: Exchange, private: Path, told: Callable[[bytes], None] = lambda stub: None, *, agent: bool = False
) -> bool:
    """Fetch a task, answer it and hand the answer back; whatever goes wrong on the way, no text of it leaves.

    told: as in `run_task`. agent: it is an AgentApp's task, which is refused.
    """
    given = None
    try:
        given = exchange.fetch()
        told(given.stub)
        answer = failure(given.message) if agent else respond(given, private)
    except (Exception, SystemExit):  # code that was approved may say sys.exit
        log.exception("the task could not be answered")
        if given is None:
            return False
        answer = failure(given.message)
    note(private, *_told(answer))
    try:
        told(b"")
        exchange.hand_back(answer, given)
    except Exception:
        log.exception("the answer could not be handed to the SuperNode; it is kept for when the task comes again")
        return False
    return True


def _told(answer: Message) -> tuple[str | None, int | None]:
    """The code of an answer, None where the task was done, and its round."""
    try:
        reply = reply_from_message(answer)
    except WireError as error:
        return error.code.value, None
    return (None if reply.code is None else reply.code.value), reply.round


def respond(given: Given, private: Path) -> Message:
    """The answer of the code that may run for this task."""
    return choose_app(given.bundle, private)(given.message, given.context)


def choose_app(bundle: bytes, private: Path) -> App:
    """The ClientApp that may answer where the server wants this bundle run."""
    bundles = Bundles(private)
    verdict = bundles.verdict(bundle)
    if verdict is Verdict.INSTALLED:
        return _load()
    if verdict is Verdict.APPROVED:
        return _load_approved(bundle, private)
    log.warning("bundle %s is not approved; look at it with cxrbase-client approve SITE.yaml", bundle_digest(bundle))
    try:
        bundles.ask(bundle)
    except OSError:  # a full disk; the refusal does not depend on it
        log.exception("the bundle could not be kept")
    return _load(app="refuse_bundle")


def _load(app: str = "app") -> App:
    found: App = getattr(importlib.import_module(_APP), app)
    return found


def _load_approved(bundle: bytes, private: Path) -> App:
    """Unpack an approved bundle anew and load its ClientApp instead of the installed one."""
    folder = private / FOLDER / "running"
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in bundle_files(bundle).items():
        path = folder / name
        private_folder(path.parent)
        path.write_bytes(content)
    for name in list(sys.modules):
        if name.partition(".")[0] in _PACKAGES:
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    return _load()
