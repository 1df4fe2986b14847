"""Gradient inversion: an honest-but-curious server looks for the pictures that an update was computed from.

The server knows the model and the plan, and so (without `privacy:`) the seeds of augmentation and masks; labels are granted to it,
since of small batches they show in the head's gradient (Zhao et al. 2020, arXiv 2001.02610). The attacks, from exact to general:

- closed form (APRIL, Lu et al. 2022, arXiv 2112.14087) for learned positions and one picture: the gradient of the positions is that
  of each patch's token, and with it the gradient of the patch projection is a linear equation for the pixels;
- spans (`spans.py`): what the rows of each layer's gradient say about the layer's inputs;
- of a pretraining both give what the encoder saw, and `hidden.py` the patches that were hidden from it;
- matching (Geiping et al. 2020, arXiv 2003.14053): smooth pictures whose own gradient looks like the one that was seen.

Shapes as in `vit.py`. Pictures are normalised float64 here; `grey` makes grey values of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.attention import Attention
from torch import Tensor

from cxrbase_model.attention import CrossAttention
from cxrbase_model.augment import DEVIATION, MEAN
from cxrbase_model.parallel import Rows
from cxrbase_model.settings import knob
from cxrbase_model.vit import unpatchify
from sim.audit.hidden import CUTS, completed
from sim.audit.subject import Finetuning, Subject

BLACK, WHITE = (0 - MEAN) / DEVIATION, (1 - MEAN) / DEVIATION  # of a normalised picture
EMBED, POSITIONS = "encoder.embed", "encoder.positions.learned"

_PHASES = 5  # of a search, each with less smoothing than the one before

Gradient = Mapping[str, Tensor]
Distance = Callable[[Gradient], Tensor]


@dataclass(frozen=True)
class Effort:
    """How hard the attacker tries."""

    restarts: int = knob(3, low=1, high=1000, why="searches by spans that begin elsewhere; the best goes on")
    steps: int = knob(130, low=5, high=100_000, why="quasi-Newton steps of a search by spans")
    hops: int = knob(12, low=0, high=10_000, why="times that the worst patches are drawn anew and searched again")
    matching: int = knob(
        200, low=5, high=100_000, why="quasi-Newton steps of a search by matching, from each of two smoothings"
    )


class Attacker:
    """Knows a model, its loss and all of a step but the pictures; sees a gradient, or what an update tells of it.

    facts: labels, which are granted, or masks; where these are not `sure` they are the attacker's own, and as good as none.
    """

    def __init__(self, model: Any, subject: Subject, facts: Rows, seed: int, *, sure: bool = True) -> None:
        self.model: Any = copy.deepcopy(model).double().train()
        for part in self.model.modules():
            if isinstance(part, Attention | CrossAttention):
                part.fused_attn = False  # type: ignore[misc]  # fused attention cannot be differentiated twice
        self.subject, self.facts, self.sure = subject, facts, sure
        self.draw = torch.Generator().manual_seed(seed)
        self.patch, self.places = int(self.model.encoder.patch), int(self.model.encoder.side) ** 2
        self.parameters = {name: each for name, each in self.model.named_parameters() if each.requires_grad}

    @property
    def count(self) -> int:
        """How many pictures are looked for."""
        return len(next(iter(self.facts.values())))

    @property
    def visible(self) -> Tensor | None:
        """The places that the encoder sees of each picture, [B, n]; None for all."""
        return self.facts.get("visible")

    @property
    def tokens(self) -> int:
        """How many patches of a step the encoder sees."""
        return self.count * self.places if self.visible is None else self.visible.numel()

    def believing(self, visible_Bn: Tensor) -> Attacker:
        """The same attacker, sure of the visible places; all others are then those that are hidden."""
        other = copy.copy(self)
        every = torch.ones(len(visible_Bn), self.places, dtype=torch.bool).scatter(1, visible_Bn, False)
        hidden_BM = every.nonzero()[:, 1].reshape(len(visible_Bn), -1)
        other.facts, other.sure = {"visible": visible_Bn, "hidden": hidden_BM}, True
        return other

    def encode(self, pictures_BHW: Tensor) -> None:
        """Put pictures through the encoder, for who listens there; a multiple of those of the step is possible."""
        if self.visible is None:
            self.model(pictures_BHW)
        else:
            repeats = len(pictures_BHW) // self.count
            self.model.forward_encoder(self.model.patchify(pictures_BHW), self.visible.repeat(repeats, 1))

    def completed(self, seen: Gradient, pictures_BHW: Tensor) -> Tensor:
        """Pictures with the patches that a pretraining has hidden from the encoder, where some are: those that explain the gradient best."""
        if isinstance(self.subject, Finetuning) or self.visible is None:
            return pictures_BHW
        stage, visible, hidden = self.subject.stage, self.visible, self.facts["hidden"]
        found = [completed(self.model, stage, pictures_BHW, visible, hidden, seen, cut) for cut in CUTS]
        distance = relative_errors(self._known(seen))
        return min(found, key=lambda each: float(distance(self.gradient(each))))

    def gradient(self, pictures_BHW: Tensor, *, differentiable: bool = False) -> dict[str, Tensor]:
        """The gradient of a step's loss at normalised pictures, by parameter."""
        costs = self.subject.costs(self.model, pictures_BHW, self.facts)
        total = costs.double().sum() / self.subject.divisor(self.facts)
        found = torch.autograd.grad(total, list(self.parameters.values()), create_graph=differentiable)
        return dict(zip(self.parameters, found, strict=True))

    def by_closed_form(self, seen: Gradient) -> Tensor | None:
        """One picture [1, H, W] by APRIL's linear equations; None where positions are not learned, or there are more pictures.

        A place that the encoder did not see has no gradient; what is hidden there comes from the decoder's (`hidden.py`).
        """
        if f"{POSITIONS}.weight" not in seen or self.count != 1:
            return None
        places_ND, embed_DP = seen[f"{POSITIONS}.weight"].double(), seen[f"{EMBED}.weight"].double()
        solved = torch.linalg.lstsq(places_ND.T, embed_DP, rcond=1e-7, driver="gelsd").solution
        found = unpatchify(solved[None], self.patch)
        if self.visible is None:
            return found
        seen_n = places_ND.norm(dim=1).topk(self.visible.shape[1]).indices
        return self.believing(seen_n[None]).completed(seen, found)

    def by_matching(self, seen: Gradient, effort: Effort, smooth: float) -> Tensor:
        """Pictures [B, H, W] whose gradient is near the one seen, tensor by tensor relative to its length."""
        return self._matched(relative_errors(self._known(seen)), effort, smooth)

    def by_signs(self, seen: Gradient, effort: Effort, smooth: float) -> Tensor:
        """Pictures [B, H, W] from the first steps of AdamW, in which little but the signs of gradients is left.

        seen: the update over minus the learning rate, weight decay taken out; about -1 to 1 for each step.
        """
        return self._matched(sign_distance(self._known(seen)), effort, smooth)

    def _known(self, seen: Gradient) -> dict[str, Tensor]:
        return {name: seen[name].double() for name in self.parameters if name in seen}

    def _matched(self, distance: Distance, effort: Effort, smooth: float) -> Tensor:
        side = round(self.places**0.5) * self.patch
        start = 0.3 * torch.randn(self.count, side, side, generator=self.draw, dtype=torch.float64)

        def value(pictures_BHW: Tensor) -> Tensor:
            return distance(self.gradient(pictures_BHW, differentiable=True)) + outside(pictures_BHW)

        return minimised(value, start, effort.matching, smooth, roughness)


