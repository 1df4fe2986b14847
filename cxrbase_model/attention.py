"""Attention of queries over features that they are not part of: the cross-attention decoder, and pooling with a query a finding.

Shapes as in `vit.py`; M queries, C findings.
"""

from __future__ import annotations

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F


class CrossAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762) in which queries see features and not each other.

    `fused_attn`, named as in timm's Attention, says whether one kernel does it or three.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.fused_attn = heads, True
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries_BMD: Tensor, features_BnD: Tensor) -> Tensor:
        """[B, M, D] and [B, n, D] to [B, M, D]."""
        keys, values = self.kv(features_BnD).chunk(2, dim=2)
        queries_BhMd, keys_Bhnd, values_Bhnd = (self._by_head(x) for x in (self.q(queries_BMD), keys, values))
        if self.fused_attn:
            attended_BhMd = F.scaled_dot_product_attention(queries_BhMd, keys_Bhnd, values_Bhnd)
        else:
            scores_BhMn = queries_BhMd * queries_BhMd.shape[3] ** -0.5 @ keys_Bhnd.transpose(2, 3)
            attended_BhMd = scores_BhMn.softmax(dim=3) @ values_Bhnd
        result: Tensor = self.proj(attended_BhMd.transpose(1, 2).flatten(2))
        return result

    def weights(self, queries_BMD: Tensor, features_BnD: Tensor) -> Tensor:
        """How much of each feature a query takes, [B, M, n], the mean over heads; a query's sum is 1."""
        keys_BnD, _ = self.kv(features_BnD).chunk(2, dim=2)
        queries_BhMd, keys_Bhnd = self._by_head(self.q(queries_BMD)), self._by_head(keys_BnD)
        scores_BhMn = queries_BhMd * queries_BhMd.shape[3] ** -0.5 @ keys_Bhnd.transpose(2, 3)
        mean_BMn: Tensor = scores_BhMn.softmax(dim=3).mean(dim=1)
        return mean_BMn

    def _by_head(self, x_BMD: Tensor) -> Tensor:
        return x_BMD.reshape(*x_BMD.shape[:2], self.heads, -1).transpose(1, 2)


class CrossBlock(nn.Module):
    """A decoder block without self-attention (CrossMAE, Fu et al. 2024, arXiv 2401.14391): each query is decoded by itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x_BMD: Tensor, features_BnD: Tensor) -> Tensor:
        """Queries [B, M, D] and normalised features [B, n, D] to [B, M, D]."""
        x_BMD = x_BMD + self.attn(self.norm1(x_BMD), features_BnD)
        changed: Tensor = x_BMD + self.mlp(self.norm2(x_BMD))
        return changed


class AttentivePool(nn.Module):
    """One learned query a finding over the patches (Query2Label, Liu et al. 2021, arXiv 2107.10834, without its layers)."""

    def __init__(self, width: int, heads: int, findings: int) -> None:
        super().__init__()
        self.queries = nn.Embedding(findings, width)
        self.attn = CrossAttention(width, heads)

    def forward(self, features_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, C, D]."""
        index = torch.arange(self.queries.num_embeddings, device=features_BND.device)
        pooled: Tensor = self.attn(self.queries(index.repeat(len(features_BND), 1)), features_BND)
        return pooled
