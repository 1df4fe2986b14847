"""The production round loop over clients that check a task and answer as a hospital does, with a small change in place of training.

The change is the weights in another order, a twentieth of their size, and neither a constant nor a share: these would pack into nothing.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from bench.wire.notes import committed, loaded, note
from client.feedback import Residual
from client.policy import check_task
from cxrbase_model.messages import Reply, Task, reply_to_message, task_from_message
from cxrbase_model.plan import read_plan
from server.app import RunSettings, serve
from server.records import Record

_LOADED = loaded()
_CHANGE = 0.05
_MOST = 1 << 28  # parameters of a model that the hospital unpacks

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """The plan's rounds."""
    folder = Path(str(context.run_config["folder"]))
    note(folder, "server", _LOADED)

    def after(record: Record) -> None:
        lines = record["hospitals"]
        down = sum(line.get("bytes_sent", 0) for line in lines) / len(lines)
        up = sum(line.get("bytes_received", 0) for line in lines) / len(lines)
        committed(folder, round=record["round"], down=down, up=up)

    settings = RunSettings(
        folder / "run", read_plan(folder / "plan.yaml"), expected=int(context.run_config["hospitals"])
    )
    serve(grid, settings, [after])


def answer(message: Message, context: Context) -> Message:
    """Describe, or unpack and compare digests, add to the weights, pack with error feedback."""
    folder = Path(str(context.run_config["folder"]))
    reply = reply_of(task_from_message(message), f"hospital-{context.node_config['partition-id']}", folder)
    return reply_to_message(reply, message)


def reply_of(task: Task, name: str, folder: Path) -> Reply:
    """What a hospital of that name, which keeps its own files below `folder`, answers."""
    if task.kind == "describe":
        described = {"kinds": ["pretrain"], "pictures": {"train": 1000}}
        return Reply(name, task.kind, task.round, task.stage, task.plan_digest, description=described)
    note(folder, "client", _LOADED)
    work = check_task(task, _MOST, folder / name)
    update = {name: _CHANGE * tensor.flip(-1) if tensor.dim() else tensor * 0 for name, tensor in work.state.items()}
    packed = Residual(folder / name, task).encode(update, work.plan.transport.up)
    return Reply(name, task.kind, task.round, task.stage, task.plan_digest, examples=10, steps=1, update=packed)


client.query()(answer)
client.train()(answer)
