"""`python -m bench [PART...]`: run the parts, or all that are short; the last line is JSON of part to figures."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from bench.cache import cache
from bench.engine import engine
from bench.fold import fold
from bench.ingest import ingest
from bench.links import links, links_large
from bench.memory import memory
from bench.privacy import privacy
from bench.rules import rules
from bench.scale import scale
from bench.secure import secure
from bench.transport import transport
from bench.waiting import waiting

PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "cache": cache,
    "engine": engine,
    "fold": fold,
    "ingest": ingest,
    "links": links,
    "links-large": links_large,
    "memory": memory,
    "privacy": privacy,
    "rules": rules,
    "scale": scale,
    "secure": secure,
    "transport": transport,
    "transport-4": partial(transport, 4),
    "transport-8": partial(transport, 8),
    "waiting": waiting,
}
NAMED_ONLY = frozenset(
    {"privacy", "transport", "transport-4", "transport-8", "links", "links-large", "memory", "waiting"}
)  # several minutes long, or of real networks


def main() -> int:
    """Run the named parts; 2 where one is unknown."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all but {', '.join(NAMED_ONLY)})"
    )
    names = parser.parse_args().parts or [name for name in PARTS if name not in NAMED_ONLY]
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the processes of a network end with it
        signal.signal(number, _end)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"bench: PART: expected of {', '.join(PARTS)}, found {', '.join(unknown)}", file=sys.stderr)
        return 2
    found = {}
    for name in names:
        found[name] = {key: float(f"{value:.4g}") for key, value in PARTS[name]().items()}
        print(f"{name}: {found[name]}", flush=True)
    print(json.dumps(found))
    return 0


def _end(number: int, _: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # what is being ended is ended once
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
