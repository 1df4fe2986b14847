"""Tasks and replies survive the wire; anything else becomes a code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from cxrbase_model.messages import (
    MEANING,
    PROTOCOL,
    Code,
    Reply,
    Task,
    WireError,
    reply_from_message,
    reply_to_message,
    task_from_message,
    task_to_message,
)

TASK = Task("pretrain", "run", 3, "mae", 3, "mae", "{}", "d" * 64, "e" * 64, b"\x00\x01weights")
REPLY = Reply(
    "north", "pretrain", 3, "mae", "d" * 64, None, 10, 2, 0.5, 1.25, {"validation_loss": 0.4}, update=b"update"
)


def sent(task: Task) -> Message:
    message = task_to_message(task, 7, ttl=60)
    message.metadata.__dict__["_message_id"] = "1"
    return message


def test_a_task_arrives_as_it_was_sent() -> None:
    assert task_from_message(sent(TASK)) == TASK
    assert task_from_message(sent(replace(TASK, state=b""))) == replace(TASK, state=b"")


@pytest.mark.parametrize("reply", [REPLY, replace(REPLY, code=Code.NO_LABELS, update=b"", loss=None)])
def test_a_reply_arrives_as_it_was_sent(reply: Reply) -> None:
    assert reply_from_message(reply_to_message(reply, sent(TASK))) == reply


def wire_code(records: RecordDict) -> Code:
    with pytest.raises(WireError) as caught:
        reply_from_message(Message(records, reply_to=sent(TASK)))
    return caught.value.code


def config(**changes: object) -> RecordDict:
    header = {name: value for name, value in vars(REPLY).items() if name != "update"} | changes
    return RecordDict({"cxrbase": ConfigRecord({"protocol": PROTOCOL, "header": json.dumps(header)})})


def test_what_is_no_reply_of_this_protocol_is_refused_by_code() -> None:
    assert wire_code(RecordDict()) == Code.MALFORMED
    assert wire_code(RecordDict({"cxrbase": ConfigRecord({"protocol": PROTOCOL - 1, "header": "{}"})})) == Code.PROTOCOL
    assert wire_code(RecordDict({"cxrbase": ConfigRecord({"protocol": PROTOCOL, "header": "["})})) == Code.MALFORMED
    assert wire_code(config(code="WHATEVER")) == Code.MALFORMED
    assert wire_code(config(examples="many")) == Code.MALFORMED
    assert wire_code(config(examples=True)) == Code.MALFORMED
    assert wire_code(config(extra=1)) == Code.MALFORMED


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": float("nan")},
        {"loss": float("-inf")},
        {"loss": 1e31},
        {"steps": 10**31},
        {"seconds": -float("inf")},
        {"evaluation": {"mean_auroc": float("nan")}},
        {"description": {"pictures": {"train": [[float("inf")]]}}},
        {"metrics": {"validation_loss": "low"}},
        {"metrics": {"validation_loss": [0.5]}},
        {"metrics": {"validation_loss": True}},
        {"metrics": {"validation_auroc": 1e30}},
        {"metrics": {"validation_auroc": -0.1}},
        {"metrics": {"../../another": 0.5}},
        {"stage": "x" * (1 << 20)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_header_with_a_number_or_a_metric_that_no_hospital_has_is_refused(changes: dict[str, object]) -> None:
    assert wire_code(config(**changes)) == Code.MALFORMED


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null", "[" * 100_000, "1" * 5000, '{"loss": 1e999}', "{'a': 1}"])
def test_a_header_that_is_no_object_or_too_deep_to_be_read_is_refused(text: str) -> None:
    assert wire_code(RecordDict({"cxrbase": ConfigRecord({"protocol": PROTOCOL, "header": text})})) == Code.MALFORMED


def test_flowers_own_error_text_is_never_read() -> None:
    failed = Message(Error(code=0, reason="/archive/DOE^JANE.dcm"), reply_to=sent(TASK))
    with pytest.raises(WireError) as caught:
        reply_from_message(failed)
    assert str(caught.value) == "NO_REPLY"


def test_every_code_has_a_meaning() -> None:
    assert set(MEANING) == set(Code)
