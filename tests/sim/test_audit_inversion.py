"""Attacks that turn gradients back into pictures work where they should, and fail where noise is in the way."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import numpy as np
import pytest
import torch

from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.plan import DataSpec, FinetuneStage, ModelSpec, Optimizer, Plan
from cxrbase_model.state import load_state
from sim.audit.config import PLAIN, View
from sim.audit.inversion import Attacker, Effort, grey
from sim.audit.pictures import phantoms
from sim.audit.sample import Pictures
from sim.audit.similarity import paired, psnr, ssim
from sim.audit.spans import by_spans, span
from sim.audit.subject import Finetuning
from sim.audit.training import loaded
from sim.audit.views import _see_gradient, _see_update, recovery

STAGE = FinetuneStage(
    init="random",
    batch_size=4,
    drop_path=0.0,
    positive_weight=1.0,
    augmentation=PLAIN,
    optimizer=Optimizer(lr=0.05, weight_decay=0.3),
)
PLAN = Plan(
    schema=1,
    name="tiny",
    data=DataSpec(findings=("Cardiomegaly", "Nodule"), image_size=32),
    model=ModelSpec(encoder="vit_micro", depth=1, patch_size=16),
    stages=(STAGE,),
)
SUBJECT = Finetuning(PLAN, STAGE)
EFFORT = Effort(restarts=2, steps=60, hops=10, matching=25)


Model = TypeVar("Model", bound=torch.nn.Module)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """A few small phantoms."""
    return phantoms(PLAN.data, 12, 0, lambda done, total: None)


def moved(model: Model) -> Model:
    """Weights as after some training: none is zero."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    return model


def built(positions: str = "fixed") -> tuple[Plan, Classifier]:
    plan = dataclasses.replace(PLAN, model=dataclasses.replace(PLAN.model, positions=positions))
    return plan, moved(build_classifier(plan, STAGE))


@pytest.mark.parametrize(("positions", "attack"), [("fixed", "spans"), ("learned", "closed form")])
def test_a_picture_comes_back_from_its_gradient(pictures: Pictures, positions: str, attack: str) -> None:
    plan, model = built(positions)
    found = recovery(Finetuning(plan, STAGE), model.state_dict(), View(name="one"), pictures, pictures.part(1), EFFORT)
    assert found.attempts[0].attack == attack
    assert found.attempts[0].likeness[0].psnr > 35
    assert found.attempts[0].likeness[0].ssim > 0.98
    assert found.identified == [True]


@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_it_does_not_come_back_through_dp_sgd(pictures: Pictures, positions: str) -> None:
    plan, model = built(positions)
    view = View(name="noised", noise=1.0)
    found = recovery(Finetuning(plan, STAGE), model.state_dict(), view, pictures, pictures.part(1), EFFORT)
    assert not [each for each in found.attempts if each.attack == "spans"], "noise hides the spans"
    assert found.attempts[0].likeness[0].psnr < found.stranger[0].psnr, "the mean of other pictures is nearer"
    assert found.attempts[0].likeness[0].ssim < 0.4


def test_the_mean_of_hospitals_is_the_gradient_of_all_their_pictures(pictures: Pictures) -> None:
    _, model = built()
    apart = _see_gradient(model, SUBJECT, View(name="summed", hospitals=4), pictures, None)
    together = _see_gradient(model, SUBJECT, View(name="batch", pictures=4), pictures, None)
    for name, tensor in together.gradient.items():
        torch.testing.assert_close(apart.gradient[name], tensor, atol=1e-6, rtol=1e-4)


def test_an_update_without_rate_and_decay_is_the_signs_of_the_gradient(pictures: Pictures) -> None:
    _, model = built()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    update = _see_update(model, SUBJECT, View(name="step", sees="update"), pictures, None)
    load_state(model, state)
    attacker = Attacker(model, SUBJECT, update.facts, 0)
    own = attacker.gradient(((update.truth - 0.5056) / 0.252).double())
    for name, tensor in own.items():
        sure = tensor.abs() > 1e-4 * tensor.abs().max().clamp(min=1e-3)
        torch.testing.assert_close(update.gradient[name][sure], tensor[sure].sign().float(), atol=0.02, rtol=0.0)


def test_spans_are_those_of_the_layers_inputs_until_there_are_too_many_tokens(pictures: Pictures) -> None:
    _, model = built()
    attacker = Attacker(model, SUBJECT, {"targets": torch.from_numpy(pictures.labels[:1])}, 0)
    seen = _see_gradient(model, SUBJECT, View(name="one"), pictures, None).gradient
    basis = span(seen, "encoder.embed", 4)
    assert basis is not None
    patches = torch.from_numpy(pictures.images[0]).double().div(255).sub(0.5056).div(0.252)
    tokens = torch.cat([patches.reshape(2, 16, 2, 16).permute(0, 2, 1, 3).reshape(4, 256), torch.ones(4, 1)], dim=1)
    assert float((tokens - tokens @ basis.T @ basis).norm() / tokens.norm()) < 1e-4
    assert span(seen, "encoder.embed", 3) is None, "no gap after the third"
    assert span(seen, "encoder.embed", 128) is None, "as many tokens as the layer is wide"
    frozen = {name: tensor for name, tensor in seen.items() if not name.startswith("encoder.embed")}
    assert by_spans(attacker, frozen, EFFORT) is None


def test_what_is_the_same_picture_has_full_marks_and_ssim_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(rng.random((16, 16)).astype(np.float32)) for _ in range(2))
    assert psnr(one, one) == 80.0
    assert ssim(one, one) == pytest.approx(1.0)
    assert psnr(one, one + 0.1) == pytest.approx(20.0, abs=1e-3)
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    scores = []
    for y in range(6):
        for x in range(6):
            a, b = (each.numpy().astype(float)[y : y + 11, x : x + 11] for each in (one, other))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            both = (window * (a - ma) * (b - mb)).sum()
            scores.append((2 * ma * mb + 1e-4) * (2 * both + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    assert ssim(one, other) == pytest.approx(np.mean(scores), abs=1e-6)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(one[:10], other[:10])


def test_an_attacker_is_not_asked_for_the_order_of_a_batch(pictures: Pictures) -> None:
    truth = torch.from_numpy(pictures.images[:5]).float() / 255
    ordered, likeness = paired(truth, truth[[3, 1, 4, 0, 2]])
    assert torch.equal(ordered, truth)
    assert {each.psnr for each in likeness} == {80.0}


def test_grey_values_are_those_that_were_normalised(pictures: Pictures) -> None:
    model = loaded(SUBJECT, built()[1].state_dict())
    seen = _see_gradient(model, SUBJECT, View(name="one"), pictures, None)
    assert torch.allclose(seen.truth[0], grey((seen.truth[0].double() - 0.5056) / 0.252), atol=1e-6)
