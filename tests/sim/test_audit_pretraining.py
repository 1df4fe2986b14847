"""An audited pretraining: what its encoder sees and what it hides comes back from a gradient, with its masks known or not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cxrbase_model.plan import DataSpec, ModelSpec, Optimizer, Plan, PretrainStage
from cxrbase_model.seeds import generator
from cxrbase_model.settings import SettingsError
from cxrbase_model.state import load_state, state_of
from cxrbase_model.vit import patchify, unpatchify
from sim.audit.config import PLAIN, View, read_audit
from sim.audit.inversion import Attacker, Effort
from sim.audit.pictures import phantoms
from sim.audit.sample import Pictures
from sim.audit.subject import Pretraining, with_positions
from sim.audit.views import Recovery, _see_gradient, _see_update, recovery
from sim.cli import EXIT_OK, main
from tests.sim.test_audit import AUDIT, write
from tests.sim.test_audit_inversion import moved

STAGE = PretrainStage(
    name="mae", batch_size=4, mask_ratio=0.75, normalize_targets=False, augmentation=PLAIN,
    optimizer=Optimizer(lr=0.05, weight_decay=0.3),
)  # fmt: skip
PLAN = Plan(
    schema=1,
    name="tiny",
    data=DataSpec(findings=("Nodule",), image_size=64),
    model=ModelSpec(encoder="vit_micro", depth=1, decoder_width=32, decoder_depth=1, decoder_heads=2),
    stages=(STAGE,),
)
EFFORT = Effort(restarts=1, steps=40, hops=2, matching=10)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """A few phantoms."""
    return phantoms(PLAN.data, 8, 0, lambda done, total: None)


def subject_of(**changes: Any) -> Pretraining:
    return Pretraining(PLAN, dataclasses.replace(STAGE, **changes))


def recovered(pictures: Pictures, view: View, **changes: Any) -> Recovery:
    subject = with_positions(subject_of(**changes), view.positions)
    return recovery(subject, state_of(moved(subject.built())), view, pictures, pictures.part(4), EFFORT)


@pytest.mark.parametrize("masks", ["known", "unknown"])
@pytest.mark.parametrize(("positions", "attack"), [("fixed", "spans"), ("learned", "closed form")])
def test_a_picture_comes_back_with_what_was_hidden(pictures: Pictures, masks: str, positions: str, attack: str) -> None:
    found = recovered(pictures, View(name="one", masks=masks, positions=positions))
    assert found.attempts[0].attack == attack
    assert found.attempts[0].likeness[0].psnr > 40
    assert found.identified == [True]


def test_normalised_targets_come_back_but_for_a_mean_and_a_deviation_that_neighbours_tell(pictures: Pictures) -> None:
    found = recovered(pictures, View(name="one", masks="unknown"), normalize_targets=True)
    assert found.attempts[0].attack == "spans"
    assert found.stranger[0].psnr + 5 < found.attempts[0].likeness[0].psnr
    assert found.attempts[0].likeness[0].ssim > 0.8


@pytest.mark.parametrize(("count", "exact"), [(2, True), (3, False)])
def test_what_was_hidden_comes_back_while_the_decoder_is_wide_enough(
    pictures: Pictures, count: int, exact: bool
) -> None:
    subject = subject_of()
    model = moved(subject.built())
    seen = _see_gradient(model, subject, View(name="several", pictures=count), pictures, None)
    attacker = Attacker(model, subject, seen.facts, 0)
    truth = ((seen.truth - 0.5056) / 0.252).double()
    visible = torch.zeros(count, 16, 1, dtype=torch.bool).scatter(1, seen.facts["visible"][:, :, None], True)
    found = attacker.completed(seen.gradient, unpatchify(patchify(truth, 16) * visible, 16))
    errors = (patchify(found - truth, 16).abs().amax(dim=2, keepdim=True)).float()
    assert float(errors[visible].max()) < 1e-9, "what is known stays"
    assert (float(errors[~visible].max()) < 0.02) == exact, "24 or 36 hidden patches by 33 equations"
    assert float((found - truth).square().mean()) < float(truth.square().mean()), "the rest is like its neighbours"


def test_of_several_pictures_with_unknown_masks_nothing_says_whose_each_patch_is(pictures: Pictures) -> None:
    found = recovered(pictures, View(name="two", pictures=2, masks="unknown"))
    assert not [each for each in found.attempts if each.attack == "spans"]


def test_two_pictures_come_back_together(pictures: Pictures) -> None:
    found = recovered(pictures, View(name="two", pictures=2))
    assert found.attempts[0].attack == "spans"
    assert found.identified == [True, True]
    assert max(each.psnr for each in found.attempts[0].likeness) > 30


def test_it_does_not_come_back_through_dp_sgd(pictures: Pictures) -> None:
    found = recovered(pictures, View(name="noised", noise=1.0, masks="unknown", positions="learned"))
    assert not [each for each in found.attempts if each.attack == "spans"]
    assert found.attempts[0].likeness[0].psnr < found.stranger[0].psnr
    assert found.attempts[0].likeness[0].ssim < 0.4


def test_an_update_is_the_signs_of_the_gradient_at_the_masks_that_the_engine_draws(pictures: Pictures) -> None:
    subject = subject_of()
    model = moved(subject.built())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    update = _see_update(model, subject, View(name="step", pictures=2, sees="update"), pictures, None)
    load_state(model, state)
    own = Attacker(model, subject, update.facts, 0).gradient(((update.truth - 0.5056) / 0.252).double())
    for name, tensor in own.items():
        sure = tensor.abs() > 1e-3 * tensor.abs().max().clamp(min=1e-3)
        torch.testing.assert_close(update.gradient[name][sure], tensor[sure].sign().float(), atol=0.02, rtol=0.0)


def test_a_canary_is_a_picture_whose_patches_lie_elsewhere(pictures: Pictures) -> None:
    canaries = subject_of().canaries(pictures, np.random.default_rng(0))
    before, after = (patchify(torch.from_numpy(each.images), 16) for each in (pictures, canaries))
    assert not torch.equal(before, after)
    for one, other in zip(before, after, strict=True):
        assert sorted(map(bytes, one.numpy())) == sorted(map(bytes, other.numpy()))


def test_a_loss_is_the_mean_over_masks_that_are_the_same_for_all(pictures: Pictures) -> None:
    subject = subject_of()
    model = moved(subject.built())
    together = subject.losses(model, pictures.part(0, 3))
    assert torch.allclose(together[2:], subject.losses(model, pictures.part(2, 3)), rtol=1e-5)
    known = subject.confidence(together.detach().numpy())
    assert np.array_equal(np.argsort(known), np.argsort(-together.detach().numpy())), "surer where the loss is lower"
    assert subject.facts(pictures, generator(0, "a"))["visible"].shape == (8, 4)


def test_a_pretraining_is_audited_from_its_configuration_to_its_report(tmp_path: Path) -> None:
    stage = {"kind": "pretrain", "name": "mae", "batch_size": 8, "mask_ratio": 0.75}
    model = {
        "encoder": "vit_micro",
        "depth": 1,
        "patch_size": 16,
        "decoder_width": 32,
        "decoder_depth": 1,
        "decoder_heads": 2,
    }
    plan = {
        "schema": 1,
        "name": "masks",
        "data": {"findings": ["Nodule"], "image_size": 32},
        "model": model,
        "stages": [stage],
    }
    views = [
        {"name": "one", "masks": "unknown"},
        {"name": "noised", "sees": "update", "noise": 1.0, "masks": "unknown"},
    ]
    effort = {"restarts": 1, "steps": 5, "hops": 0, "matching": 5}
    audit = AUDIT | {
        "stage": "mae", "canaries": {"count": 8, "others": 4, "rounds": 1, "gradients": 16},
        "shadows": {"models": 4, "pictures": 8, "rounds": 1}, "inversion": {"effort": effort, "views": views},
    }  # fmt: skip
    assert main(["audit", str(write(tmp_path, plan, audit)), "--out", str(tmp_path / "out")]) == EXIT_OK
    content = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert content["kind"] == "pretrain"
    assert set(content["trainings"][1]["attacks"]) == {"gradients", "updates", "model", "shadows", "loss"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "An audit of the pretraining stage mae" in page
    assert "patches lie in an order of their own" in page
    assert "labels" not in page.split("<h2>To repeat it")[0].lower()


@pytest.mark.parametrize(
    ("stage", "view", "line"),
    [
        ({"masks": 2}, {}, r"stage: expected mae with objective: mae and masks: 1, found mae and 2"),
        ({"objective": "features"}, {}, r"stage: expected mae with .*, found features and 1"),
        (
            {},
            {"sees": "update", "noise": 1.0},
            r"inversion\.views: a: expected masks: unknown in an update under DP-SGD",
        ),
        (None, {"masks": "unknown"}, r"inversion\.views: a: expected masks: known, since detect has none"),
    ],
)
def test_what_cannot_be_audited_of_a_pretraining_is_named(
    tmp_path: Path, stage: dict[str, Any] | None, view: dict[str, Any], line: str
) -> None:
    kind = {"kind": "finetune", "name": "detect", "init": "random"}
    if stage is not None:
        kind = {"kind": "pretrain", "name": "mae", **stage}
    plan = {"schema": 1, "name": "p", "data": {"findings": ["Nodule"], "image_size": 32}, "stages": [kind]}
    audit = AUDIT | {"stage": kind["name"], "inversion": {"views": [{"name": "a", **view}]}}
    with pytest.raises(SettingsError, match=line):
        read_audit(write(tmp_path, plan, audit))
