"""Membership inference: which pictures was a model trained on? By canaries in one run, by gradients put into DP-SGD, by shadow models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxrbase_model.dpsgd import PrivateBatches, Protection
from cxrbase_model.normals import NoiseSource
from cxrbase_model.parallel import Rows
from cxrbase_model.privacy import Mechanism, Privacy
from cxrbase_model.seeds import derive_seed
from cxrbase_model.state import State
from sim.audit.bounds import Bools, Floats
from sim.audit.sample import Pictures
from sim.audit.subject import RUNTIME, Subject
from sim.audit.training import Trained, loaded, train

_FLOOR, _RIDGE = 1e-3, 1e-2  # of the regression: of a weight's usual gradient, and of the shares
_LOUD = 8.0  # times the clip: the length of a made-up gradient, which is cut to the clip


@dataclass(frozen=True)
class Guesses:
    """What an attacker thinks of each candidate: more means inside. pictures: int64 [M], which of them are the same picture's."""

    scores: Floats
    inside: Bools
    pictures: NDArray[np.int64]


@dataclass(frozen=True)
class CanaryRun:
    """One training with canaries, seen by who has the last model, and by the server, which has every update."""

    model: Guesses
    updates: Guesses
    mechanisms: list[Mechanism]
    states: list[State]


def canary_run(
    subject: Subject, canaries: Pictures, others: Pictures, rounds: int, privacy: Privacy | None
) -> CanaryRun:
    """Train with about half of the canaries, each in by the toss of a coin, and score all (arXiv 2305.08846).

    Canaries are pictures that nothing tells but they themselves (`canaries` of the subject). The model's score is how much a
    canary's loss fell; the server's is how much of the canary's gradient is in each round's update, added up over rounds (white-box: Nasr et al. 2023,
    arXiv 2302.07956, take the product of both; see `_along`).
    """
    seed = subject.plan.seed
    rng = np.random.default_rng(derive_seed(seed, "audit", "coins"))
    inside = rng.random(len(canaries)) < 0.5
    wrong = subject.canaries(canaries, rng)
    data = Pictures(
        np.concatenate([wrong.images[inside], others.images]), np.concatenate([wrong.labels[inside], others.labels])
    )
    run = train(subject, data, rounds, derive_seed(seed, "audit", "canaries"), privacy)
    index = np.arange(len(wrong))
    with torch.no_grad():
        first, last = (subject.losses(loaded(subject, state), wrong) for state in (run.states[0], run.states[-1]))
    return CanaryRun(
        Guesses((first - last).numpy(), inside, index),
        Guesses(_along(subject, run, wrong), inside, index),
        run.mechanisms,
        run.states,
    )


def _along(subject: Subject, run: Trained, wrong: Pictures) -> Floats:
    """How much of each canary's gradient is in the updates, [N], added up over rounds: a regression of each update on all gradients.

    Canaries look alike, so that a plain product finds in one what is the others' too; in a regression each answers for itself alone.
    AdamW divides each weight's gradient by its usual size, which is not sent but is about that of the canaries' own gradients.
    """
    scores = np.zeros(len(wrong))
    for before, after in zip(run.states[:-1], run.states[1:], strict=True):
        model = loaded(subject, before)
        slopes_NW = _slopes(subject, model, wrong)
        names = [name for name, each in model.named_parameters() if each.requires_grad]
        update_W = torch.cat([(after[name] - before[name]).flatten() for name in names])
        usual_W = slopes_NW.square().mean(dim=0).sqrt()
        usual_W = (usual_W + _FLOOR * usual_W.mean()).sqrt()
        slopes_NW /= usual_W
        products = (slopes_NW @ slopes_NW.T).double()
        ridge = _RIDGE * products.diagonal().mean().clamp(min=1e-30) * torch.eye(len(wrong), dtype=torch.float64)
        shares = -torch.linalg.solve(products + ridge, (slopes_NW @ (update_W * usual_W)).double())
        scores += (shares / shares.std().clamp(min=1e-30)).numpy()
    return scores


def _slopes(subject: Subject, model: nn.Module, data: Pictures) -> Tensor:
    """The gradient of each picture's loss by all trained weights, float32 [N, W]."""
    moving = [each for each in model.parameters() if each.requires_grad]
    found = torch.empty(len(data), sum(each.numel() for each in moving))
    for number in range(len(data)):
        slopes = torch.autograd.grad(subject.losses(model, data.part(number, number + 1)).sum(), moving)
        torch.cat([each.flatten() for each in slopes], out=found[number])
    return found


