"""Erasing the hospital from embeddings, and the head that is fitted to them."""

from __future__ import annotations

import numpy as np
import torch

from client.app import runtime_for
from client.site import Compute
from cxrbase_model.classifier import build_classifier
from cxrbase_model.plan import DataSpec, FinetuneStage, ModelSpec, Plan
from cxrbase_model.predict import predict
from sim.erasure import embeddings, eraser, refit
from sim.probe import linear_probe

RUNTIME = runtime_for(Compute(threads=1), "float32")


def test_a_probe_is_at_chance_on_erased_features_and_what_is_orthogonal_stays() -> None:
    rng = np.random.default_rng(0)
    hospitals = np.repeat([0, 1, 2], 200)
    features = rng.normal(0, 1, (600, 8)).astype(np.float32)
    features[:, 0] += 5 * (hospitals == 1)
    features[:, 1] += 5 * (hospitals == 2)
    erased = (features @ eraser(features, hospitals).T).astype(np.float32)
    assert linear_probe(features, hospitals, features, hospitals) > 0.95
    assert linear_probe(erased, hospitals, erased, hospitals) < 0.4
    for each in range(3):
        assert np.abs(erased[hospitals == each].mean(axis=0) - erased.mean(axis=0)).max() < 0.01
    assert np.corrcoef(features[:, 5], erased[:, 5])[0, 1] > 0.98


def test_features_of_one_hospital_stay_as_they_are() -> None:
    features = np.random.default_rng(0).normal(0, 1, (50, 4)).astype(np.float32)
    assert np.allclose(eraser(features, np.zeros(50, int)), np.eye(4))


def test_a_refitted_head_tells_the_finding_and_its_model_sees_the_erased_features() -> None:
    stage = FinetuneStage(init="random", drop_path=0.0)
    plan = Plan(
        schema=1, name="tiny", data=DataSpec(findings=("Pneumonia",), image_size=32), stages=(stage,),
        model=ModelSpec(encoder="vit_micro", depth=1),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    present = np.tile(np.array([0, 1], np.float32), 40)
    present[60:70] = np.nan
    bright = np.where(np.tile([0, 1], 40) == 1, 160, 80)[:, None, None]
    images = torch.from_numpy((bright + rng.integers(0, 40, (80, 32, 32))).astype(np.uint8))
    hospitals = np.repeat([0, 1], 40)
    model = build_classifier(plan, stage)
    known = embeddings(model, iter([images]), RUNTIME)
    new = refit(model, known, hospitals, present, erase=True)
    scores = predict(new, [images], RUNTIME)[:, 0].numpy()
    assert ((scores > 0.5) == (np.tile([0, 1], 40) == 1)).all()
    erased = embeddings(new, iter([images]), RUNTIME)
    assert np.allclose(erased[hospitals == 0].mean(axis=0), erased[hospitals == 1].mean(axis=0), atol=1e-3)
    logits = new.head(torch.from_numpy(erased))[:, 0]
    assert np.allclose(torch.sigmoid(logits).detach().numpy(), scores, atol=1e-5)
