"""The masked autoencoder (He et al. 2022, arXiv 2111.06377): hide most patches, encode the rest, predict the hidden ones.

Methods stand in the order in which data flows. Shapes as in `vit.py`; M is the number of hidden patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cxrbase_model.plan import ModelSpec, Plan
from cxrbase_model.seeds import generator
from cxrbase_model.vit import Encoder, blocks, gather, initialise, patchify, sincos_positions


class MaskedAutoencoder(nn.Module):
    """Encoder over the visible patches, light decoder over all; the loss is taken on hidden patches alone."""

    def __init__(self, spec: ModelSpec, image_size: int) -> None:
        super().__init__()
        self.encoder = Encoder(spec, image_size)
        width, decoder_width = spec.shape[0], spec.decoder_width
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Embedding(1, decoder_width)
        self.register_buffer("positions_ND", sincos_positions(self.encoder.side, decoder_width), persistent=False)
        self.decoder_blocks = blocks(decoder_width, spec.decoder_depth, spec.decoder_heads)
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.predict = nn.Linear(decoder_width, spec.patch_size**2)

    def patchify(self, images_BHW: Tensor) -> Tensor:
        """[B, H, W] to [B, N, P*P]."""
        return patchify(images_BHW, self.encoder.patch)

    def random_masking(
        self, batch: int, mask_ratio: float, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Indices of visible and of hidden patches, [B, n] and [B, M]; each picture draws its own."""
        count = self.encoder.side**2
        visible = max(1, min(count - 1, round(count * (1 - mask_ratio))))
        order = torch.rand(batch, count, generator=generator, device=generator.device).argsort(dim=1).to(device)
        return order[:, :visible], order[:, visible:]

    def forward_encoder(self, patches_BNP: Tensor, visible_Bn: Tensor) -> Tensor:
        """Visible patches to features, [B, n, D]."""
        features: Tensor = self.encoder(patches_BNP, visible_Bn)
        return features

    def forward_decoder(self, features_BnD: Tensor, visible_Bn: Tensor, hidden_BM: Tensor) -> Tensor:
        """Features of the visible patches to predictions of the hidden ones, [B, M, P*P]."""
        positions: Any = self.positions_ND
        seen = self.decoder_embed(features_BnD) + positions[visible_Bn]
        token = self.mask_token(torch.zeros_like(hidden_BM))
        x = torch.cat([seen, token + positions[hidden_BM]], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        prediction: Tensor = self.predict(self.decoder_norm(x[:, seen.shape[1] :]))
        return prediction

    def forward_loss(
        self, patches_BNP: Tensor, prediction_BMP: Tensor, hidden_BM: Tensor, normalize_targets: bool
    ) -> Tensor:
        """Mean squared error over hidden patches, [B]; targets normalised by their own mean and deviation if asked."""
        target = gather(patches_BNP, hidden_BM)
        if normalize_targets:
            target = (target - target.mean(dim=2, keepdim=True)) / (target.var(dim=2, keepdim=True) + 1e-6).sqrt()
        return (prediction_BMP.float() - target.float()).square().mean(dim=(1, 2))

    def forward(
        self, images_BHW: Tensor, visible_Bn: Tensor, hidden_BM: Tensor, normalize_targets: bool = True
    ) -> Tensor:
        """Normalised pictures [B, H, W] and their masks to one loss a picture, [B]."""
        patches = self.patchify(images_BHW)
        features = self.forward_encoder(patches, visible_Bn)
        prediction = self.forward_decoder(features, visible_Bn, hidden_BM)
        return self.forward_loss(patches, prediction, hidden_BM, normalize_targets)


def build_autoencoder(plan: Plan) -> MaskedAutoencoder:
    """The plan's autoencoder, initialised from the plan's seed; the same on every machine."""
    model = MaskedAutoencoder(plan.model, plan.data.image_size)
    initialise(model, generator(plan.seed, "initial weights", "autoencoder"))
    return model
