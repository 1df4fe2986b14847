"""Nothing but codes leaves a hospital that refuses or fails, whatever went wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from client.app import answer, make_app, runtime_for
from client.site import Compute, Site
from cxrbase_model.codec import pack
from cxrbase_model.engine import Runtime, TrainingDiverged
from cxrbase_model.messages import PROTOCOL, Code, Reply, Task, reply_from_message, task_to_message
from cxrbase_model.plan import Plan
from cxrbase_model.state import digest

PLANTED = "Planted^Patient"
SILENT: dict[str, Any] = {
    "examples": 0,
    "steps": 0,
    "loss": None,
    "metrics": {},
    "evaluation": None,
    "description": None,
    "update": b"",
}


def assert_only_a_code(reply: Reply, code: Code) -> None:
    assert reply.code is code
    assert {name: getattr(reply, name) for name in SILENT} == SILENT
    assert PLANTED not in json.dumps({name: str(value) for name, value in vars(reply).items()})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError(PLANTED), Code.OUT_OF_MEMORY),
        (MemoryError(PLANTED), Code.OUT_OF_MEMORY),
        (TrainingDiverged(PLANTED), Code.DIVERGED),
        (OSError(28, "No space left on device", PLANTED), Code.FAILED),
        (RuntimeError(PLANTED), Code.FAILED),
    ],
)
def test_an_error_leaves_as_a_code(
    site: Site, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: Code
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("client.local.pretrain", fail)
    assert_only_a_code(answer(task_for("mae"), site), code)


def _spoil_state(task: Task) -> Task:
    wrong = {"weight": torch.zeros(3)}
    return replace(task, state=pack(wrong), state_digest=digest(wrong))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda task: replace(task, plan_text="{"), Code.PLAN_INVALID),
        (lambda task: replace(task, plan_text=task.plan_text.replace('"seed":3', '"seed":-1')), Code.PLAN_INVALID),
        (lambda task: replace(task, plan_text=task.plan_text.replace('"seed":3', '"seed":4')), Code.PLAN_DIGEST),
        (lambda task: replace(task, stage="other"), Code.TASK_UNKNOWN),
        (lambda task: replace(task, model="other"), Code.TASK_UNKNOWN),
        (lambda task: replace(task, model="test"), Code.TASK_UNKNOWN),
        (lambda task: replace(task, kind="finetune"), Code.TASK_UNKNOWN),
        (lambda task: replace(task, kind="shell"), Code.TASK_UNKNOWN),
        (lambda task: replace(task, stage_round=0), Code.TASK_UNKNOWN),
        (lambda task: replace(task, stage_round=4), Code.TASK_UNKNOWN),
        (lambda task: replace(task, state=task.state[:-5]), Code.STATE_INVALID),
        (lambda task: replace(task, state_digest="0" * 64), Code.STATE_DIGEST),
        (_spoil_state, Code.STATE_INVALID),
    ],
)
def test_a_task_that_is_not_right_is_refused_by_its_own_code(
    site: Site, task_for: Callable[..., Task], change: Callable[[Task], Task], code: Code
) -> None:
    assert_only_a_code(answer(change(task_for("mae")), site), code)


def test_a_cache_that_is_missing_or_another_plans_is_refused(
    site: Site, plan: Plan, task_for: Callable[..., Task], tmp_path: Path
) -> None:
    other = replace(plan, data=replace(plan.data, uncertain="ones"))
    for stage in ("describe", "mae", "detect", "test"):
        assert_only_a_code(answer(task_for(stage, plan=other), site), Code.CACHE_MISMATCH)
    empty = replace(site, private=tmp_path / PLANTED / "nothing")
    assert_only_a_code(answer(task_for("describe"), empty), Code.CACHE_MISSING)


def test_what_went_wrong_is_told_to_the_hospitals_own_log(
    site: Site, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr("client.local.pretrain", fail)
    with caplog.at_level(logging.INFO, "cxrbase.client"):
        answer(task_for("mae"), site)
    assert "the driver is gone" in caplog.text
    assert "answered FAILED" in caplog.text


def run(site_file: Callable[[Any], Path], message: Message) -> Reply:
    """Through the ClientApp, as Flower calls it."""
    from flwr.app import Context

    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    return reply_from_message(make_app(site_file)(message, context))


def test_the_app_answers_over_flowers_messages(site: Site, task_for: Callable[..., Task]) -> None:
    file = site.private.parent / "SITE.yaml"
    reply = run(lambda context: file, task_to_message(task_for("mae"), 2, ttl=60))
    assert (reply.site, reply.code, reply.round, reply.steps) == ("riverside", None, 1, 9)
    text = (site.private / "client.log").read_text()
    assert "round 1: pretrain done" in text
    assert PLANTED not in text
    assert (site.private / "client.log").stat().st_mode & 0o077 == 0


def test_a_site_file_that_cannot_be_used_is_a_code(task_for: Callable[..., Task], tmp_path: Path) -> None:
    missing = run(lambda context: tmp_path / PLANTED, task_to_message(task_for("mae"), 2, ttl=60))
    assert_only_a_code(missing, Code.SITE_INVALID)
    broken = tmp_path / "SITE.yaml"
    broken.write_text(f"schema: 1\nsite: {PLANTED}\n")
    assert_only_a_code(run(lambda context: broken, task_to_message(task_for("mae"), 2, ttl=60)), Code.SITE_INVALID)


@pytest.mark.parametrize(
    ("protocol", "header", "code"),
    [
        (PROTOCOL - 1, "{}", Code.PROTOCOL),
        (PROTOCOL, "{", Code.MALFORMED),
        (PROTOCOL, "[]", Code.MALFORMED),
        (PROTOCOL, '{"kind": 3}', Code.MALFORMED),
    ],
)
def test_a_message_of_another_kind_is_answered_by_a_code(site: Site, protocol: int, header: str, code: Code) -> None:
    content = RecordDict({"cxrbase": ConfigRecord({"protocol": protocol, "header": header})})
    message = Message(content, 2, "train", ttl=60, group_id="1")
    assert_only_a_code(run(lambda context: site.private.parent / "SITE.yaml", message), code)


def test_the_hospitals_settings_say_how_its_device_is_used() -> None:
    compute = Compute(device="cpu", micro_batch=4, recompute=True, deterministic=True)
    assert runtime_for(compute, "bf16") == Runtime(torch.device("cpu"), "bf16", 4, False, True, True)
