"""The patches that pretraining hides, from the gradient of the last layer of the decoder: they never enter the model, they are its targets.

Who has the visible patches and the weights can compute what goes into that layer, h, and what comes out, for each hidden place. The
layer's gradient is the sum over hidden patches of 2 (prediction - target) / (their numbers) times (h, 1): linear equations for the targets,
while there are not more hidden patches in a step than the decoder is wide. Where targets are normalised, a patch comes back but for
its mean and its deviation; neighbours tell these, since pictures go on smoothly from one patch to the next.

Shapes as in `mae.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cxrbase_model.plan import PretrainStage
from cxrbase_model.vit import patchify, unpatchify

_LAST = "predict"
CUTS = (1e-6, 1e-4, 1e-2)  # shares of the largest singular value below which one of the equations is taken for rounding
_LEANING = 0.1  # weight of a usual mean and deviation against smooth borders


def completed(
    model: Any,
    stage: PretrainStage,
    pictures_BHW: Tensor,
    visible_Bn: Tensor,
    hidden_BM: Tensor,
    seen: Mapping[str, Tensor],
    cut: float,
) -> Tensor:
    """Pictures of which the visible patches are known, float64, with the others from a step's gradient, as far as that tells them.

    hidden: the places that were predicted, or all that were not visible. cut: one of CUTS; a coarse one loses detail, a fine one
    suffers where the visible patches are not quite right.
    """
    patches_BNP = patchify(pictures_BHW, model.encoder.patch)
    targets_BMP = _targets(model, stage, patches_BNP, visible_Bn, hidden_BM, seen, cut)
    if targets_BMP is not None and not stage.normalize_targets:
        return unpatchify(_put(patches_BNP, hidden_BM, targets_BMP), model.encoder.patch)
    shapes_BNP = torch.zeros_like(patches_BNP)
    if targets_BMP is not None:
        shapes_BNP = _put(shapes_BNP, hidden_BM, targets_BMP)
    known_BN = torch.zeros(patches_BNP.shape[:2], dtype=torch.bool).scatter(1, visible_Bn, True)
    return torch.stack(
        [_levelled(*each, model.encoder.patch) for each in zip(patches_BNP, shapes_BNP, known_BN, strict=True)]
    )


def _put(patches_BNP: Tensor, places_BM: Tensor, values_BMP: Tensor) -> Tensor:
    return patches_BNP.scatter(1, places_BM[:, :, None].expand_as(values_BMP), values_BMP)


@torch.no_grad()
def _targets(
    model: Any,
    stage: PretrainStage,
    patches_BNP: Tensor,
    visible_Bn: Tensor,
    hidden_BM: Tensor,
    seen: Mapping[str, Tensor],
    cut: float,
) -> Tensor | None:
    """What was to be predicted, [B, M, P*P]; None where there are more hidden patches than equations."""
    inputs: list[Tensor] = []
    handle = model.predict.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    prediction_BMP = model.forward_decoder(model.forward_encoder(patches_BNP, visible_Bn), visible_Bn, hidden_BM)
    handle.remove()
    rows_HD = torch.nn.functional.pad(inputs[0].flatten(0, 1), (0, 1), value=1.0)
    if len(rows_HD) > rows_HD.shape[1]:
        return None
    gradient_PD = torch.cat([seen[f"{_LAST}.weight"], seen[f"{_LAST}.bias"][:, None]], dim=1).double()
    slopes_HP = torch.linalg.lstsq(rows_HD.T, gradient_PD.T, rcond=cut, driver="gelsd").solution
    predicted = max(1, round(stage.decode * (patches_BNP.shape[1] - visible_Bn.shape[1])))
    numbers = len(visible_Bn) * predicted * patches_BNP.shape[2]
    targets_BMP: Tensor = prediction_BMP - slopes_HP.reshape(prediction_BMP.shape) * (numbers / 2)
    return targets_BMP


def _levelled(patches_NP: Tensor, shapes_NP: Tensor, known_N: Tensor, patch: int) -> Tensor:
    """One picture [H, W]: each unknown patch a mean plus a deviation times its shape, so that borders between patches are smooth."""
    places = (~known_N).nonzero()[:, 0]
    count = len(places)
    tiles_KNP = torch.zeros(2 * count, *patches_NP.shape, dtype=patches_NP.dtype)
    tiles_KNP[torch.arange(count), places] = 1.0
    tiles_KNP[count + torch.arange(count), places] = shapes_NP[places]
    fixed = unpatchify((patches_NP * known_N[:, None])[None], patch)
    parts = unpatchify(tiles_KNP, patch)
    usual = torch.cat([torch.zeros(count), patches_NP[known_N].std(dim=1).mean().repeat(count)]).to(patches_NP.dtype)
    equations = torch.cat([_steps(parts, patch).T, _LEANING * torch.eye(2 * count, dtype=patches_NP.dtype)])
    right = torch.cat([-_steps(fixed, patch)[0], _LEANING * usual])
    levels_K = torch.linalg.lstsq(equations, right[:, None]).solution[:, 0]
    levels_K[count:].clamp_(min=0)  # deviations
    return fixed[0] + torch.einsum("k,khw->hw", levels_K, parts)


def _steps(pictures_BHW: Tensor, patch: int) -> Tensor:
    """How much grey values change from the last pixels of each patch to the first of the next, [B, L]."""
    across = pictures_BHW[:, :, patch::patch] - pictures_BHW[:, :, patch - 1 : -1 : patch]
    down = pictures_BHW[:, patch::patch] - pictures_BHW[:, patch - 1 : -1 : patch]
    return torch.cat([across.flatten(1), down.flatten(1)], dim=1)
