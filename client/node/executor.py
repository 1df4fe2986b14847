"""`python -m client.node.executor` fetches the SuperNode's tasks, one at a time, and starts a runner for each.

It stands in for Flower's `flower-superexec`, which would start Flower's own programs: these install and run whatever code the server sends.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

import httpx

from client.node.flower import Claim, Exchange, Tasks
from client.node.runner import LIBRARIES, run_task
from cxrbase_model.bundle import bundle_digest, release_bundle
from cxrbase_model.processes import end_with_parent

_PAUSE = 0.2  # seconds between questions for the next task
_PAUSE_ALONE = 1.0  # seconds, while the SuperNode is not there

log = logging.getLogger("cxrbase.executor")


def main(arguments: Sequence[str] | None = None) -> int:
    """Work until the process is ended; a runner ends with it."""
    os.umask(0o077)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log each of five requests a second
    parser = argparse.ArgumentParser(prog="client.node.executor", description="Start a runner for each task.")
    parser.add_argument("--private", type=Path, required=True, help="the hospital's private folder")
    parser.add_argument("--address", required=True, help="address of the SuperNode's Runtime API, host:port")
    parser.add_argument("--secret", type=Path, required=True, help="file of the secret shared with the SuperNode")
    parser.add_argument("--parent", type=int, required=True, help="id of the process to end with")
    parsed = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    end_with_parent(parsed.parent)
    work(Tasks(parsed.address, parsed.secret.read_bytes()), parsed.address, parsed.private)
    return 0


def work(tasks: Tasks, address: str, private: Path) -> None:
    """Start a runner for each task and wait for its end, for ever."""
    loaded = multiprocessing.get_context(
        "forkserver"
    )  # forks that have the libraries loaded, and nothing of earlier tasks
    loaded.set_forkserver_preload(
        [LIBRARIES, run_task.__module__]
    )  # the second has Flower's own, a second of work for each task
    release = bundle_digest(release_bundle())
    while True:
        try:
            claim = tasks.next()
        except httpx.HTTPError as error:
            log.debug("the SuperNode does not answer: %s", type(error).__name__)
            time.sleep(_PAUSE_ALONE)
            continue
        if claim is not None:
            updated = bundle_digest(release_bundle()) != release
            _run(multiprocessing.get_context("spawn") if updated else loaded, claim, address, private)
        time.sleep(_PAUSE)


def _run(context: ForkServerContext | SpawnContext, claim: Claim, address: str, private: Path) -> None:
    """One task from beginning to end; its token goes by a pipe, since others can read command lines."""
    if claim.agent:
        log.warning("an AgentApp was asked for; it is refused")
    heard, told = context.Pipe(duplex=False)
    runner = context.Process(target=run_task, args=(claim.token, address, private, claim.agent, told), name="runner")
    runner.start()
    told.close()
    try:
        runner.join()
    finally:  # this process is told to end
        if runner.is_alive():
            runner.terminate()
            runner.join()
    if runner.exitcode != 0:
        log.warning("the runner ended with status %s", runner.exitcode)
        if stub := _last(heard):
            with contextlib.suppress(httpx.HTTPError):
                Exchange(address, claim.token).give_up(stub)


def _last(heard: Connection) -> bytes:
    """The last that a runner has told of its task: its stub while it is at work, nothing from when it hands its answer back."""
    last = b""
    with heard, contextlib.suppress(EOFError):
        while True:
            last = heard.recv_bytes()
    return last


if __name__ == "__main__":
    sys.exit(main())
