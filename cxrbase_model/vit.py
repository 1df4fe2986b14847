"""The one-channel vision transformer encoder on timm's blocks (Dosovitskiy et al. 2021, arXiv 2010.11929).

Shapes: B pictures, E pictures times masks of each, N patches, n visible patches, D width, P patch side, K blocks, H and W
picture height and width.

Friendly to Opacus by construction: only Linear, LayerNorm and Embedding have parameters (no class token, no layer scale, no
subclass of theirs), and patches are embedded by a Linear, so that gradient hooks and ghost clipping work with fused attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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


class Block(nn.Module):
    """A pre-norm transformer block of ratio 4, named and computed as timm's; its stochastic depth is handed in, not drawn inside."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x_BND: Tensor, paths_B2: Tensor | None = None) -> Tensor:
        """[B, N, D] to [B, N, D]; `paths_B2` are the factors on the two branches of each picture, 1 where None."""
        attended: Tensor = self.attn(self.norm1(x_BND))
        x_BND = x_BND + (attended if paths_B2 is None else attended * paths_B2[:, 0, None, None])
        mixed: Tensor = self.mlp(self.norm2(x_BND))
        return x_BND + (mixed if paths_B2 is None else mixed * paths_B2[:, 1, None, None])


class Encoder(nn.Module):
    """Patches to features. `forward` embeds all patches, or only the visible ones (they are gathered before embedding).

    With `recompute` set, the backward pass computes each block's activations anew instead of keeping them (Chen et al. 2016,
    arXiv 1604.06174): a third more work for the memory of one block instead of all.
    """

    def __init__(self, spec: ModelSpec, image_size: int, drop_path: float = 0.0) -> None:
        super().__init__()
        width, depth, heads = spec.shape
        self.patch, self.side = spec.patch_size, image_size // spec.patch_size
        self.embed = nn.Linear(self.patch**2, width)
        self.positions = Positions(self.side, width, learned=spec.positions == "learned")
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.drop_rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.recompute = False

    def draw_paths(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Stochastic depth for `count` pictures, [B, K, 2]: 0, or 1 / chance of staying; None where no block drops.

        The chance of dropping rises linearly to the last block's (Huang et al. 2016, arXiv 1603.09382). They are drawn for a
        whole batch, so that its parts and the processes that share it see what the whole would have seen.
        """
        if not any(self.drop_rates):
            return None
        paths_BK2 = torch.ones(count, len(self.blocks), 2)
        for index, rate in enumerate(self.drop_rates):
            for branch in range(2 if rate else 0):
                kept = torch.empty(count).bernoulli_(1 - rate, generator=generator)
                paths_BK2[:, index, branch] = kept / (1 - rate)
        return paths_BK2

    def forward(self, patches_BNP: Tensor, visible_En: Tensor | None = None, paths_BK2: Tensor | None = None) -> Tensor:
        """[B, N, P*P] normalised patches to [B, N, D] features, or to those of the visible ones alone, [E, n, D].

        A picture may have several masks, whose rows follow each other: E is B times their number.
        """
        for x in self.layers(patches_BNP, visible_En, paths_BK2):
            last = x
        features: Tensor = self.norm(last)
        return features

    def layers(
        self, patches_BNP: Tensor, visible_En: Tensor | None = None, paths_BK2: Tensor | None = None
    ) -> Iterator[Tensor]:
        """What each block makes of the patches, first to last, before the final norm; arguments as in `forward`.

        ValueError where the pictures have another size than the model's: masks would name patches that are not there, or never some.
        """
        if patches_BNP.shape[1] != self.side**2:
            pixels = self.side * self.patch
            raise ValueError(
                f"pictures: expected {pixels} x {pixels} pixels, {self.side**2} patches, found {patches_BNP.shape[1]} patches"
            )
        seen = patches_BNP if visible_En is None else gather(patches_BNP, visible_En)
        x = self.embed(seen) + self.positions(visible_En, len(seen))
        for index, block in enumerate(self.blocks):
            paths_B2 = None if paths_BK2 is None else paths_BK2[:, index]
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, paths_B2, use_reentrant=False)
            else:
                x = block(x, paths_B2)
            yield x


class Positions(nn.Module):
    """What is added to a patch for its place: fixed sines and cosines, or a learned vector that starts as those."""

    def __init__(self, side: int, width: int, *, learned: bool = False) -> None:
        super().__init__()
        self.register_buffer("fixed_ND", sincos_positions(side, width), persistent=False)
        self.learned = nn.Embedding(side * side, width) if learned else None

    def reset(self) -> None:
        """Start learned positions from the fixed ones."""
        if self.learned is not None:
            fixed: Any = self.fixed_ND
            self.learned.weight.data.copy_(fixed)

    def forward(self, index_Bn: Tensor | None, batch: int) -> Tensor:
        """The vectors of some places, [B, n, D], or of all, [N, D] or [batch, N, D]."""
        fixed: Any = self.fixed_ND
        if self.learned is None:
            return fixed if index_Bn is None else fixed[index_Bn]  # type: ignore[no-any-return]  # a buffer has no type
        if index_Bn is None:  # a row for each picture, which Opacus needs
            index_Bn = torch.arange(len(fixed), device=fixed.device).repeat(batch, 1)
        vectors: Tensor = self.learned(index_Bn.contiguous())  # Opacus looks at it as a list
        return vectors


def gather(tokens_BND: Tensor, index_En: Tensor) -> Tensor:
    """Those tokens of each picture that an index names, [E, n, D]; E is B, or a multiple where pictures are indexed repeatedly."""
    repeats = len(index_En) // len(tokens_BND)
    if repeats > 1:
        tokens_BND = tokens_BND.repeat_interleave(repeats, dim=0)
    return tokens_BND.gather(1, index_En[:, :, None].expand(-1, -1, tokens_BND.shape[2]))


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Xavier weights and zero biases for Linear, ones and zeros for LayerNorm, normal 0.02 for Embedding; on the CPU.

    Positions start as sines and cosines.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02, generator=generator)
        elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, Positions):
            part.reset()
