"""The masked autoencoder (He et al. 2022, arXiv 2111.06377): hide most patches, encode the rest, predict the hidden ones.

Methods stand in the order in which data flows. Shapes as in `vit.py`; M is the number of hidden patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cxrbase_model.attention import CrossBlock
from cxrbase_model.plan import ModelSpec, Plan, Teacher
from cxrbase_model.seeds import generator
from cxrbase_model.vit import Block, Encoder, Positions, gather, initialise, patchify


class MaskedAutoencoder(nn.Module):
    """Encoder over the visible patches, light decoder over all; the loss is taken on hidden patches alone.

    `outputs` is the number of values predicted for a patch, its pixels if None.
    """

    def __init__(self, spec: ModelSpec, image_size: int, outputs: int | None = None) -> None:
        super().__init__()
        self.encoder = Encoder(spec, image_size)
        width, decoder_width = spec.shape[0], spec.decoder_width
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Embedding(1, decoder_width)
        self.positions = Positions(self.encoder.side, decoder_width)
        self.is_cross = spec.decoder == "cross"
        block = CrossBlock if self.is_cross else Block
        self.decoder_blocks = nn.ModuleList(block(decoder_width, spec.decoder_heads) for _ in range(spec.decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.predict = nn.Linear(decoder_width, outputs or spec.patch_size**2)

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

    def forward_encoder(self, patches_BNP: Tensor, visible_En: Tensor) -> Tensor:
        """Visible patches to features, [E, n, D]."""
        features: Tensor = self.encoder(patches_BNP, visible_En)
        return features

    def forward_decoder(self, features_EnD: Tensor, visible_En: Tensor, hidden_EM: Tensor) -> Tensor:
        """Features of the visible patches to predictions of the hidden ones, [E, M, P*P]; these may be a part of all hidden."""
        batch = len(hidden_EM)
        seen = self.decoder_embed(features_EnD) + self.positions(visible_En, batch)
        x = self.mask_token(torch.zeros_like(hidden_EM)) + self.positions(hidden_EM, batch)
        if self.is_cross:
            for block in self.decoder_blocks:
                x = block(x, seen)
        else:
            x = torch.cat([seen, x], dim=1)
            for block in self.decoder_blocks:
                x = block(x)
            x = x[:, seen.shape[1] :]
        prediction: Tensor = self.predict(self.decoder_norm(x))
        return prediction

    def forward_loss(
        self, patches_BNP: Tensor, prediction_EMP: Tensor, hidden_EM: Tensor, normalize_targets: bool
    ) -> Tensor:
        """Mean squared error over hidden patches, [E]; targets normalised by their own mean and deviation if asked."""
        target = gather(patches_BNP, hidden_EM)
        if normalize_targets:
            target = (target - target.mean(dim=2, keepdim=True)) / (target.var(dim=2, keepdim=True) + 1e-6).sqrt()
        return (prediction_EMP.float() - target.float()).square().mean(dim=(1, 2))

    def forward(
        self, images_BHW: Tensor, visible_En: Tensor, hidden_EM: Tensor, normalize_targets: bool = True
    ) -> Tensor:
        """Normalised pictures [B, H, W] and masks, those of one picture next to each other, to one loss a mask, [E]."""
        patches = self.patchify(images_BHW)
        features = self.forward_encoder(patches, visible_En)
        prediction = self.forward_decoder(features, visible_En, hidden_EM)
        return self.forward_loss(patches, prediction, hidden_EM, normalize_targets)

    def after_step(self, teacher: Teacher, done: float) -> None:
        """What follows an optimizer step, when `done` of the stage's steps are: nothing for pixels."""


def build_autoencoder(plan: Plan) -> MaskedAutoencoder:
    """The plan's autoencoder, initialised from the plan's seed; the same on every machine."""
    model = MaskedAutoencoder(plan.model, plan.data.image_size)
    initialise(model, generator(plan.seed, "initial weights", "autoencoder"))
    return model
