"""A round over slow lines: the default packing against float32."""

from __future__ import annotations

from bench.wire.network import OURS, Setting, measure

_MODEL = {"encoder": "vit_small", "depth": 4, "decoder_width": 384, "decoder_heads": 6}
_PARAMETERS = 11_000_000  # about those of _MODEL's autoencoder
_EXACT = {"broadcast": "float32", "update": "float32", "compress": "none"}
MEGABITS = (10, 100)  # a second, in each direction
_LARGE = {"encoder": "vit_base", "decoder_depth": 4}
_LARGE_PARAMETERS = 100_000_000  # about those of _LARGE's autoencoder


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


def links_large() -> dict[str, float]:
    """The same with the 100 million parameters of a ViT-B and its decoder, and the default packing alone, about 15 minutes; `first` is the round whose broadcast is whole."""
    found: dict[str, float] = {}
    for speed in MEGABITS:
        setting = Setting("ours", 2, _LARGE, _LARGE_PARAMETERS, rate=speed * 1e6 / 8, most_seconds=1800.0)
        measured = measure(setting)
        print(f"{speed} Mbit/s: {measured}", flush=True)
        found |= {f"packed_{speed}": measured["seconds"], f"first_{speed}": measured["seconds_first"]}
        for way in ("down_first", "down", "up"):
            found[f"megabytes_{way}"] = measured[f"bytes_{way}"] * 4e-6 * _LARGE_PARAMETERS
    return found
