"""What is exported is what was trained, and timm reads it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from cxrbase_model.classifier import build_classifier
from cxrbase_model.export import ExportError, export_classifier, export_encoder, load_classifier, read_encoder
from cxrbase_model.mae import build_autoencoder
from cxrbase_model.plan import FinetuneStage, Plan
from cxrbase_model.seeds import generator
from cxrbase_model.settings import read, to_mapping
from cxrbase_model.state import digest, load_state, state_of, with_prefix
from cxrbase_model.vit import initialise, patchify


def test_timm_loads_the_encoder_and_gives_the_same_features(small_plan: Plan, tmp_path: Path) -> None:
    model = build_autoencoder(small_plan).eval()
    folder = export_encoder(state_of(model), small_plan, tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    other = timm.create_model(
        config["architecture"], **config["model_args"], checkpoint_path=str(folder / "model.safetensors")
    ).eval()
    images = torch.randn(2, 32, 32)
    with torch.no_grad():
        ours = model.encoder(patchify(images, 8))
        assert isinstance(other, timm.models.VisionTransformer)
        theirs = other.forward_features(images[:, None])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_an_encoder_comes_back_as_it_was(small_plan: Plan, tmp_path: Path) -> None:
    state = state_of(build_autoencoder(small_plan))
    back = read_encoder(export_encoder(state, small_plan, tmp_path), small_plan)
    assert digest(back) == digest(with_prefix(state, "encoder."))


@pytest.mark.parametrize("pooling", ["mean", "grid", "attentive"])
def test_a_classifier_predicts_the_same_after_the_way_over_the_disk(
    small_plan: Plan, tmp_path: Path, pooling: str
) -> None:
    stage = small_plan.stage("detect")
    assert isinstance(stage, FinetuneStage)
    stage = replace(stage, pooling=pooling, grid=2, standardise=pooling == "grid")
    model = build_classifier(small_plan, stage).eval()
    initialise(model, generator(9, "test"))
    folder = export_classifier(state_of(model), small_plan, stage, tmp_path / "classifier")
    again, data = load_classifier(folder)
    images = torch.randn(2, 32, 32)
    assert torch.equal(model(images), again(images))
    assert data == small_plan.data


def test_a_folder_that_holds_something_else_is_named(small_plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"expected a folder with config\.json"):
        load_classifier(tmp_path)
    folder = export_encoder(state_of(build_autoencoder(small_plan)), small_plan, tmp_path / "encoder")
    with pytest.raises(ExportError, match="expected an exported classifier, found 'encoder'"):
        load_classifier(folder)
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ExportError, match="expected safetensors"):
        read_encoder(folder, small_plan)


def test_an_encoder_of_another_shape_is_refused(small_plan: Plan, tmp_path: Path) -> None:
    state = state_of(build_autoencoder(small_plan))
    folder = export_encoder(state, small_plan, tmp_path)
    mapping = to_mapping(small_plan)
    mapping["model"]["depth"] = 3
    with pytest.raises(ExportError, match="expected an encoder with depth 3, found 2"):
        read_encoder(folder, read(Plan, mapping))
    load_state(build_autoencoder(small_plan), state)
