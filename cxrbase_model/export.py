"""Finished models as folders that others can load: safetensors with a config.json beside them.

An encoder is written under timm's names, so that

    timm.create_model(config["architecture"], **config["model_args"], checkpoint_path="model.safetensors")

gives a one-channel ViT whose `forward_features` equals ours. A classifier keeps our names, its findings and its thresholds' scale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from cxrbase_model.augment import DEVIATION, MEAN
from cxrbase_model.classifier import Classifier
from cxrbase_model.codec import CodecError, unpack
from cxrbase_model.foreign import adapt
from cxrbase_model.lora import merged
from cxrbase_model.plan import DataSpec, FinetuneStage, ModelSpec, Plan
from cxrbase_model.settings import SettingsError, read, to_mapping
from cxrbase_model.state import State, load_state, with_prefix
from cxrbase_model.vit import Encoder, sincos_positions

SCHEMA = 1
_STATISTICS = "features.safetensors"


class ExportError(ValueError):
    """A folder or file does not hold a model of the expected kind; the message says what was expected."""


def export_encoder(
    state: Mapping[str, Tensor], plan: Plan, folder: Path, statistics: Mapping[str, Tensor] | None = None
) -> Path:
    """Write the encoder of a state under timm's names, and beside it the `feature_statistics` of its pictures; returns the folder."""
    width, depth, heads = plan.model.shape
    config = {
        "schema": SCHEMA,
        "kind": "encoder",
        "architecture": "vit_base_patch16_224",  # any of timm's plain ViTs; model_args say all that differs
        "model_args": {
            "img_size": plan.data.image_size,
            "patch_size": plan.model.patch_size,
            "embed_dim": width,
            "depth": depth,
            "num_heads": heads,
            "in_chans": 1,
            "num_classes": 0,
            "class_token": False,
            "global_pool": "avg",
            "fc_norm": False,
        },
    } | _common(plan)
    if statistics is not None:
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(dict(statistics), folder / _STATISTICS)
    return _write(folder, to_timm(state, plan.model, plan.data.image_size), config)


def export_classifier(state: Mapping[str, Tensor], plan: Plan, stage: FinetuneStage, folder: Path) -> Path:
    """Write a classifier of a stage under our own names, adapters merged; returns the folder."""
    config = {"schema": SCHEMA, "kind": "classifier", "findings": list(plan.data.findings)}
    config |= {"pooling": stage.pooling, "grid": stage.grid, "standardise": stage.standardise}
    return _write(folder, merged(state), config | _common(plan))


def load_classifier(folder: Path) -> tuple[Classifier, DataSpec]:
    """The classifier of an exported folder, ready to predict, and what its pictures have to look like."""
    config = _read_config(folder, "classifier")
    try:
        model_spec, data = read(ModelSpec, config["model"]), read(DataSpec, config["data"])
    except (SettingsError, KeyError) as error:
        raise ExportError(f"{folder / 'config.json'}: {error}") from None
    # folders of earlier releases do not say
    pooling, grid = str(config.get("pooling", "mean")), int(config.get("grid", 4))
    encoder, standardise = Encoder(model_spec, data.image_size), bool(config.get("standardise", False))
    model = Classifier(encoder, len(data.findings), pooling, grid, standardise)
    try:
        load_state(model, _read_state(folder / "model.safetensors"))
    except ValueError as error:
        raise ExportError(f"{folder / 'model.safetensors'}: {error}") from None
    return model.eval(), data


def read_encoder(path: Path, plan: Plan) -> State:
    """The encoder of an exported folder under our names, `encoder.*`, and, where it has them, its features' statistics, `standard.*`.

    ExportError where its shape is not the plan's.
    """
    config = _read_config(path, "encoder")
    arguments = config.get("model_args", {})
    width, depth, heads = plan.model.shape
    wanted = {"img_size": plan.data.image_size, "patch_size": plan.model.patch_size, "embed_dim": width, "depth": depth}
    for name, value in (wanted | {"num_heads": heads}).items():
        if arguments.get(name) != value:
            raise ExportError(f"{path}: expected an encoder with {name} {value}, found {arguments.get(name)}")
    encoder = adapt(_read_state(path / "model.safetensors"), plan.model, plan.data.image_size)
    return encoder | (_read_state(path / _STATISTICS) if (path / _STATISTICS).exists() else {})


def to_timm(state: Mapping[str, Tensor], spec: ModelSpec, image_size: int) -> State:
    """Our encoder's tensors under the names of timm's VisionTransformer, positions written out and adapters merged."""
    patch, width = spec.patch_size, spec.shape[0]
    found: State = {"pos_embed": sincos_positions(image_size // patch, width)[None]}
    for name, tensor in merged(with_prefix(state, "encoder.")).items():
        plain = name.removeprefix("encoder.")
        if plain == "embed.weight":
            found["patch_embed.proj.weight"] = tensor.reshape(width, 1, patch, patch)
        elif plain == "embed.bias":
            found["patch_embed.proj.bias"] = tensor
        elif plain == "positions.learned.weight":
            found["pos_embed"] = tensor[None]
        else:
            found[plain] = tensor
    return found


def _common(plan: Plan) -> dict[str, Any]:
    return {
        "plan": plan.name,
        "plan_digest": plan.digest,
        "model": to_mapping(plan.model),
        "data": to_mapping(plan.data),
        "mean": MEAN,
        "std": DEVIATION,
    }


def _write(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in sorted(state.items())}
    draft = folder / ".model.safetensors.draft"
    safetensors.torch.save_file(tensors, draft)
    draft.rename(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def _read_config(folder: Path, kind: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise ExportError(f"{folder}: expected a folder with config.json and model.safetensors") from None
    found = config.get("kind") if isinstance(config, dict) else None
    if found != kind:
        raise ExportError(f"{folder}: expected an exported {kind}, found {found!r}")
    return dict(config)


def _read_state(path: Path) -> State:
    try:
        return unpack(path.read_bytes())
    except (OSError, CodecError):
        raise ExportError(f"{path}: expected safetensors") from None
