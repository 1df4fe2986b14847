"""Flower's own FedAvg over clients that add a constant, as in Flower's templates."""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from bench.wire.notes import SHIFT, committed, loaded, note

_LAYERS = 25
_LOADED = loaded()

server = ServerApp()
client = ClientApp()


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """FedAvg with training alone."""
    folder, rounds = Path(str(context.run_config["folder"])), int(context.run_config["rounds"])
    note(folder, "server", _LOADED)
    side = int(context.run_config["parameters"]) // _LAYERS // 1000
    weights = {f"layer{index:02}": torch.randn(side, 1000) * 0.02 for index in range(_LAYERS)}
    hospitals = int(context.run_config["hospitals"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=hospitals, min_available_nodes=hospitals)

    def after(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        size = sum(len(array.data) for array in arrays.values())
        committed(folder, round=number, down=size, up=size)
        return None

    strategy.start(grid, ArrayRecord(weights), num_rounds=rounds, evaluate_fn=after)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Add the constant."""
    note(Path(str(context.run_config["folder"])), "client", _LOADED)
    weights = message.content.array_records["arrays"].to_torch_state_dict()
    trained = {name: tensor + SHIFT for name, tensor in weights.items()}
    content = RecordDict({"arrays": ArrayRecord(trained), "metrics": MetricRecord({"num-examples": 10})})
    return Message(content, reply_to=message)
