"""Flower's own strategies as an independent version of the rules: they aggregate weights, ours aggregate updates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

Vector = NDArray[np.float32]


def flowers_weights(
    strategy: FedAvg, local: Sequence[Vector], examples: Sequence[int], server_round: int = 1
) -> Vector:
    """The global weights that a strategy makes of the hospitals' weights, all one tensor."""
    arrays, _ = strategy.aggregate_train(server_round, [_reply(*pair) for pair in zip(local, examples, strict=True)])
    assert arrays is not None
    return np.asarray(arrays["w"].numpy())


def _reply(weights: Vector, examples: int) -> Message:
    content = RecordDict(
        {"arrays": ArrayRecord({"w": Array(weights)}), "metrics": MetricRecord({"num-examples": examples})}
    )
    return Message(content, dst_node_id=1, message_type="train")
