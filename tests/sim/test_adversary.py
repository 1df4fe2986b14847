"""The adversary learns the hospital, and the encoder the opposite."""

from __future__ import annotations

import numpy as np
import torch

from cxrbase_model.classifier import build_classifier
from cxrbase_model.plan import DataSpec, FinetuneStage, ModelSpec, Plan
from sim.adversary import Adversarial, hospital_targets


def _model(strength: float) -> Adversarial:
    stage = FinetuneStage(init="random", drop_path=0.0)
    plan = Plan(
        schema=1, name="tiny", data=DataSpec(findings=("Pneumonia",), image_size=32), stages=(stage,),
        model=ModelSpec(encoder="vit_micro", depth=1),
    )  # fmt: skip
    return Adversarial(build_classifier(plan, stage), 2, strength, 0)


def test_it_is_asked_for_the_hospital_among_pictures_of_one_finding() -> None:
    targets = hospital_targets(np.array([0, 1, np.nan], np.float32), np.array([1, 0, 1]))
    nan = np.nan
    assert np.array_equal(
        targets, np.array([[0, 1, nan, nan], [nan, nan, 1, 0], [nan] * 4], np.float32), equal_nan=True
    )


def test_its_gradient_reaches_the_encoder_reversed_and_scaled_and_itself_as_it_is() -> None:
    images = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for strength in (1.0, 0.5):
        model = _model(strength)
        model(images)[:, 1:].square().sum().backward()
        gradients.append((model.encoder.embed.weight.grad, model.critic[0].weight.grad))
    (encoder, critic), (half, same) = gradients
    assert encoder is not None
    assert half is not None
    torch.testing.assert_close(half, encoder / 2)
    torch.testing.assert_close(same, critic)
    plain = _model(1.0)
    embedding = plain.encoder(_patches(images)).mean(dim=1)
    plain.critic(embedding).square().sum().backward()
    torch.testing.assert_close(plain.encoder.embed.weight.grad, -encoder)


def test_the_finding_is_told_as_without_it() -> None:
    images = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))
    model = _model(1.0)
    torch.nn.init.normal_(model.head.weight)
    logits = model(images)
    assert logits.shape == (2, 1 + 2 * 2)
    features = model.encoder(_patches(images)).mean(dim=1)
    torch.testing.assert_close(logits[:, :1], model.head(model.head_norm(features)))


def _patches(images: torch.Tensor) -> torch.Tensor:
    return images.unfold(1, 16, 16).unfold(2, 16, 16).reshape(len(images), 4, 256)
