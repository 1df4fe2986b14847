"""A rehearsal leaves alone what real rounds have left in the hospital."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from client.moments import Moments
from client.rehearsal import rehearse
from client.site import Site
from cxrbase_model.checkpoint import LocalCheckpoint
from cxrbase_model.messages import Task
from cxrbase_model.plan import Plan

TaskFor = Callable[..., Task]


def test_a_rehearsal_leaves_the_checkpoint_of_an_interrupted_round_as_it_was(
    site: Site, plan: Plan, task_for: TaskFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Moments(site.private, task_for("mae", 2)).interrupted
    checkpoint.write("a round", {"half": torch.ones(3)})
    monkeypatch.setattr(LocalCheckpoint, "is_due", lambda self: True)
    shorter = replace(plan, stages=plan.stages[:1])
    assert [done.code for done in rehearse(shorter, site)] == [None]
    found = checkpoint.read("a round")
    assert found is not None
    assert torch.equal(found["half"], torch.ones(3))
