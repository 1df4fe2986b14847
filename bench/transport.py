"""A round over the network: ours against Flower's own FedAvg."""

from __future__ import annotations

from bench.wire.network import Setting, measure

_MODEL = {"encoder": "vit_base", "decoder_depth": 4}
_PARAMETERS = 100_000_000  # about those of _MODEL's autoencoder


def transport(hospitals: int = 2) -> dict[str, float]:
    """Three rounds of 100 million parameters over a real SuperLink and SuperNodes on loopback, without TLS, ours and then stock FedAvg.

    Both have clients that do next to nothing; ours besides check the task, compare digests and keep what rounding left out, as in
    production, and our server commits each round to disk. Both run Flower's SuperNode; ours with the executor of our deployments,
    which forks a process that is loaded for each task, where Flower's starts one. Seconds are from commit to commit. Bytes are those of the
    arrays, for each hospital and round, of the model in float32; each round changes the weights by a twentieth of their size. Memory is
    the peak of a process above what it held when its app was loaded, in float32 models.
    """
    found: dict[str, float] = {}
    for kind in ("ours", "stock"):
        measured = measure(Setting(kind, hospitals, _MODEL, _PARAMETERS))
        found |= {f"{kind}_{key}": value for key, value in measured.items()}
    return found | {"time_ratio": found["ours_seconds"] / found["stock_seconds"]}
