"""A round over slow lines: the default packing against float32."""

from __future__ import annotations

from bench.wire.network import OURS, Setting, measure

_MODEL = {"encoder": "vit_small", "depth": 4, "decoder_width": 384, "decoder_heads": 6}
_PARAMETERS = 11_000_000  # about those of _MODEL's autoencoder
_EXACT = {"broadcast": "float32", "update": "float32", "compress": "none"}
MEGABITS = (10, 100)  # a second, in each direction


def links() -> dict[str, float]:
    """Two hospitals, each on a line of its own of 10 or 100 Mbit/s, or without a limit: seconds a round of 11 million parameters.

    A real SuperLink and SuperNodes, clients that train nothing; the line is a proxy that passes so many bytes a second. Each round
    changes the weights by a twentieth of their size. Megabytes are those of the arrays in the last round, down and up.
    """
    found: dict[str, float] = {}
    for name, transport in (("packed", OURS), ("float32", _EXACT)):
        for speed in (*MEGABITS, None):
            rate = speed * 1e6 / 8 if speed else None
            measured = measure(Setting("ours", 2, _MODEL, _PARAMETERS, transport, rate=rate))
            found[f"{name}_{speed or 'unlimited'}"] = measured["seconds"]
            for way in ("down", "up"):
                found[f"{name}_megabytes_{way}"] = measured[f"bytes_{way}"] * 4e-6 * _PARAMETERS
    return found
