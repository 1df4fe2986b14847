"""Encoders that others trained, under our names: timm's, medical_mae's and RETFound's, Hugging Face's ViT and Dinov2 (RAD-DINO).

Where a checkpoint keeps its encoder and what it calls the parts is found by looking, not by being told. Three input channels become
their sum, which sees a grey picture as the three saw three equal ones. Layer scale is multiplied into the matrix before it.
Our encoder has no class token, so theirs is left out, and registers with it: fine-tuning has to make up for that.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from cxrbase_model.plan import ModelSpec
from cxrbase_model.state import State
from cxrbase_model.vit import Encoder, sincos_positions

log = logging.getLogger("cxrbase.model")

_ANCHORS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
_UNUSED = (  # what a checkpoint may have besides an encoder, and what of an encoder ours has no place for
    "cls_token", "mask_token", "reg_token", "register_tokens", "dist_token", "head", "fc_norm", "decoder", "pooler", "classifier",
)  # fmt: skip
_TO_TIMM = tuple(  # Hugging Face's names, part by part
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.", ""),
        (r"^encoder\.layer\.", "blocks."),
        (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
        (r"^layernorm\.", "norm."),
    )
)
_SAME_POSITIONS = 0.02  # positions of sines and cosines, after the rounding of half precision and a little training


class WeightsError(ValueError):
    """Weights cannot start the plan's encoder; the message says what was expected and which setting would fit."""


def adapt(weights: Mapping[str, Tensor], spec: ModelSpec, image_size: int) -> State:
    """A checkpoint's encoder under our names, `encoder.*`, float32; WeightsError where it is not the plan's.

    What is left out is named in one line of the log; what nobody knows is an error, since without it the encoder would not
    compute what it was trained to.
    """
    names = _TimmNames(weights)
    found = names.tensors
    _merge_qkv(found)
    _fold_layer_scale(found)
    if "norm.weight" not in found and "fc_norm.weight" in found:  # where it was trained with mean pooling
        found |= {name: found.pop(f"fc_{name}") for name in ("norm.weight", "norm.bias")}
    unused = sorted([*names.outside, *(name for name in found if name.startswith(_UNUSED))])
    found = {name: tensor for name, tensor in found.items() if not name.startswith(_UNUSED)}
    state = _ours(found, spec, image_size)
    _compare(state, spec, image_size)
    if unused:
        log.info("weights: %d tensors are not used: %s", len(unused), ", ".join(unused))
    return state


class _TimmNames:
    """A checkpoint's encoder under timm's names, and the names of what is outside of it."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        prefixes = {name.removesuffix(anchor) for name in weights for anchor in _ANCHORS if _ends(name, anchor)}
        if len(prefixes) != 1:
            where = f"in {', '.join(sorted(prefixes))}" if prefixes else f"none among {_few(weights)}"
            raise WeightsError(f"expected one vision transformer with a patch embedding, found {where}")
        prefix = prefixes.pop()
        self.outside = [name for name in weights if not name.startswith(prefix)]
        self.tensors: State = {}
        for name, tensor in weights.items():
            if name.startswith(prefix):
                self.tensors[_timm_name(name.removeprefix(prefix))] = tensor.detach().float()


def _ends(name: str, anchor: str) -> bool:
    return name == anchor or name.endswith(f".{anchor}")


def _timm_name(name: str) -> str:
    for pattern, replacement in _TO_TIMM:
        name = pattern.sub(replacement, name)
    return name


def _merge_qkv(found: State) -> None:
    """Queries, keys and values that stand apart become one matrix."""
    for name in [name for name in found if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in found for part in parts):  # those that stand alone are told as unknown
            found[name.replace(".query.", ".qkv.")] = torch.cat([found.pop(part) for part in parts])


def _fold_layer_scale(found: State) -> None:
    """x + gamma * (W y + b) is x + (gamma W) y + gamma b (layer scale, Touvron et al. 2021, arXiv 2103.17239)."""
    for name in [name for name in found if name.endswith((".ls1.gamma", ".ls2.gamma"))]:
        block, gamma = name[: -len("ls1.gamma")], found.pop(name)
        last = "attn.proj" if name.endswith("ls1.gamma") else "mlp.fc2"
        for part, factor in (("weight", gamma[:, None]), ("bias", gamma)):
            if f"{block}{last}.{part}" in found:
                found[f"{block}{last}.{part}"] = found[f"{block}{last}.{part}"] * factor


def _ours(found: State, spec: ModelSpec, image_size: int) -> State:
    """timm's names to ours."""
    state: State = {}
    for name, tensor in found.items():
        if name == "patch_embed.proj.weight":
            if tensor.ndim != 4 or tensor.shape[2:] != (spec.patch_size, spec.patch_size):
                size = "x".join(str(side) for side in tensor.shape[2:])
                raise WeightsError(
                    f"model.patch_size: these weights have patches of {size}, the plan of {spec.patch_size}"
                )
            state["encoder.embed.weight"] = tensor.sum(dim=1).flatten(1)
        elif name == "patch_embed.proj.bias":
            state["encoder.embed.bias"] = tensor
        elif name == "pos_embed":
            state |= _positions(tensor, spec, image_size // spec.patch_size)
        else:
            state[f"encoder.{name}"] = tensor
    return state


def _positions(embedding_1MD: Tensor, spec: ModelSpec, side: int) -> State:
    """Learned positions [1, M, D], interpolated to side x side; nothing where they are those that the plan fixes."""
    count, width = embedding_1MD.shape[1:]
    theirs = math.isqrt(count)
    grid_ND = embedding_1MD[0, count - theirs**2 :]  # the class token's and the registers' come first
    if spec.positions == "learned":
        grid = grid_ND.reshape(1, theirs, theirs, width).permute(0, 3, 1, 2)
        if theirs != side:
            grid = F.interpolate(grid, (side, side), mode="bicubic", antialias=True, align_corners=False)
        return {"encoder.positions.learned.weight": grid[0].flatten(1).T.contiguous()}
    fixed = theirs == side and torch.allclose(grid_ND, sincos_positions(theirs, width), rtol=0, atol=_SAME_POSITIONS)
    if not fixed:
        raise WeightsError(
            f"model.positions: these weights have learned positions, or another grid ({theirs} x {theirs}); "
            "set model.positions: learned"
        )
    return {}


def _compare(state: State, spec: ModelSpec, image_size: int) -> None:
    """WeightsError where names or shapes are not those of the plan's encoder."""
    with torch.device("meta"):
        own = {f"encoder.{name}": tensor for name, tensor in Encoder(spec, image_size).state_dict().items()}
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    told = {"missing": missing, "unknown": unknown}
    if missing or unknown:
        lines = [f"{kind} {_few(names)}" for kind, names in told.items() if names]
        raise WeightsError(f"model: these weights are of another encoder than {spec.encoder}: {'; '.join(lines)}")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise WeightsError(
                f"model: {name} has the shape {tuple(state[name].shape)} in these weights, "
                f"{tuple(tensor.shape)} in {spec.encoder}"
            )


def _few(names: Mapping[str, object] | list[str]) -> str:
    shown = list(names)[:8]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "") or "nothing"