def minimised(
    value: Callable[[Tensor], Tensor], start: Tensor, steps: int, smooth: float, rough: Callable[[Tensor], Tensor]
) -> Tensor:
    """Where `value` is least, by L-BFGS from a start; `rough` is added with a weight that falls to a thousandth of `smooth`."""
    x = start.clone().requires_grad_(True)
    for phase in range(_PHASES):
        weight = smooth * 10 ** (-3 * phase / (_PHASES - 1))
        optimizer = torch.optim.LBFGS(
            [x], max_iter=max(1, steps // _PHASES), history_size=50, line_search_fn="strong_wolfe",
            tolerance_grad=0, tolerance_change=0,
        )  # fmt: skip

        def closure(optimizer: Any = optimizer, weight: float = weight) -> Tensor:
            optimizer.zero_grad()
            result = value(x)
            if weight:
                result = result + weight * rough(x)
            result.backward(inputs=[x])  # type: ignore[no-untyped-call]  # torch has no types for it
            return result.detach()

        optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch has no types for it
    return x.detach()


def roughness(pictures_BHW: Tensor) -> Tensor:
    """Mean total variation of pictures, made smooth at zero."""
    down, across = pictures_BHW.diff(dim=1), pictures_BHW.diff(dim=2)
    return (down.square() + 1e-4).sqrt().mean() + (across.square() + 1e-4).sqrt().mean()


def outside(pictures_BHW: Tensor) -> Tensor:
    """How far pixels are blacker than black or whiter than white."""
    return 0.01 * ((BLACK - pictures_BHW).clamp(min=0) + (pictures_BHW - WHITE).clamp(min=0)).square().mean()


def relative_errors(target: Gradient) -> Distance:
    """The squared error of each tensor over its square, averaged over tensors, so that small ones count as large ones."""
    sizes = {name: float(tensor.square().sum()) for name, tensor in target.items()}

    def distance(own: Gradient) -> Tensor:
        errors = [(own[name] - target[name]).square().sum() / size for name, size in sizes.items() if size > 0]
        return torch.stack(errors).mean()

    return distance


def sign_distance(target: Gradient) -> Distance:
    """One minus the cosine between the seen signs and softened signs of the own gradient."""
    whole = math.sqrt(sum(float(tensor.square().sum()) for tensor in target.values()))

    def distance(own: Gradient) -> Tensor:
        soft = {}
        for name in target:
            scale = 0.3 * own[name].detach().abs().mean() + 1e-12
            soft[name] = own[name] / (own[name].square() + scale**2).sqrt()
        dot = torch.stack([(soft[name] * target[name]).sum() for name in target]).sum()
        return 1 - dot / (torch.stack([each.square().sum() for each in soft.values()]).sum().sqrt() * whole)

    return distance


def grey(pictures_BHW: Tensor) -> Tensor:
    """Normalised pictures as grey values from 0 to 1, float32."""
    return (pictures_BHW * DEVIATION + MEAN).clamp(0, 1).float()
