"""`python -m bench.wire.nodes ADDRESS COUNT FOLDER SECONDS`: many hospitals as threads of one process, each a node of Flower's Fleet API.

What a SuperNode does with a message, without the process, the executor and the runner that each hospital has in a deployment: for
measuring the server with more hospitals than a machine has room for. They take so many seconds for their work, and then answer one at a
time, all with the update that the first to be asked in a round has made.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

from bench.wire.ours import reply_of
from cxrbase_model.messages import Reply, Task, reply_to_message, task_from_message

_PAUSE = 1.0  # seconds between looks for a message

_turn = threading.Lock()
_answers: dict[tuple[str, int, str], Reply] = {}


def main() -> None:
    """Work until the process is ended."""
    address, count, folder, works = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
    for index in range(count):
        threading.Thread(target=be, args=(address, f"hospital-{index}", folder, works), daemon=True).start()
        time.sleep(0.05)
    threading.Event().wait()


def be(address: str, name: str, folder: Path, works: float) -> None:
    """One hospital, for ever."""
    with http_request_response(address, insecure=True) as connection:
        node, receive, send, _, _, pull_object, push_object, confirm = connection
        while True:
            received = receive()
            if received is None:
                time.sleep(_PAUSE)
                continue
            run = received[0].metadata.run_id
            time.sleep(works)
            with _turn:
                TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, node
                message: Message = pull_and_inflate_object_from_tree(
                    received[1], partial(pull_object, run), partial(confirm, run), return_type=Message
                )
                message.metadata.__dict__["_message_id"] = received[1].object_id
                answer = reply_to_message(_reply(task_from_message(message), name, folder), message)
                del message
                answer.metadata.__dict__["_message_id"] = answer.object_id
                wanted, session = send(remove_content_from_message(answer), get_object_tree(answer), 0.0)
                push_objects(
                    get_all_nested_objects(answer), partial(push_object, run, session), object_ids_to_push=wanted
                )
                del answer


def _reply(task: Task, name: str, folder: Path) -> Reply:
    key = (task.kind, task.round, task.base_digest)
    if key not in _answers:
        _answers.clear()
        _answers[key] = reply_of(task, "everybody", folder)
    return replace(_answers[key], site=name)


if __name__ == "__main__":
    main()
