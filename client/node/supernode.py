"""Flower's SuperNode as the daemon runs it: its command line, and what its log says about the connection.

`python -m client.node.supernode` is `flower-supernode` with an end: it signs off and goes when the daemon has gone.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from enum import Enum, auto
from pathlib import Path

from client.membership import Membership
from cxrbase_model.processes import end_with_parent
from cxrbase_model.transport import CHUNK_BYTES

_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


class Event(Enum):
    """What a line of the SuperNode's log tells."""

    CONNECTED = auto()
    LOST = auto()
    BUSY = auto()
    IDLE = auto()
    IN_USE = auto()


PHRASES = (  # of flwr 1.41
    ("SuperNode ID: ", Event.CONNECTED),
    ("Connection successful after ", Event.CONNECTED),
    ("Connection attempt failed, retrying", Event.LOST),
    ("Receiving: ", Event.BUSY),
    ("Sent successfully", Event.IDLE),
    ("Failed to send message ", Event.IDLE),
    ("Failed to receive message ", Event.IDLE),
    ("Failed to create task ", Event.IDLE),
    (". Ignoring message ", Event.IDLE),
    (". Ignoring reply message ", Event.IDLE),
    ("Failed to activate SuperNode.", Event.IN_USE),
)


def number_of(line: str) -> int | None:
    """The server's number for this hospital, where a line of the log tells it."""
    number = line.rpartition("SuperNode ID: ")[2] if "SuperNode ID: " in line else ""
    return int(number) if number.isdecimal() else None


def event_of(line: str) -> Event | None:
    """What a line of the log tells, None for any other."""
    return next((event for phrase, event in PHRASES if phrase in line), None)


def last_words(lines: Sequence[str]) -> str:
    """Why a SuperNode has ended, from the last lines of its log: what follows its exit code, or the last line that is no mere news."""
    for number, line in enumerate(lines):
        if "Exit Code: " in line:
            return " ".join(lines[number + 1 : number + 3])
    return next((line for line in reversed(lines) if line and "INFO" not in line), "it does not say why")


def command(member: Membership, config: Path, secret: Path, port: int, earlier: int) -> list[str]:
    """The command line of a SuperNode that serves its Runtime API at `port` of this machine alone.

    earlier: the server's number for this hospital, as told to a SuperNode that has gone; 0 where there was none.
    """
    address = f"[{member.kit.address}]" if ":" in member.kit.address else member.kit.address
    return [
        *python("client.node.supernode"), str(os.getpid()), str(earlier),
        "--superlink", f"{address}:{member.kit.port}",
        "--root-certificates", str(member.authority), "--auth-supernode-private-key", str(member.key),
        "--isolation", "process", "--superexec-auth-secret-file", str(secret),
        "--host", "127.0.0.1", "--port", str(port), "--node-config", str(config),
    ]  # fmt: skip


def node_config(site_file: Path) -> bytes:
    """The file that tells the hospital's ClientApp where its SITE.yaml is, TOML."""
    return f"site = {json.dumps(str(site_file))}\n".encode()


def python(module: str) -> list[str]:
    """How a module of the installed release is run: -I keeps the current folder and the environment from adding code."""
    return [sys.executable, "-I", "-u", "-m", module]


def environment(private: Path) -> dict[str, str]:
    """What the daemon's children see of its environment, with Flower's files below the private folder and its reporting off."""
    kept = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    flower = {
        "FLWR_HOME": str(private / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(CHUNK_BYTES),
        "MALLOC_ARENA_MAX": "2",  # pieces of updates come and go in many threads; else freed memory stays with the process
    }
    return kept | flower


def main(arguments: Sequence[str]) -> None:
    """Be a SuperNode: the id of the process to end with, the number to sign off first, then the SuperNode's own options."""
    os.umask(0o077)
    parent, earlier, *options = arguments
    end_with_parent(int(parent))
    from client.node.flower import (  # the daemon, which shares this module, can do without Flower
        run_supernode,
        sign_off,
    )

    if int(earlier):
        given = dict(zip(options[::2], options[1::2], strict=True))
        keys = (Path(given["--root-certificates"]), Path(given["--auth-supernode-private-key"]))
        sign_off(int(earlier), given["--superlink"], *keys)
    run_supernode(options)
    # It returns where it has given the server up, as after a handshake that was cut, while its HTTP thread goes on for ever.
    logging.shutdown()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
