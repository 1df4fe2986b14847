"""The sub-commands about the daemon: start and status."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from client.membership import membership
from client.node.status import State, Status, is_running, read_status
from client.site import read_site

CONNECTED, NOT_CONNECTED, NOT_RUNNING = 0, 1, 3

console = Console(highlight=False, soft_wrap=True)


def add_start(commands: Any) -> None:
    """`start SITE.yaml`."""
    parser = commands.add_parser(
        "start",
        help="take part: connect to the consortium and do the tasks that the policy allows, for ever",
        description="Keep this hospital connected until SIGTERM or Ctrl-C. Only outgoing connections are made. What happens is in "
        "private/logs; cxrbase-client status says how it goes.",
    )
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the hospital's settings")
    parser.set_defaults(run=_start)


def add_status(commands: Any) -> None:
    """`status SITE.yaml [--json]`."""
    parser = commands.add_parser(
        "status",
        help="see whether this hospital is connected, and why not",
        description="Exit status: 0 connected, 1 running and not connected, 3 not running.",
    )
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the hospital's settings")
    parser.add_argument("--json", action="store_true", help="print the status as one JSON object")
    parser.set_defaults(run=_status)


def _start(arguments: argparse.Namespace) -> int:
    from client.node.daemon import (
        AlreadyRunning,
        run_daemon,
    )  # imported here: gRPC takes a moment that others need not wait

    site = read_site(arguments.site)
    try:
        run_daemon(site, arguments.site.resolve(), membership(site))
    except AlreadyRunning:
        print(f"cxrbase-client: a daemon runs on {site.private} already; see cxrbase-client status", file=sys.stderr)
        return 1
    return 0


def _status(arguments: argparse.Namespace) -> int:
    site = read_site(arguments.site)
    running, status = is_running(site.private), read_status(site.private)
    if arguments.json:
        print(
            json.dumps({"site": site.site, "running": running, **({} if status is None else asdict(status))}, indent=1)
        )
    else:
        _print(site.site, status, running=running)
    if not running:
        return NOT_RUNNING
    return CONNECTED if status is not None and status.state is State.CONNECTED else NOT_CONNECTED


def _print(site: str, status: Status | None, *, running: bool) -> None:
    if status is None:
        console.print(f"{site}: {'starting' if running else 'never started; run cxrbase-client start SITE.yaml'}")
        return
    state = status.state.value if running else "not running"
    to = f" to {status.consortium}" if running and status.state is State.CONNECTED else ""
    console.print(f"[bold]{site}[/bold]: {state}{to}, since {_time(status.since)}")
    if status.next_try is not None and running:
        console.print(f"next try: {_time(status.next_try)}")
    if status.problem:
        console.print(f"last problem, {_time(status.problem_time)}: {escape(status.problem)}")
        console.print(f"  {escape(status.remedy)}")
    last = "none yet" if status.round is None else str(status.round)
    console.print(f"tasks done: {status.tasks}; last round: {last}")
    if status.codes:
        console.print("codes answered: " + ", ".join(f"{code} {count}" for code, count in sorted(status.codes.items())))


def _time(seconds: float | None) -> str:
    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
