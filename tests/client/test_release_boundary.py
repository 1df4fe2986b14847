"""Plans and replies that try to get at single patients: each is refused, with a code and nothing else, and leaves no line of a release."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.app import answer
from client.budget import ledger_of
from client.dataset import Cache
from client.release import describe_cache, leave
from client.site import Site
from cxrbase_model.messages import Code, Reply, Task
from cxrbase_model.metrics import evaluate_scores
from cxrbase_model.plan import Plan
from cxrbase_model.settings import SettingsError, read, to_mapping

PATH = "/archive/Planted^Patient/1.2.826.dcm"
TaskFor = Callable[..., Task]


def changed(plan: Plan, stage: str, **changes: Any) -> Plan:
    mapping = to_mapping(plan)
    next(each for each in mapping["stages"] if each["name"] == stage).update(changes)
    return read(Plan, mapping)


def assert_nothing_left(reply: Reply, code: Code, site: Site) -> None:
    assert reply.code is code
    assert (reply.update, reply.loss, reply.metrics, reply.evaluation, reply.description, reply.examples) == (
        b"", None, {}, None, None, 0,
    )  # fmt: skip
    assert "Planted" not in json.dumps({name: str(value) for name, value in vars(reply).items()})
    assert ledger_of(site).entries() == []


def test_the_plan_as_it_is_passes(site: Site, task_for: TaskFor) -> None:
    assert [answer(task_for(stage), site).code for stage in ("mae", "detect", "test")] == [None] * 3


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("detect", {"label_fraction": 0.0001}),
        ("detect", {"label_fraction": 0.25}),
        ("detect", {"batch_size": 1}),
        ("mae", {"batch_size": 4}),
        ("mae", {"local_epochs": 0.001}),
        ("mae", {"local_epochs": 0.1}),
        ("detect", {"local_epochs": 0.001, "label_fraction": 1.0}),
        ("detect", {"batch_size": 8, "local_epochs": 1000.0, "label_fraction": 0.0001}),
        ("detect", {"trains": "head", "pooling": "attentive", "label_fraction": 0.0001}),
    ],
    ids=str,
)
def test_a_cohort_of_few_patients_is_refused(
    site: Site, plan: Plan, task_for: TaskFor, stage: str, changes: dict[str, Any]
) -> None:
    assert_nothing_left(answer(task_for(stage, plan=changed(plan, stage, **changes)), site), Code.POLICY, site)


def test_a_hospital_of_few_patients_can_let_them_in_by_its_own_policy(
    site: Site, plan: Plan, task_for: TaskFor
) -> None:
    few = task_for("detect", plan=changed(plan, "detect", label_fraction=0.25))
    assert answer(few, replace(site, minimum_cell=4)).code is None
    assert answer(few, replace(site, policy=replace(site.policy, patients=4))).code is None
    assert answer(few, replace(site, policy=replace(site.policy, patients=5))).code is Code.POLICY


def with_split(monkeypatch: pytest.MonkeyPatch, split: str, patients: int) -> None:
    """Leave only the first so many patients in a split."""
    rows = Cache.rows

    def few(self: Cache, name: str) -> np.ndarray:
        found = rows(self, name)
        if name != split:
            return found
        return found[np.isin(self.patients[found], np.unique(self.patients[found])[:patients])]

    monkeypatch.setattr(Cache, "rows", few)


@pytest.mark.parametrize(("stage", "split"), [("mae", "train"), ("test", "test")])
@pytest.mark.parametrize("patients", [1, 4])
def test_a_split_of_few_patients_is_refused(
    site: Site, task_for: TaskFor, monkeypatch: pytest.MonkeyPatch, stage: str, split: str, patients: int
) -> None:
    with_split(monkeypatch, split, patients)
    assert_nothing_left(answer(task_for(stage), site), Code.POLICY, site)


@pytest.mark.parametrize("stage", ["mae", "detect"])
def test_a_measure_of_few_held_out_patients_does_not_leave(
    site: Site, task_for: TaskFor, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    assert len(answer(task_for(stage), replace(site, minimum_cell=1)).metrics) == 1
    with_split(monkeypatch, "validation", 4)
    reply = answer(task_for(stage, 2), site)
    assert (reply.code, reply.metrics) == (None, {})


def test_a_model_of_the_training_datas_size_is_refused(site: Site, plan: Plan, task_for: TaskFor) -> None:
    """The whole training split is 36 pictures of 16 x 16: a model that has room for all of them."""
    limited = replace(site, policy=replace(site.policy, parameters=36 * 16 * 16))
    assert_nothing_left(answer(task_for("mae"), limited), Code.POLICY, site)
    limited = replace(site, policy=replace(site.policy, parameters_per_picture=1000.0))
    assert_nothing_left(answer(task_for("mae"), limited), Code.POLICY, site)
    assert answer(task_for("mae"), replace(site, policy=replace(site.policy, parameters_per_picture=1e9))).code is None


@pytest.mark.parametrize(
    "metrics",
    [
        {"loss_0001": 0.5},
        {PATH: 0.5},
        {"validation_loss": float("nan")},
        {"validation_loss": float("inf")},
        {f"validation_loss_{number}": 0.1 for number in range(36)},
    ],
    ids=["one picture's loss", "a path", "nan", "infinity", "every picture's loss"],
)
def test_a_metric_of_another_name_or_no_number_does_not_leave(
    site: Site, task_for: TaskFor, monkeypatch: pytest.MonkeyPatch, metrics: dict[str, float]
) -> None:
    """A release whose code is not ours anymore: the door looks at what comes, whoever made it."""
    from client import app

    perform = app.perform

    def extracting(task: Task, site: Site) -> Reply:
        return replace(perform(task, site), metrics=metrics)

    monkeypatch.setattr(app, "perform", extracting)
    assert_nothing_left(answer(task_for("mae"), site), Code.FAILED, site)


def _evaluation(site: Site, task_for: TaskFor) -> tuple[Reply, Task]:
    task = task_for("test")
    return answer(task, replace(site, private=site.private)), task


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found | {"per_picture": [0.1, 0.2]},
        lambda found: found | {"findings": found["findings"] | {PATH: found["findings"]["Nodule"]}},
        lambda found: found | {"findings": {"Nodule": found["findings"]["Nodule"]}},
        lambda found: found | {"patients": PATH},
        lambda found: found | {"patients": -1},
        lambda found: found | {"examples": 3.5},
        lambda found: found | {"mean_auroc": PATH},
        lambda found: found | {"mean_auroc": {"value": PATH, "low": 0.1, "high": 0.2}},
        lambda found: found | {"mean_auroc": {"value": float("nan"), "low": 0.1, "high": 0.2}},
        lambda found: found | {"findings": found["findings"] | {"Nodule": {"auroc": None, "positives": 3, "scores": [1]}}},
        lambda found: found | {"findings": found["findings"] | {"Nodule": PATH}},
        lambda found: [PATH],
    ],
)  # fmt: skip
def test_an_evaluation_that_holds_anything_else_does_not_leave(
    site: Site, task_for: TaskFor, spoil: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    reply, task = _evaluation(site, task_for)
    assert reply.evaluation is not None
    elsewhere = replace(site, private=tmp_path / "elsewhere")
    leave(reply, task, elsewhere, 0)
    with pytest.raises((ValueError, TypeError)) as caught:
        leave(replace(reply, evaluation=spoil(reply.evaluation)), task, elsewhere, 0)
    assert "Planted" not in str(caught.value)
    assert len(ledger_of(elsewhere).entries()) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found | {"names": [PATH]},
        lambda found: found | {"exclusions": {PATH: 3}},
        lambda found: found | {"kinds": [PATH]},
        lambda found: found | {"pictures": found["pictures"] | {"train": PATH}},
        lambda found: found | {"image_size": PATH},
        lambda found: found | {"findings": {PATH: {"positive": 1, "negative": 1, "unknown": 1}}},
    ],
)
def test_a_description_that_holds_anything_else_does_not_leave(
    site: Site, task_for: TaskFor, spoil: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    reply = answer(task_for("describe"), site)
    assert reply.description is not None
    elsewhere = replace(site, private=tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"holds other things|neither a number nor a bucket") as caught:
        leave(replace(reply, description=spoil(reply.description)), task_for("describe"), elsewhere, 0)
    assert "Planted" not in str(caught.value)
    assert ledger_of(elsewhere).entries() == []


def test_a_reply_of_one_kind_holds_nothing_of_another(site: Site, task_for: TaskFor, tmp_path: Path) -> None:
    elsewhere = replace(site, private=tmp_path / "elsewhere")
    described, evaluated = answer(task_for("describe"), site), answer(task_for("test"), site)
    for task, reply in (
        (task_for("describe"), replace(described, update=b"pixels")),
        (task_for("describe"), replace(described, evaluation=evaluated.evaluation)),
        (task_for("test"), replace(evaluated, update=b"pixels")),
        (task_for("test"), replace(evaluated, kind="shell")),
        (task_for("mae"), replace(evaluated, kind="pretrain")),
        (task_for("mae"), evaluated),
    ):
        with pytest.raises(ValueError, match="a reply to the task"):
            leave(reply, task, elsewhere, 0)
    assert ledger_of(elsewhere).entries() == []


def test_a_finding_of_one_patients_many_pictures_is_a_small_cell(site: Site) -> None:
    patients = np.concatenate([np.zeros(8, int), np.arange(1, 41)])
    targets = (patients == 0).astype(np.float32)[:, None]
    scores = np.linspace(0, 1, len(patients))[:, None]
    found = evaluate_scores(scores, targets, patients, ["Rare"], seed=0, minimum_cell=5)
    assert found["findings"]["Rare"] == {"auroc": None, "positives": "<5", "negatives": ">=5"}
    assert found["mean_auroc"] is None
    cache = Cache.open(site.cache_folder)
    cache.labels[:] = 0.0
    cache.labels[:8, 1] = 1.0  # eight pictures of four patients
    assert describe_cache(cache, 5)["findings"]["Nodule"]["positive"] == "<5"


@pytest.mark.parametrize("name", [PATH, "../../etc", "a b", "a/b"])
def test_a_stage_whose_name_is_a_path_is_no_plan(plan: Plan, name: str) -> None:
    with pytest.raises(SettingsError, match="expected a new name of letters"):
        changed(plan, "mae", name=name)