class _OneHot(nn.Module):
    """A layer whose gradient of unit i is a vector of its own: the i-th column's."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.line = nn.Linear(count, 1, bias=False)

    def forward(self, x_UM: Tensor) -> Tensor:
        """[U, M] to [U, 1]."""
        found: Tensor = self.line(x_UM)
        return found


def gradient_canaries(privacy: Privacy, mechanisms: Sequence[Mechanism], count: int, seed: int) -> Guesses:
    """Canaries that are gradients, at right angles to each other, through the engine's own DP-SGD: the worst that its bound allows.

    It tests sampling, clipping and noise as they are computed (Nasr et al. 2023, arXiv 2302.07956; one run, arXiv 2305.08846). The
    score is what all noised sums have in a canary's direction.
    """
    rng = np.random.default_rng(derive_seed(seed, "audit", "gradient coins"))
    inside = rng.random(count) < 0.5
    rows = np.flatnonzero(inside)
    protection = Protection(privacy, NoiseSource(derive_seed(seed, "audit", "gradient noise")))
    model = _OneHot(count)

    def costs_of(part: Rows) -> Tensor:
        return model(part["images"])  # type: ignore[no-any-return]  # a module's call has no type

    parts = PrivateBatches(model, costs_of, RUNTIME, protection, 1)
    scores = np.zeros(count)
    for mechanism in mechanisms:
        for chosen in protection.batches(rows, rows, mechanism):
            vectors = torch.zeros(len(chosen), count)
            vectors[torch.arange(len(chosen)), torch.from_numpy(chosen)] = _LOUD * privacy.clip
            model.zero_grad()
            parts.backward({"images": vectors}, torch.tensor(1.0))
            assert model.line.weight.grad is not None  # PrivateBatches has put the noised sum there
            scores += model.line.weight.grad[0].double().numpy()
    return Guesses(scores, inside, np.arange(count))


@dataclass(frozen=True)
class ShadowRun:
    """Guesses about the members of all models, by the likelihood ratio and by the loss alone, and what one training cost."""

    ratio: Guesses
    loss: Guesses
    mechanisms: list[Mechanism]


def shadow_run(subject: Subject, data: Pictures, models: int, rounds: int, privacy: Privacy | None) -> ShadowRun:
    """Every model in turn is the target, the others are its shadows: guesses by the likelihood ratio, and by the loss alone.

    The ratio is that of LiRA (Carlini et al. 2022, arXiv 2112.03570), online, with one deviation for all pictures, which is what few
    shadows allow; the loss alone is the attack of Yeom et al. 2018, arXiv 1709.01604. Every picture is in half of the models.
    """
    seed = subject.plan.seed
    rng = np.random.default_rng(derive_seed(seed, "audit", "shadows"))
    order = np.argsort(rng.random((models, len(data))), axis=0)
    inside_KN = order < models // 2
    logits = np.empty((models, len(data)))
    for number in range(models):
        chosen = Pictures(data.images[inside_KN[number]], data.labels[inside_KN[number]])
        run = train(subject, chosen, rounds, derive_seed(seed, "audit", "shadow", number), privacy)
        with torch.no_grad():
            logits[number] = subject.confidence(subject.losses(loaded(subject, run.states[-1]), data).numpy())
    index = np.tile(np.arange(len(data)), models)
    ratios = np.concatenate([_ratio(logits, inside_KN, target) for target in range(models)])
    members = inside_KN.reshape(-1)
    return ShadowRun(Guesses(ratios, members, index), Guesses(logits.reshape(-1), members, index), run.mechanisms)


def _ratio(logits_KN: Floats, inside_KN: Bools, target: int) -> Floats:
    """The log likelihood ratio of each picture's logit in the target, under the shadows' normal distributions with it and without."""
    others = np.delete(np.arange(len(logits_KN)), target)
    found = []
    for chosen in (inside_KN[others], ~inside_KN[others]):
        count = chosen.sum(axis=0)
        mean = np.where(chosen, logits_KN[others], 0).sum(axis=0) / count
        spread = np.where(chosen, (logits_KN[others] - mean) ** 2, 0).sum() / max(1, int((count - 1).sum()))
        deviation = math.sqrt(max(spread, 1e-12))
        found.append(-0.5 * ((logits_KN[target] - mean) / deviation) ** 2 - math.log(deviation))
    result: Floats = found[0] - found[1]
    return result
