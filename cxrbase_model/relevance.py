"""Which parts of a picture count for a finding, through every attention of the network (Chefer et al. 2021, arXiv 2103.15679).

What a pooling's query looks at says little by itself: after some blocks each patch has seen all others. So attention is followed down:
in each block, that by which a finding gains (attention times gradient, where positive) is added to what a patch is by itself. Shapes as
in `vit.py`; C findings, h heads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from timm.layers.attention import Attention
from torch import Tensor

from cxrbase_model.augment import normalise
from cxrbase_model.classifier import Classifier
from cxrbase_model.predict import attention_maps


def relevance_maps(model: Classifier, images_BHW: Tensor) -> Tensor:
    """How much each patch of uint8 pictures [B, H, W] counts for each finding: [B, C, S, S], from 0 on, S patches a side, on the CPU.

    Cost: one backward pass a finding, and all attentions in memory; for a few pictures.
    """
    model.to("cpu").eval()
    pooled_BCN = _pooled(model, images_BHW)
    with _attentions(model) as kept, torch.enable_grad():
        logits_BC = model(
            normalise(images_BHW).requires_grad_()
        )  # so that there are gradients in a frozen encoder, too
        maps = [_followed(kept, logits_BC[:, c], pooled_BCN[:, c]) for c in range(logits_BC.shape[1])]
    return torch.stack(maps, dim=1).reshape(*pooled_BCN.shape[:2], model.encoder.side, model.encoder.side)


def _followed(kept_BhNN: list[Tensor], logits_B: Tensor, pooled_BN: Tensor) -> Tensor:
    """What the attentions add to one finding's pooling, [B, N]."""
    gradients = torch.autograd.grad(logits_B.sum(), kept_BhNN, retain_graph=True)
    alone_NN = torch.eye(pooled_BN.shape[1])
    relevance_BNN = alone_NN.expand(len(pooled_BN), -1, -1)
    for attention, gradient in zip(kept_BhNN, gradients, strict=True):
        gained_BNN = (attention.detach() * gradient).clamp(min=0).mean(dim=1)
        relevance_BNN = relevance_BNN + gained_BNN @ relevance_BNN
    return (pooled_BN[:, None] @ (relevance_BNN - alone_NN))[:, 0]


def _pooled(model: Classifier, images_BHW: Tensor) -> Tensor:
    """How much of each patch's features a finding is judged by, [B, C, N]: by attention, or all alike."""
    if model.pool is not None:
        return attention_maps(model, images_BHW).flatten(2)
    patches = model.encoder.side**2
    return torch.full((len(images_BHW), model.head.out_features, patches), 1 / patches)


@contextlib.contextmanager
def _attentions(model: Classifier) -> Iterator[list[Tensor]]:
    """The attention [B, h, N, N] of each block in order, of what the model computes within the block of code."""
    parts = [part for part in model.encoder.modules() if isinstance(part, Attention)]
    fused, kept = [part.fused_attn for part in parts], list[Tensor]()
    hooks = [part.attn_drop.register_forward_hook(lambda _, __, output: kept.append(output)) for part in parts]
    try:
        for part in parts:
            # One kernel for all would never make the attention itself; timm says Final for TorchScript alone.
            part.fused_attn = False  # type: ignore[misc]
        yield kept
    finally:
        for part, before, hook in zip(parts, fused, hooks, strict=True):
            part.fused_attn = before  # type: ignore[misc]
            hook.remove()
