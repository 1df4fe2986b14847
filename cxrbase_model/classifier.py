"""Multi-label classification: the encoder, a pooling of its patch features, one logit a finding.

Shapes as in `vit.py`; C is the number of findings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxrbase_model.attention import AttentivePool
from cxrbase_model.lora import add_adapters
from cxrbase_model.plan import FinetuneStage, Plan
from cxrbase_model.seeds import generator
from cxrbase_model.vit import Encoder, initialise, patchify

_POOL_HEADS = 4  # attention heads of attentive pooling


class Standardise(nn.Module):
    """Features of zero mean and unit deviation in each patch and channel, by statistics that no training changes.

    Under DP-SGD that is what makes few noisy steps go far (Tramer and Boneh 2021, arXiv 2011.11660): the statistics have to be of
    pictures that need no protection.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(patches, width))
        self.register_buffer("deviation", torch.ones(patches, width))

    def forward(self, features_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        standardised: Tensor = (features_BND - self.mean) / self.deviation
        return standardised


class Classifier(nn.Module):
    """Encoder, pooling, LayerNorm and a linear head.

    `pooling` is `mean`; `grid` for the means of `grid` x `grid` regions side by side; or `attentive` for one query a finding.
    """

    def __init__(
        self, encoder: Encoder, findings: int, pooling: str = "mean", grid: int = 4, standardise: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.grid = grid if pooling == "grid" else 1
        width = encoder.embed.out_features * self.grid**2
        # a linear head can do without the norm's own weights, on standardised features, and they would only get noise, too
        self.head_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=not standardise)
        self.head = nn.Linear(width, findings)
        self.pool = AttentivePool(width, _POOL_HEADS, findings) if pooling == "attentive" else None
        self.standard = Standardise(encoder.side**2, encoder.embed.out_features) if standardise else None

    def forward(self, images_BHW: Tensor, paths_BK2: Tensor | None = None) -> Tensor:
        """Normalised pictures [B, H, W] to logits [B, C]; `paths_BK2` as `Encoder.draw_paths` draws them."""
        features = self.encoder(patchify(images_BHW, self.encoder.patch), paths_BK2=paths_BK2)
        if self.standard is not None:
            features = self.standard(features)
        if self.pool is None:
            logits: Tensor = self.head(self.head_norm(self._regions(features)))
        else:  # what finding c's query saw is judged by finding c's weights
            logits = self.head(self.head_norm(self.pool(features))).diagonal(dim1=1, dim2=2)
        return logits

    def _regions(self, features_BND: Tensor) -> Tensor:
        """The mean patch of each region, side by side: [B, N, D] to [B, D times regions]."""
        if self.grid == 1:
            return features_BND.mean(dim=1)
        features_BDSS = features_BND.transpose(1, 2).reshape(
            len(features_BND), -1, self.encoder.side, self.encoder.side
        )
        return F.adaptive_avg_pool2d(features_BDSS, self.grid).flatten(1)


def build_classifier(plan: Plan, stage: FinetuneStage) -> Classifier:
    """The plan's classifier, initialised from the plan's seed; two stages of a plan start from the same weights.

    What the stage does not train has `requires_grad` off.
    """
    drop_path = 0.0 if stage.trains == "head" else stage.drop_path
    encoder = Encoder(plan.model, plan.data.image_size, drop_path)
    model = Classifier(encoder, len(plan.data.findings), stage.pooling, stage.grid, stage.standardise)
    initialise(model, generator(plan.seed, "initial weights", "classifier"))
    nn.init.zeros_(model.head.weight)
    if stage.trains == "lora":
        add_adapters(encoder.blocks, stage.lora_rank, generator(plan.seed, "initial weights", "adapters"))
    _freeze(encoder, stage)
    return model


def _freeze(encoder: Encoder, stage: FinetuneStage) -> None:
    """Leave only what the stage trains of the encoder trainable."""
    if stage.trains == "all":
        return
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_("lora_" in name)
    if stage.trains == "last":
        for part in (*encoder.blocks[-stage.last_blocks :], encoder.norm):
            part.requires_grad_(True)
