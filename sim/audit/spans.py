"""What the rows of gradients say: pictures from the spans of layers' inputs, exactly, while a batch is small for the model's width.

The gradient of a linear layer is a sum over tokens of (gradient of the output) times (input, 1), so its rows, with the bias's as one
more column, lie in the span of what went into the layer (DAGER, Petrov et al. 2024, arXiv 2405.15586, finds text that way). While
there are fewer tokens than columns this confines every token:

1. The patch projection's gradient gives the space of all patches: each is a combination of as many as there are tokens.
2. The first attention's gradient gives the space of its inputs. A patch fits a place only if its token, with the place's vector
   added and normalised, lies in there: linear equations, whose solutions at a place have a few numbers left.
3. These are found by a search for pictures whose inputs lie in the spans of all layers. It ends in patches that are right or belong
   elsewhere, so the worst are drawn anew until everything fits.

It needs no labels and no second derivatives. Noise on the gradient hides the spans, and then there is nothing to search in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cxrbase_model.vit import unpatchify
from sim.audit.inversion import EMBED, Attacker, Effort, Gradient, minimised, outside, roughness

_ROUNDING = 2e-7  # singular values of a float32 gradient below this share of the largest are rounding
_SOLVABLE = 1e-3  # singular values of the place equations below this share of the largest are rounding
_FOUND = 1e-9  # mean share of the inputs outside their spans at which a search is over
_SMOOTH = 0.1  # weight of the total variation at a search's beginning
_CANDIDATES, _MOST_ANEW, _HOP_STEPS = 64, 3, 70
_QKV = "encoder.blocks.0.attn.qkv"


@dataclass(frozen=True)
class Chart:
    """Where patches may lie: the one at place n is origin[n] + z_n @ basis, for K numbers z_n.

    origin: [N, P*P]. basis: [K, P*P]. misfit: [N], how badly the best patch fits each place, relative to the place's vector.
    """

    origin: Tensor
    basis: Tensor
    misfit: Tensor

    def pictures(self, z_BnK: Tensor, patch: int, visible_Bn: Tensor | None) -> Tensor:
        """[B, n, K] at all places, or at the visible ones, to normalised pictures [B, H, W]; grey where nothing is visible."""
        if visible_Bn is None:
            return unpatchify(self.origin + z_BnK @ self.basis, patch)
        patches_BnP = self.origin[visible_Bn] + z_BnK @ self.basis
        places_BnP = visible_Bn[:, :, None].expand_as(patches_BnP)
        blank_BNP = torch.zeros(len(visible_Bn), *self.origin.shape, dtype=self.origin.dtype)
        return unpatchify(blank_BNP.scatter(1, places_BnP, patches_BnP), patch)


def by_spans(attacker: Attacker, seen: Gradient, effort: Effort) -> Tensor | None:
    """Pictures [B, H, W] from a gradient; None where tokens are too many, or noise has hidden the spans."""
    spans = {name: span(seen, name, attacker.tokens) for name in _linear(attacker.model)}
    if (patches := spans.pop(EMBED, None)) is None or (inputs := spans.get(_QKV)) is None:
        return None
    found = chart(attacker.model, patches, inputs)
    if not attacker.sure:  # the masks are not known, but of one picture they show: patches fit where they were seen
        if attacker.count > 1:
            return None
        attacker = attacker.believing(found.misfit.topk(attacker.tokens, largest=False).indices[None])
    search = _Search(attacker, found, {name: each for name, each in spans.items() if each is not None})
    z = search.run(effort) if found.basis.shape[0] else search.start()  # of nothing, where every place has one solution
    return attacker.completed(seen, search.pictures(z))


def span(seen: Gradient, layer: str, tokens: int) -> Tensor | None:
    """An orthonormal basis [K, I + 1] of a linear layer's inputs with a one, from the gradient of its weight and bias.

    K is at most the number of tokens; tokens that are alike, such as black patches, make it less. None where the layer is not
    trained, or the rows do not end in rounding after as many as there are tokens: there are too many, or there is noise.
    """
    if f"{layer}.weight" not in seen or f"{layer}.bias" not in seen:
        return None
    rows_OI = torch.cat([seen[f"{layer}.weight"], seen[f"{layer}.bias"][:, None]], dim=1).double()
    if tokens >= min(rows_OI.shape):
        return None
    _, sizes, basis = torch.linalg.svd(rows_OI, full_matrices=False)
    rank = int((sizes > _ROUNDING * sizes[0]).sum())
    return basis[:rank] if 0 < rank <= tokens else None


def chart(model: Any, patches_KI: Tensor, inputs_KI: Tensor) -> Chart:
    """What fits each place, from the spans of the patches and of the first attention's inputs.

    With Q the projection away from the inputs' span, g and b the norm's weight and bias, W p + c_n the token of patch p at place n,
    C the projection that takes a vector's mean off, and s its deviation: Q (g C (W p + c_n) + s b, s) = 0. That is linear in (p, s).
    """
    encoder = model.encoder
    with torch.no_grad():
        norm, width = encoder.blocks[0].norm1, inputs_KI.shape[1] - 1
        away = torch.eye(width + 1, dtype=torch.float64) - inputs_KI.T @ inputs_KI
        centred = away[:, :width] @ torch.diag(norm.weight) @ (torch.eye(width, dtype=torch.float64) - 1 / width)
        places_ND = encoder.embed.bias + encoder.positions(None, 1).reshape(-1, width)
        pixels_KP, ones_K = patches_KI[:, :-1], patches_KI[:, -1]
        equations = torch.cat(
            [centred @ encoder.embed.weight @ pixels_KP.T, away @ _bias_and_one(norm)[:, None]], dim=1
        )
        right = -(centred @ places_ND.T)
        weight = equations.norm() / 5  # of the equation that the last number of (p, 1) is one
        equations = torch.cat([equations, weight * torch.cat([ones_K, torch.zeros(1)])[None] / ones_K.norm()])
        right = torch.cat([right, torch.full((1, right.shape[1]), float(weight / ones_K.norm()))])
        _, sizes, directions = torch.linalg.svd(equations)
        known = int((sizes > _SOLVABLE * sizes[0]).sum())
        solved = torch.linalg.lstsq(equations, right, rcond=_SOLVABLE, driver="gelsd").solution
        misfit = (equations @ solved - right).norm(dim=0) / right.norm(dim=0)
        _, sizes, basis = torch.linalg.svd(directions[known:, :-1] @ pixels_KP, full_matrices=False)
    return Chart(solved[:-1].T @ pixels_KP, basis[sizes > 1e-6], misfit)


def _bias_and_one(norm: Any) -> Tensor:
    return torch.cat([norm.bias, torch.ones(1, dtype=torch.float64)])


def _linear(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the patch projection and the blocks, by name."""
    return {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and (name == EMBED or name.startswith("encoder.blocks."))
    }


