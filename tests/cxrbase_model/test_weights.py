"""Checkpoints of the shapes that others publish start our encoder, and say so where they cannot."""

from __future__ import annotations

import argparse
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from cxrbase_model.foreign import WeightsError, adapt
from cxrbase_model.plan import ModelSpec
from cxrbase_model.state import digest
from cxrbase_model.vit import Encoder, patchify, sincos_positions
from cxrbase_model.weights import read_file, read_timm

SPEC = ModelSpec(encoder="vit_micro", patch_size=8, depth=2, positions="learned")
SIDE = 32
Weights = dict[str, Tensor]


def timm_vit(channels: int = 3, **more: Any) -> timm.models.VisionTransformer:
    """A small timm ViT with learned positions, no class token unless asked for, and weights that are not trivial."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "img_size": SIDE, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 4, "num_classes": 0,
        "in_chans": channels, "class_token": False, "global_pool": "avg", "fc_norm": False,
    }  # fmt: skip
    model = timm.models.VisionTransformer(**(settings | more))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def medical_mae(weights: Weights) -> Weights:
    """As medical_mae, RETFound and facebookresearch/mae name things: timm's names, fixed positions, and a decoder."""
    fixed = torch.cat([torch.zeros(1, 1, 128), sincos_positions(4, 128)[None]], dim=1)
    decoder = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_embed.weight": torch.zeros(8, 128),
        "decoder_pos_embed": fixed,
    }
    return weights | {"pos_embed": fixed, "cls_token": torch.zeros(1, 1, 128)} | decoder


def hugging_face(weights: Weights) -> Weights:
    """As RAD-DINO and other Dinov2 models of Hugging Face name things."""
    found: Weights = {}
    for name, tensor in weights.items():
        for theirs, ours in (
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("pos_embed", "embeddings.position_embeddings"),
            ("cls_token", "embeddings.cls_token"), ("blocks.", "encoder.layer."), ("attn.proj", "attention.output.dense"),
            ("ls1.gamma", "layer_scale1.lambda1"), ("ls2.gamma", "layer_scale2.lambda1"),
        ):  # fmt: skip
            name = name.replace(theirs, ours)
        if name.startswith("norm."):
            name = f"layer{name}"
        if ".attn.qkv." in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[name.replace("attn.qkv", f"attention.attention.{part}")] = rows.clone()
        else:
            found[name] = tensor
    return found | {"embeddings.mask_token": torch.zeros(1, 128)}


def vit_of_hugging_face(weights: Weights) -> Weights:
    """As ViTModel names the parts that Dinov2 names otherwise, below `vit.`."""
    found = {}
    for name, tensor in hugging_face(weights).items():
        for theirs, ours in (
            (".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after."), (".mlp.fc1.", ".intermediate.dense."),
            (".mlp.fc2.", ".output.dense."),
        ):  # fmt: skip
            name = name.replace(theirs, ours)
        found[f"vit.{name}"] = tensor
    return found | {"classifier.weight": torch.zeros(2, 128)}


def encoder_of(state: Weights, spec: ModelSpec = SPEC, side: int = SIDE) -> Encoder:
    encoder = Encoder(spec, side)
    encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in state.items()})
    return encoder.eval()


def assert_same_features(state: Weights, theirs: timm.models.VisionTransformer, spec: ModelSpec = SPEC) -> None:
    images = torch.randn(2, SIDE, SIDE)
    with torch.no_grad():
        ours = encoder_of(state, spec)(patchify(images, 8))
        expected = theirs.forward_features(images[:, None].expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (dict, {}),
        (hugging_face, {"init_values": 0.5}),
        (hugging_face, {}),
        (vit_of_hugging_face, {}),
        (lambda weights: {f"module.encoder.{name}": tensor for name, tensor in weights.items()}, {}),
    ],
    ids=["timm", "Dinov2 with layer scale", "Dinov2", "ViTModel", "below a prefix"],
)
def test_a_model_computes_the_same_under_our_names(
    names: Callable[[Weights], Weights], settings: dict[str, Any]
) -> None:
    model = timm_vit(**settings)
    assert_same_features(adapt(names(model.state_dict()), SPEC, SIDE), model)


def test_a_masked_autoencoders_file_with_fixed_positions_needs_no_learned_ones(tmp_path: Path) -> None:
    model = timm_vit()
    model.load_state_dict({"pos_embed": sincos_positions(4, 128)[None]}, strict=False)
    path = tmp_path / "checkpoint.pth"
    weights = medical_mae(model.state_dict())
    torch.save({"model": weights, "optimizer": {"state": {}}, "epoch": 799, "args": argparse.Namespace(lr=1e-3)}, path)
    fixed = replace(SPEC, positions="fixed")
    assert_same_features(read_file(path, fixed, SIDE), model, fixed)


def test_what_is_not_used_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cxrbase.model"):
        adapt(vit_of_hugging_face(timm_vit().state_dict()), SPEC, SIDE)
    assert [record.getMessage() for record in caplog.records] == [
        "weights: 2 tensors are not used: classifier.weight, mask_token"
    ]


