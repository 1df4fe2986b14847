"""A round over the network: ours against Flower's own FedAvg."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from bench.wire.network import Setting, measure

_MODEL = {"encoder": "vit_base", "decoder_depth": 4}
_PARAMETERS = 100_000_000  # about those of _MODEL's autoencoder


def transport(hospitals: int = 2) -> dict[str, float]:
    """Three rounds of 100 million parameters over a real SuperLink and SuperNodes on loopback, without TLS, ours and then stock FedAvg.

    Both have clients that do next to nothing; ours besides check the task, compare digests and keep what rounding left out, as in
    production, and our server commits each round to disk. Both run Flower's SuperNode; ours with the executor of our deployments,
    which forks a process that is loaded for each task, where Flower's starts one. Seconds are from commit to commit. Bytes are those of the
    arrays, for each hospital and round, of the model in float32; each round changes the weights by a twentieth of their size. Memory is
    the peak of a process above what it held when its app was loaded, in float32 models. Processor seconds are those of all processes of a
    kind in a round: what is left of the comparison where other work shares the machine.

    hospitals: 2, and in the parts `transport-4` and `transport-8` as many, all on the one machine. A machine may carry ours and not stock:
    then there is no ratio.
    """
    found = _named("ours", measure(Setting("ours", hospitals, _MODEL, _PARAMETERS)))
    try:
        found |= _named("stock", measure(Setting("stock", hospitals, _MODEL, _PARAMETERS)))
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"stock has not finished: {str(error)[:2000]}", flush=True)
        return found
    ratios = {"time_ratio": "seconds", "processor_ratio": "processor_all"}
    return found | {name: found[f"ours_{key}"] / found[f"stock_{key}"] for name, key in ratios.items()}


def _named(kind: str, measured: Mapping[str, float]) -> dict[str, float]:
    print(f"{kind}: {measured}", flush=True)
    return {f"{kind}_{key}": value for key, value in measured.items()}
