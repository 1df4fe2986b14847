"""cxrbase-client: what a hospital does on its own machine.

Each sub-command is a function `add(commands)` that adds its parser and sets `run`, a function of the parsed arguments that
returns the exit status; COMMANDS lists them in the order of the help.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from client import bundle_commands, ledger_commands
from client import commands as training
from client.archive import commands as archive
from client.archive.cache import CacheError
from client.archive.manifest import ManifestError
from client.archive.sources import SourceLost
from client.archive.stopped import IngestStopped
from client.ledger_head import LedgerError
from client.node import commands as node
from cxrbase_model.settings import SettingsError

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

COMMANDS: tuple[Callable[[Any], None], ...] = (
    archive.add_ingest,
    archive.add_verify,
    archive.add_audit,
    archive.add_forget,
    training.add_join,
    training.add_peers,
    training.add_check,
    training.add_plans,
    training.add_rehearse,
    ledger_commands.add_ledger,
    bundle_commands.add_approve,
    node.add_start,
    node.add_status,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; 0 done, 1 failed or something found, 2 wrong usage or settings, 130 interrupted."""
    os.umask(0o077)  # whatever a library writes here is the owner's alone
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except SettingsError as error:
        return _failed(error, EXIT_USAGE)
    except (CacheError, IngestStopped, LedgerError, ManifestError, SourceLost) as error:
        return _failed(error, EXIT_FAILED)
    except KeyboardInterrupt:
        print("\ncxrbase-client: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cxrbase-client",
        description="Run a hospital's side: make a private training cache of the archive, and see what is kept of it.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser


def _failed(error: Exception, status: int) -> int:
    print(f"cxrbase-client: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
