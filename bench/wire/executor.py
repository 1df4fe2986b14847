"""`python -m bench.wire.executor ADDRESS SECRET`: the executor of a deployment of ours, for the app of `bench.wire.ours`.

As `client.node.executor`, it forks a process that is loaded already for each task, but knows neither bundles nor a private folder.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path

import httpx

from client.node.flower import Exchange, Tasks

_PAUSE = 0.2  # seconds between questions, as in `client.node.executor`


def main() -> None:
    """Work until the process is ended."""
    address, secret = sys.argv[1], Path(sys.argv[2]).read_bytes()
    loaded = multiprocessing.get_context("forkserver")
    loaded.set_forkserver_preload(["bench.wire.ours", "client.node.flower"])
    tasks = Tasks(address, secret)
    while True:
        try:
            claim = tasks.next()
        except httpx.HTTPError:  # the SuperNode is not there yet
            claim = None
        if claim is not None:
            runner = loaded.Process(target=run, args=(claim.token, address))
            runner.start()
            runner.join()
        time.sleep(_PAUSE)


def run(token: str, address: str) -> None:
    """Answer the task of a token."""
    from bench.wire.ours import answer  # loaded in the fork

    exchange = Exchange(address, token)
    with exchange.alive():
        given = exchange.fetch()
        exchange.hand_back(answer(given.message, given.context), given)


if __name__ == "__main__":
    main()
