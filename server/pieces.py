"""How often the ServerApp looks for a piece of a reply that is still being uploaded."""

from __future__ import annotations

import contextlib

_PAUSES = {"initial_backoff": 0.1, "backoff_cap": 0.5, "max_tries_per_object": None}


def look_often() -> None:
    """Look each half second; Flower does after 1, 2, 4, 8 seconds and then each 10, and up to a second of that is lost in each round.

    Where Flower has no such function, rounds take a little longer.
    """
    with contextlib.suppress(ImportError):
        from flwr.supercore.inflatable.inflatable_utils import pull_objects

        (pull_objects.__kwdefaults__ or {}).update(_PAUSES)