class _Search:
    """Numbers z [B, N, K] on a chart for which all layers' inputs lie in their spans; N are the visible places alone where some are hidden."""

    def __init__(self, attacker: Attacker, chart: Chart, spans: dict[str, Tensor]) -> None:
        self.attacker, self.chart, self.spans = attacker, chart, spans
        self._inputs: dict[str, Tensor] = {}

    def start(self) -> Tensor:
        """Random numbers."""
        count = self.attacker.count
        shape = (count, self.attacker.tokens // count, len(self.chart.basis))
        return torch.randn(shape, generator=self.attacker.draw, dtype=torch.float64)

    def pictures(self, z_BNK: Tensor) -> Tensor:
        """[B, N, K] to normalised pictures [B, H, W]; a multiple of those of the step is possible."""
        visible = self.attacker.visible
        if visible is not None:
            visible = visible.repeat(len(z_BNK) // len(visible), 1)
        return self.chart.pictures(z_BNK, self.attacker.patch, visible)

    def run(self, effort: Effort) -> Tensor:
        """The best z of a few searches, improved patch by patch."""
        handles = [
            part.register_forward_pre_hook(self._note(name)) for name, part in _linear(self.attacker.model).items()
        ]
        try:
            begun = [self._searched(self.start(), effort.steps, _SMOOTH) for _ in range(effort.restarts)]
            best, z = min(begun, key=lambda each: each[0])
            for _ in range(effort.hops):
                if best < _FOUND:
                    break
                other, other_z = self._hop(best, z)
                if other < best:
                    best, z = other, other_z
        finally:
            for handle in handles:
                handle.remove()
        return z

    def _hop(self, best: float, z_BNK: Tensor) -> tuple[float, Tensor]:
        """One to three patches, rather bad ones, drawn anew, the best of many draws, and searched from there."""
        draw = self.attacker.draw
        count, places, size = z_BNK.shape
        with torch.no_grad():
            misfit = self.misfits(z_BNK).flatten()
            chosen = torch.multinomial(
                misfit, int(torch.randint(1, _MOST_ANEW + 1, (1,), generator=draw)), generator=draw
            )
            many = z_BNK.reshape(1, count * places, size).repeat(_CANDIDATES, 1, 1)
            many[:, chosen] = z_BNK.std() * torch.randn(
                (_CANDIDATES, len(chosen), size), generator=draw, dtype=torch.float64
            )
            fits = self.misfits(many.reshape(-1, places, size)).reshape(_CANDIDATES, -1).sum(dim=1)
        begun = many[fits.argmin()].reshape(z_BNK.shape)
        found, z = self._searched(begun, _HOP_STEPS // 2, _SMOOTH / 100)
        return (found, z) if found > 1.3 * best else self._searched(z, _HOP_STEPS // 2, 0.0)

    def _searched(self, start: Tensor, steps: int, smooth: float) -> tuple[float, Tensor]:
        def value(z_BNK: Tensor) -> Tensor:
            return self.misfits(z_BNK).mean() + outside(self.pictures(z_BNK))

        z = minimised(value, start, steps, smooth, lambda z_BNK: roughness(self.pictures(z_BNK)))
        if smooth:
            z = minimised(value, z, max(5, steps // 4), 0.0, lambda z_BNK: z_BNK.sum())
        with torch.no_grad():
            return float(self.misfits(z).mean()), z

    def misfits(self, z_BNK: Tensor) -> Tensor:
        """The share of each token's inputs that lies outside the layers' spans, averaged over layers, [B, N]."""
        self.attacker.encode(self.pictures(z_BNK))
        total = torch.zeros(z_BNK.shape[:2], dtype=torch.float64)
        for name, basis in self.spans.items():
            inputs = self._inputs[name]
            inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=2)
            outside_span = inputs - (inputs @ basis.T) @ basis
            total = total + outside_span.square().sum(dim=2) / inputs.detach().square().sum(dim=2).mean()
        return total / len(self.spans)

    def _note(self, name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._inputs[name] = inputs[0]

        return hook
