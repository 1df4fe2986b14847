"""The sub-commands about a run: start it, see how it stands, hold it, end it."""

from __future__ import annotations

import argparse
import json
import os
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from server.authority import Authority, days_left
from server.consortium import Consortium, read_consortium
from server.enrolment import enrolled
from server.live import Requests
from server.overview import UNDER_WAY, headline, overview, table
from server.store import StoreError

EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_UNDER_WAY = 0, 1, 3, 4
EXITS = "0 done, 1 failed, 2 wrong usage or settings, 3 stopped or interrupted with rounds left, 4 under way"

_WARN_DAYS = 30  # before a certificate ends
_WIDEST = 240  # columns of a table; a narrow terminal breaks its lines, and no name is cut short
_NO_ROUND_LEFT = "the run is done, no round is left to hold or to end"
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")

console = Console(highlight=False, soft_wrap=True, width=_WIDEST)


def add(commands: Any) -> None:
    """`start`, `status`, `pause`, `resume` and `stop`."""
    start = _command(
        commands, "start", _start, "run the plan: start the server and see to it until the plan is done",
        "Start the server, let the enrolled hospitals in and run the plan's rounds. After whatever has ended it, the same command "
        f"goes on with the next round. Exit status: {EXITS}.",
    )  # fmt: skip
    start.add_argument(
        "--stay", action="store_true",
        help="stay, with nothing running, once the run is done or stopped; for what starts again whatever ends, as containers are",
    )  # fmt: skip
    status = _command(commands, "status", _status, "how a run stands", f"Exit status: {EXITS}.")
    status.add_argument("--json", action="store_true", help="for programs")
    _command(commands, "pause", _pause, "hold the run before its next round", "Rounds that are under way are finished.")
    _command(commands, "resume", _resume, "let a paused run go on", "Takes back pause and stop.")
    _command(commands, "stop", _stop, "end the run after this round", "`start` goes on with the next round.")


def _command(commands: Any, name: str, run: Any, text: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text.capitalize()}. {description}"
    )
    if name == "start":
        parser.add_argument("consortium", type=Path, metavar="CONSORTIUM.yaml", help="the consortium's settings")
    else:
        parser.add_argument(
            "consortium", type=Path, metavar="CONSORTIUM.yaml|RUN", help="its settings, or a run directory"
        )
    parser.set_defaults(run=run)
    return parser


def _start(arguments: argparse.Namespace) -> int:
    consortium = read_consortium(arguments.consortium)
    for name in _PROXIES:  # what goes through a proxy is no request of this machine to itself
        for spelling in (name, name.upper()):
            os.environ.pop(spelling, None)
    from server.daemon import start  # with Flower, which the other commands need not wait for

    _warn(consortium)
    Requests(consortium.run).withdraw("stop")
    ending = threading.Event()
    state, detail = start(arguments.consortium, consortium, say, ending)
    if state == "done":
        from server.finish import finish  # with torch, which would be a waste of memory while the rounds go on
        from server.report import summary_text

        console.print(summary_text(finish(consortium.run)))
        say(f"the plan is done: {consortium.run / 'report.html'}")
    else:
        say(f"{state}: {detail}" if detail else state)
    if arguments.stay and state in ("done", "stopped"):
        ending.wait()  # set already where a signal has ended the run
    return {"done": EXIT_DONE, "failed": EXIT_FAILED}.get(state, EXIT_STOPPED)


def _warn(consortium: Consortium) -> None:
    authority = Authority(consortium.home)
    if authority.exists() and authority.server_file.exists():
        for name, certificate in (("authority", authority.certificate()), ("server", authority.server_certificate())):
            left = days_left(certificate)
            if left < _WARN_DAYS:
                remedy = "; run cxrbase-server provision --renew" if name == "server" else ""
                say(f"the {name}'s certificate is valid for {left} more days{remedy}")
    missing = [name for name in consortium.hospitals if name not in enrolled(consortium)]
    if missing:
        say(f"not enrolled yet: {', '.join(missing)}; they can be enrolled while the run goes on")


def _status(arguments: argparse.Namespace) -> int:
    folder, names = _run_of(arguments.consortium)
    content = overview(folder, names)
    if arguments.json:
        print(json.dumps(content))
    else:
        console.print(headline(content))
        console.print(table(content))
    if content["state"] in UNDER_WAY:
        return EXIT_UNDER_WAY
    return {"done": EXIT_DONE, "failed": EXIT_FAILED}.get(content["state"], EXIT_STOPPED)


def _pause(arguments: argparse.Namespace) -> int:
    return _ask(arguments.consortium, "pause", "it holds before its next round; cxrbase-server resume lets it go on")


def _stop(arguments: argparse.Namespace) -> int:
    return _ask(arguments.consortium, "stop", "it ends after this round; cxrbase-server start goes on with the next")


def _resume(arguments: argparse.Namespace) -> int:
    folder, _ = _run_of(arguments.consortium)
    for what in ("pause", "stop"):
        Requests(folder).withdraw(what)
    state = overview(folder)["state"]
    if state == "done":
        console.print(_NO_ROUND_LEFT)
    elif state in UNDER_WAY:
        console.print("it goes on; nothing holds it any more")
    else:
        console.print(f"nothing holds it any more; it is {state}, cxrbase-server start goes on with the next round")
    return EXIT_DONE


def _ask(named: Path, what: str, text: str) -> int:
    """Leave the operator's wish in the run directory; a run without a round left keeps none, and says so."""
    folder, _ = _run_of(named)
    if overview(folder)["state"] == "done":
        console.print(_NO_ROUND_LEFT)
        return EXIT_DONE
    Requests(folder).ask(what)
    console.print(text)
    return EXIT_DONE


def _run_of(named: Path) -> tuple[Path, list[str]]:
    """The run directory that a settings file or a folder names, and the enrolled hospitals where those are known."""
    if named.is_dir():
        folder, names = named, []
    else:
        consortium = read_consortium(named)
        folder, names = consortium.run, list(enrolled(consortium))
    if not (folder / "run.json").exists():
        raise StoreError(f"{folder}: holds no run yet; expected a folder with run.json")
    return folder, names


def say(text: str) -> None:
    """Print a sentence with the time, as daemons do."""
    console.print(f"[dim]{datetime.now():%Y-%m-%d %H:%M:%S}[/dim] {escape(text)}")
