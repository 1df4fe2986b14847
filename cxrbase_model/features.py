"""Masked feature prediction (data2vec, Baevski et al. 2022, arXiv 2202.03555): predict what a teacher sees in hidden patches.

The second objective on the same encoder, decoder and masks as `mae.py`. The teacher is the average of the encoders of past steps
and sees whole pictures; its features carry meaning sooner than pixels do. Shapes as in `mae.py`.
"""

from __future__ import annotations

import copy
import math
from collections import deque

import torch
from torch import Tensor
from torch.nn import functional as F

from cxrbase_model.mae import MaskedAutoencoder, build_autoencoder
from cxrbase_model.plan import ModelSpec, Plan, PretrainStage, Teacher
from cxrbase_model.seeds import generator
from cxrbase_model.vit import gather, initialise


class FeaturePredictor(MaskedAutoencoder):
    """A masked autoencoder whose targets are features of its own slow average, `teacher`.

    The teacher has no gradient, but it moves with each step and is part of the state: hospitals start a round from the same
    teacher, and the mean of theirs is the next one.
    """

    moves = ("teacher.",)  # for `state.moving_names`

    def __init__(self, spec: ModelSpec, image_size: int, blocks: int) -> None:
        super().__init__(spec, image_size, outputs=spec.shape[0])
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_blocks = blocks

    def start_teacher(self) -> None:
        """Make the teacher what the encoder is now."""
        self.teacher.load_state_dict(self.encoder.state_dict())

    @torch.no_grad()
    def targets(self, patches_BNP: Tensor) -> Tensor:
        """The teacher's features of whole pictures, [B, N, D]: the mean of its last blocks, normalised by patch."""
        last = deque(self.teacher.layers(patches_BNP), maxlen=self.target_blocks)
        mean = torch.stack([F.layer_norm(x.float(), x.shape[2:]) for x in last]).mean(dim=0)
        return F.layer_norm(mean, mean.shape[2:])

    def forward_loss(
        self, patches_BNP: Tensor, prediction_EMP: Tensor, hidden_EM: Tensor, normalize_targets: bool
    ) -> Tensor:
        """Mean squared error between predicted and the teacher's features of hidden patches, [E]; they are always normalised."""
        target_EMD = gather(self.targets(patches_BNP), hidden_EM)
        return (prediction_EMP.float() - target_EMD).square().mean(dim=(1, 2))

    @torch.no_grad()
    def after_step(self, teacher: Teacher, done: float) -> None:
        """Move the teacher a little towards the encoder, less the more of the stage is done (BYOL, arXiv 2006.07733)."""
        keep = 1 - (1 - teacher.momentum) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.encoder.parameters()), 1 - keep)


def build_objective(plan: Plan, stage: PretrainStage) -> MaskedAutoencoder:
    """The stage's model, initialised from the plan's seed; the same on every machine."""
    if stage.objective == "mae":
        return build_autoencoder(plan)
    model = FeaturePredictor(plan.model, plan.data.image_size, stage.teacher.blocks)
    initialise(model, generator(plan.seed, "initial weights", "autoencoder"))
    model.start_teacher()
    return model
