"""The one-channel vision transformer encoder on timm's blocks (Dosovitskiy et al. 2021, arXiv 2010.11929).

Shapes: B pictures, N patches, n visible patches, D width, P patch side, H and W picture height and width.

Friendly to Opacus by construction: no module has a parameter of its own besides timm's Linear and LayerNorm (no class token, no
learned positions, no layer scale), and patches are embedded by a Linear, so that gradient hooks and ghost clipping work with
fused attention.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cxrbase_model.plan import ModelSpec


def patchify(images_BHW: Tensor, patch: int) -> Tensor:
    """Cut pictures into square patches, row by row: [B, H, W] to [B, N, P*P]."""
    batch, height, width = images_BHW.shape
    rows, columns = height // patch, width // patch
    tiles = images_BHW.reshape(batch, rows, patch, columns, patch).permute(0, 1, 3, 2, 4)
    return tiles.reshape(batch, rows * columns, patch * patch)


def unpatchify(patches_BNP: Tensor, patch: int) -> Tensor:
    """Put square patches of a square picture back together: [B, N, P*P] to [B, H, W]."""
    batch, count, _ = patches_BNP.shape
    side = round(count**0.5)
    tiles = patches_BNP.reshape(batch, side, side, patch, patch).permute(0, 1, 3, 2, 4)
    return tiles.reshape(batch, side * patch, side * patch)


def sincos_positions(side: int, width: int) -> Tensor:
    """Fixed 2-D sine and cosine positions, [side*side, width]: half the channels for the row, half for the column."""
    if width % 4:
        raise ValueError(f"width: expected a multiple of 4, found {width}")
    frequencies = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width/2]
    rows = line[:, None, :].expand(side, side, -1)
    columns = line[None, :, :].expand(side, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(side * side, width).float()


def blocks(width: int, depth: int, heads: int, drop_path: float = 0.0) -> nn.ModuleList:
    """Pre-norm transformer blocks of ratio 4; stochastic depth rises linearly to `drop_path` in the last one."""
    rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
    return nn.ModuleList(Block(width, heads, qkv_bias=True, drop_path=rate) for rate in rates)


class Encoder(nn.Module):
    """Patches to features. `forward` embeds all patches, or only the visible ones (they are gathered before embedding)."""

    def __init__(self, spec: ModelSpec, image_size: int, drop_path: float = 0.0) -> None:
        super().__init__()
        width, depth, heads = spec.shape
        self.patch, self.side = spec.patch_size, image_size // spec.patch_size
        self.embed = nn.Linear(self.patch**2, width)
        self.register_buffer("positions_ND", sincos_positions(self.side, width), persistent=False)
        self.blocks = blocks(width, depth, heads, drop_path)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, patches_BNP: Tensor, visible_Bn: Tensor | None = None) -> Tensor:
        """[B, N, P*P] normalised patches (and [B, n] indices of the visible ones) to [B, N or n, D] features."""
        positions: Any = self.positions_ND
        if visible_Bn is None:
            x = self.embed(patches_BNP) + positions
        else:
            x = self.embed(gather(patches_BNP, visible_Bn)) + positions[visible_Bn]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]  # timm's blocks carry no types


def gather(tokens_BND: Tensor, index_Bn: Tensor) -> Tensor:
    """Those tokens of each picture that an index names: [B, N, D] and [B, n] to [B, n, D]."""
    return tokens_BND.gather(1, index_Bn[:, :, None].expand(-1, -1, tokens_BND.shape[2]))


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Xavier weights and zero biases for Linear, ones and zeros for LayerNorm, normal 0.02 for Embedding; on the CPU."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02, generator=generator)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