def test_positions_are_interpolated_and_the_class_tokens_is_left_out() -> None:
    weights = timm_vit(class_token=True, global_pool="token").state_dict()
    state = adapt(weights, SPEC, image_size=64)
    found = state["encoder.positions.learned.weight"].reshape(8, 8, 128)
    grid = weights["pos_embed"][0, 1:].reshape(4, 4, 128)
    torch.testing.assert_close(found.mean(dim=(0, 1)), grid.mean(dim=(0, 1)), atol=0.05, rtol=0)
    torch.testing.assert_close(found[::7, ::7], grid[::3, ::3], atol=0.5, rtol=0)
    assert encoder_of(state, SPEC, 64)(torch.randn(1, 64, 64)).shape == (1, 64, 128)
    same = adapt(weights, SPEC, SIDE)["encoder.positions.learned.weight"]
    assert torch.equal(same, weights["pos_embed"][0, 1:])


def test_three_channels_see_a_grey_picture_as_their_sum_does() -> None:
    state = adapt(timm_vit().state_dict(), SPEC, SIDE)
    weight = timm_vit().patch_embed.proj.weight
    expected = weight[:, 0] + weight[:, 1] + weight[:, 2]
    torch.testing.assert_close(state["encoder.embed.weight"], expected.flatten(1))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_files_of_both_kinds_are_read(tmp_path: Path, suffix: str) -> None:
    weights, path = timm_vit().state_dict(), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save({"teacher": weights, "student": {}}, path)
    assert digest(read_file(path, SPEC, SIDE)) == digest(adapt(weights, SPEC, SIDE))


@pytest.mark.parametrize(
    ("change", "spec", "line"),
    [
        ({}, {"depth": 3}, r"of another encoder than vit_micro: missing encoder\.blocks\.2\.attn\.proj\.bias,"),
        ({}, {"depth": 1}, r"unknown encoder\.blocks\.1\.attn"),
        ({}, {"encoder": "vit_tiny"}, r"has the shape \(128, 64\) in these weights, \(192, 64\) in vit_tiny"),
        ({}, {"patch_size": 4}, "patch_size: these weights have patches of 8x8, the plan of 4"),
        ({}, {"positions": "fixed"}, "set model.positions: learned"),
        ({"blocks.0.attn.q_norm.weight": torch.ones(32)}, {}, r"unknown encoder\.blocks\.0\.attn\.q_norm\.weight"),
        ({"student.patch_embed.proj.weight": torch.ones(1)}, {}, "expected one vision transformer"),
    ],
)
def test_weights_that_do_not_fit_are_an_error_that_says_what_would(
    change: Weights, spec: dict[str, Any], line: str
) -> None:
    with pytest.raises(WeightsError, match=line):
        adapt(timm_vit().state_dict() | change, replace(SPEC, **spec), SIDE)


class Malice:
    """What a pickle could do."""

    def __reduce__(self) -> Any:
        return print, ("this must not run",)


def test_a_file_that_would_run_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"model": Malice()}, path)
    with pytest.raises(WeightsError, match=r"evil\.pth: cannot be read as weights"):
        read_file(path, SPEC, SIDE)
    path.write_bytes(pickle.dumps(Malice(), protocol=2))
    with pytest.raises(WeightsError, match=r"evil\.pth: cannot be read as weights"):
        read_file(path, SPEC, SIDE)
    assert capsys.readouterr().out == ""


def test_what_beside_the_tensors_keeps_a_file_from_being_read_is_named(tmp_path: Path) -> None:
    torch.save({"model": timm_vit().state_dict(), "folder": tmp_path}, tmp_path / "own.pth")
    with pytest.raises(
        WeightsError, match=r"it holds pathlib\.\w+, and only tensors and plain values are read"
    ) as found:
        read_file(tmp_path / "own.pth", SPEC, SIDE)
    assert "\x1b" not in str(found.value), "torch's advice is written for terminals"


@pytest.mark.parametrize("name", ["none.safetensors", "none.pth"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=f"{name}: there is no such file"):
        read_file(tmp_path / name, SPEC, SIDE)


def test_a_pretrained_model_of_timm_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create(name: str, **settings: Any) -> timm.models.VisionTransformer:
        asked.append((name, settings["pretrained"]))
        return timm_vit()

    monkeypatch.setattr(timm, "create_model", create)
    assert_same_features(read_timm("vit_small_patch16_224.dino", SPEC, SIDE), timm_vit())
    assert asked == [("vit_small_patch16_224.dino", True)]


def test_without_a_network_the_model_is_named_and_the_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*arguments: Any, **settings: Any) -> None:
        raise OSError(
            "We couldn't connect to 'https://huggingface.co' to load this file.\nCheck your internet connection"
        )

    with pytest.raises(WeightsError, match=r"timm:vit_medium: cannot be loaded \(Unknown model \(vit_medium\)\)"):
        read_timm("vit_medium", SPEC, SIDE)
    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(WeightsError, match=r"(?s)timm:vit_base_patch16_224\.mae: cannot be loaded .*init: file:PATH"):
        read_timm("vit_base_patch16_224.mae", SPEC, SIDE)
