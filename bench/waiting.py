"""What it costs the server to wait for hospitals that are at work, over the network."""

from __future__ import annotations

from bench.wire.network import Setting, measure

NUMBERS = (2, 32)
SECONDS = 30.0  # of work in each round
_MODEL = {"encoder": "vit_tiny", "depth": 1, "decoder_depth": 1, "decoder_width": 64, "decoder_heads": 2}
_PARAMETERS = 600_000  # about those of _MODEL's autoencoder


def waiting() -> dict[str, float]:
    """Three rounds of a small model whose hospitals work for 30 s: processor seconds of the SuperLink and the ServerApp for each second.

    Those of rounds without work are taken off. `late` is by how many seconds a round is longer than its work and a round without work.
    A real SuperLink; hospitals are threads of one process that speak its Fleet API.
    """
    found: dict[str, float] = {}
    for number in NUMBERS:
        idle, busy = (
            measure(Setting("ours", number, _MODEL, _PARAMETERS, light=True, works=works)) for works in (0.0, SECONDS)
        )
        print(f"{number} hospitals: {idle}, {busy}", flush=True)
        for kind in ("superlink", "serverapp"):
            found[f"{kind}_{number}"] = (busy[f"processor_{kind}"] - idle[f"processor_{kind}"]) / SECONDS
        found[f"late_{number}"] = busy["seconds"] - idle["seconds"] - SECONDS
    return found
