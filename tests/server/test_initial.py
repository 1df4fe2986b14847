"""What each stage starts from: its own seed, another stage, or weights from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cxrbase_model.classifier import build_classifier
from cxrbase_model.export import export_encoder, to_timm
from cxrbase_model.features import build_objective
from cxrbase_model.lora import merged
from cxrbase_model.mae import build_autoencoder
from cxrbase_model.plan import FinetuneStage, Plan, PretrainStage
from cxrbase_model.settings import read
from cxrbase_model.state import State, digest, state_of, with_prefix
from server.initial import initial_state
from server.store import RunStore, StoreError


def plan(*stages: dict[str, Any], depth: int = 1) -> Plan:
    model = {
        "encoder": "vit_micro", "patch_size": 8, "depth": depth, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2,
    }  # fmt: skip
    data = {"findings": ["No Finding", "Nodule"], "image_size": 16}
    return read(Plan, {"schema": 1, "name": "test", "data": data, "model": model, "stages": list(stages)})


def started(folder: Path, the_plan: Plan, name: str, states: dict[str, State] | None = None) -> State:
    """The first weights of a stage when earlier ones ended in `states`."""
    store = RunStore.create(folder / "run", the_plan)
    for earlier, state in (states or {}).items():
        safetensors.torch.save_file(state, folder / "run" / "stages" / f"{earlier}.safetensors")
    stage = the_plan.stage(name)
    assert isinstance(stage, PretrainStage | FinetuneStage)
    return initial_state(the_plan, stage, store)


def moved(state: State) -> State:
    draw = torch.Generator().manual_seed(0)
    return {name: tensor + 0.1 * torch.randn(tensor.shape, generator=draw) for name, tensor in state.items()}


MAE = {"kind": "pretrain", "name": "mae"}


def test_an_encoder_goes_on_and_the_rest_starts_anew(tmp_path: Path) -> None:
    the_plan = plan(MAE, {"kind": "finetune", "name": "detect"})
    trained = moved(state_of(build_autoencoder(the_plan)))
    state = started(tmp_path, the_plan, "detect", {"mae": trained})
    assert digest(with_prefix(state, "encoder.")) == digest(with_prefix(trained, "encoder."))
    assert not bool(state["head.weight"].any())


def test_a_teacher_starts_as_the_encoder_that_init_names(tmp_path: Path) -> None:
    the_plan = plan(MAE, {"kind": "pretrain", "name": "more", "objective": "features", "init": "stage:mae"})
    trained = moved(state_of(build_autoencoder(the_plan)))
    state = started(tmp_path, the_plan, "more", {"mae": trained})
    for name, tensor in with_prefix(trained, "encoder.").items():
        assert torch.equal(state[name], tensor)
        assert torch.equal(state[name.replace("encoder.", "teacher.", 1)], tensor)


def test_pixels_can_follow_features(tmp_path: Path) -> None:
    the_plan = plan({**MAE, "objective": "features"}, {"kind": "pretrain", "name": "more", "init": "stage:mae"})
    stage = the_plan.stage("mae")
    assert isinstance(stage, PretrainStage)
    trained = moved(state_of(build_objective(the_plan, stage)))
    state = started(tmp_path, the_plan, "more", {"mae": trained})
    assert digest(with_prefix(state, "encoder.")) == digest(with_prefix(trained, "encoder."))
    assert state.keys() == state_of(build_autoencoder(the_plan)).keys()


@pytest.mark.parametrize("trains", ["all", "lora", "head"])
def test_adapters_are_merged_where_another_stage_goes_on(tmp_path: Path, trains: str) -> None:
    first = {"kind": "finetune", "name": "detect", "trains": "lora", "lora_rank": 2, "init": "random"}
    the_plan = plan(
        first, {"kind": "finetune", "name": "more", "trains": trains, "lora_rank": 3, "init": "stage:detect"}
    )
    stage = the_plan.stage("detect")
    assert isinstance(stage, FinetuneStage)
    trained = moved(state_of(build_classifier(the_plan, stage)))
    state = merged(started(tmp_path, the_plan, "more", {"detect": trained}))
    assert digest(with_prefix(state, "encoder.")) == digest(with_prefix(merged(trained), "encoder."))


@pytest.mark.parametrize("kind", ["export", "safetensors", "pth"])
def test_weights_from_a_file_start_a_stage(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"weights.{kind}"
    the_plan = plan({**MAE, "init": f"file:{path}"})
    trained = moved(state_of(build_autoencoder(the_plan)))
    if kind == "export":
        export_encoder(trained, the_plan, path)
    elif kind == "pth":
        torch.save({"model": to_timm(trained, the_plan.model, 16)}, path)
    else:
        safetensors.torch.save_file(to_timm(trained, the_plan.model, 16), path)
    state = started(tmp_path, the_plan, "mae")
    assert digest(with_prefix(state, "encoder.")) == digest(with_prefix(trained, "encoder."))


def test_features_are_standardised_by_the_statistics_that_the_encoder_comes_with(tmp_path: Path) -> None:
    head = {"kind": "finetune", "name": "detect", "standardise": True, "trains": "head"}
    the_plan = plan({**head, "init": f"file:{tmp_path / 'encoder'}"}, {**head, "name": "more", "init": "stage:detect"})
    trained = moved(state_of(build_autoencoder(plan(MAE))))
    export_encoder(trained, the_plan, tmp_path / "encoder")
    with pytest.raises(StoreError, match=r"stage detect: standardise: expected statistics .* found none"):
        started(tmp_path / "first", the_plan, "detect")
    stage = the_plan.stages[0]
    assert isinstance(stage, FinetuneStage)
    model = build_classifier(the_plan, stage)
    statistics = {name: tensor + 2 for name, tensor in with_prefix(state_of(model), "standard.").items()}
    export_encoder(trained, the_plan, tmp_path / "encoder", statistics)
    state = started(tmp_path / "second", the_plan, "detect")
    assert digest(with_prefix(state, "standard.")) == digest(statistics)
    assert digest(with_prefix(state, "encoder.")) == digest(with_prefix(trained, "encoder."))
    with pytest.raises(StoreError, match="found none"):
        started(tmp_path / "third", plan({**head, "init": "random"}), "detect")


@pytest.mark.parametrize(
    ("init", "line"),
    [
        ("timm:vit_medium", r"stage mae: init: timm:vit_medium: cannot be loaded"),
        ("file:/nowhere/weights.pth", r"stage mae: init: /nowhere/weights\.pth: there is no such file"),
    ],
)
def test_weights_that_cannot_be_had_stop_the_run_with_their_name(tmp_path: Path, init: str, line: str) -> None:
    with pytest.raises(StoreError, match=line):
        started(tmp_path, plan({**MAE, "init": init}), "mae")


def test_another_stages_encoder_of_another_shape_is_refused(tmp_path: Path) -> None:
    the_plan = plan(MAE, {"kind": "finetune", "name": "detect"})
    other = moved(state_of(build_autoencoder(plan(MAE, depth=2))))
    with pytest.raises(StoreError, match="has another shape than the plan's"):
        started(tmp_path, the_plan, "detect", {"mae": other})
