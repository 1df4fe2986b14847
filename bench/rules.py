"""The aggregation rules over the updates of a round."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from cxrbase_model.aggregation import AngleMean, BoundedMean, GeometricMedian, Krum, Mean, Median, Rule, TrimmedMean
from cxrbase_model.state import State
from server.rules.gathering import gathering

RULES: tuple[Rule, ...] = (
    Mean(), BoundedMean(bound=1.0), AngleMean(), Median(), TrimmedMean(), Krum(), GeometricMedian(),
)  # fmt: skip

_UPDATES, _LAYERS, _SIDE = 8, 25, 1000  # 25 million parameters
UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes

Measured = tuple[float, float]  # seconds, and bytes of memory at most above the start


def rules() -> dict[str, float]:
    """Each rule over eight updates of 25 million parameters that come one at a time, each in a process of its own: time and peak memory,
    the global model and the update in hand included, as multiples of those of keeping all eight and taking numpy's mean
    (`time_...`, `memory_...`: below one is better), and peak memory in float32 models (`models_...`).
    """
    seconds, peak = _in_new_process(None)
    size = 4 * _LAYERS * _SIDE**2
    found = {"seconds_numpy": seconds, "models_numpy": peak / size}
    for rule in RULES:
        own_seconds, own_peak = _in_new_process(rule)
        found |= {
            f"time_{rule.kind}": own_seconds / seconds,
            f"memory_{rule.kind}": own_peak / peak,
            f"models_{rule.kind}": own_peak / size,
        }
    return found


def _in_new_process(rule: Rule | None) -> Measured:
    """A process's peak memory never falls, so that each rule needs its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, rule).result()


def _measure(rule: Rule | None) -> Measured:
    torch.set_num_threads(1)
    _drawn(0, layers=1)  # what a first use loads is not counted
    before = _peak()
    seconds = _numpy_mean() if rule is None else _ours(rule)
    return seconds, float(_peak() - before)


def _ours(rule: Rule) -> float:
    state = _drawn(_UPDATES)
    total = 0.0
    with tempfile.TemporaryDirectory() as folder, gathering(rule, state, Path(folder), None) as gathered:
        for index, update in enumerate(_updates()):
            total += _seconds(lambda site=f"{index}", update=update: gathered.fold(site, update, 10))  # type: ignore[misc]
        total += _seconds(gathered.result)
    return total


def _numpy_mean() -> float:
    state = _drawn(_UPDATES)
    kept = [{name: tensor.numpy() for name, tensor in update.items()} for update in _updates()]
    return _seconds(lambda: {name: np.mean([update[name] for update in kept], axis=0) for name in state})


def _updates() -> Iterator[State]:
    return (_drawn(seed) for seed in range(_UPDATES))


def _drawn(seed: int, layers: int = _LAYERS) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer{index:02}": torch.randn(_SIDE, _SIDE, generator=generator) for index in range(layers)}


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
