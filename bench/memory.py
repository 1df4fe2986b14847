"""The server's memory against the number of hospitals, over the network."""

from __future__ import annotations

from bench.wire.network import Setting, measure

NUMBERS = (2, 8, 32)
_MODEL = {"encoder": "vit_small", "decoder_depth": 2}
_PARAMETERS = 28_000_000  # about those of _MODEL's autoencoder


def memory() -> dict[str, float]:
    """Three rounds of 28 million parameters: the peak of the ServerApp above its start, in float32 models, by number of hospitals.

    A real SuperLink; hospitals are threads of one process that speak its Fleet API and answer one at a time.
    """
    found: dict[str, float] = {}
    for number in NUMBERS:
        measured = measure(Setting("ours", number, _MODEL, _PARAMETERS, light=True))
        found |= {f"models_{number}": measured["models_server"], f"seconds_{number}": measured["seconds"]}
    return found
