"""What a server sees in one view, and what the attacks make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cxrbase_model.augment import augment, draw_augmentation, normalise
from cxrbase_model.dpsgd import PrivateBatches, Protection
from cxrbase_model.engine import Progress
from cxrbase_model.normals import NoiseSource
from cxrbase_model.optim import learning_rate, parameter_groups
from cxrbase_model.parallel import Rows
from cxrbase_model.privacy import Privacy
from cxrbase_model.seeds import derive_seed, generator
from cxrbase_model.state import State, load_state, state_of, subtract
from sim.audit.config import Inversion, View, privacy_of
from sim.audit.inversion import Attacker, Effort, Gradient, grey
from sim.audit.sample import Pictures
from sim.audit.similarity import Likeness, paired, psnr, ssim
from sim.audit.spans import by_spans
from sim.audit.subject import RUNTIME, Subject, with_positions
from sim.audit.training import loaded, train

_SMOOTH = (1e-3, 3e-2)  # weights of the total variation in matching: for exact gradients, and for noisy ones
_TOTAL = 1000  # steps of the stage in whose middle an update is seen


@dataclass(frozen=True)
class Seen:
    """What the server has of a view, and, for the auditor alone, what is behind it: the network's inputs, grey values [B, H, W], and the
    labels or masks.
    """

    gradient: Gradient
    truth: Tensor
    facts: Rows


@dataclass(frozen=True)
class Attempt:
    """What one attack recovered, in the order of the originals, [B, H, W]."""

    attack: str
    pictures: Tensor
    likeness: list[Likeness]

    @property
    def psnr(self) -> float:
        """The mean of the pictures', in dB."""
        return float(np.mean([each.psnr for each in self.likeness]))


@dataclass(frozen=True)
class Recovery:
    """The truth of a view, all attempts, best first, and which of the best's pictures point at the right one of all known pictures."""

    truth: Tensor
    attempts: list[Attempt]
    identified: list[bool]
    stranger: list[Likeness]  # of the mean of other pictures: what one gets without seeing anything


def warmed(subject: Subject, data: Pictures, settings: Inversion, positions: str) -> tuple[Subject, State]:
    """The subject with such positions, and a global model after a few rounds: the first has a head of zeros and gives nothing away."""
    subject = with_positions(subject, positions)
    seed = derive_seed(subject.plan.seed, "audit", "warm-up")
    return subject, train(subject, data, settings.warmup, seed).states[-1]


def recovery(subject: Subject, state: State, view: View, data: Pictures, known: Pictures, effort: Effort) -> Recovery:
    """Attack a view of the first pictures of `data`; `known` are others, among which the recovered one might be looked for."""
    model = loaded(subject, state)
    privacy = privacy_of(subject.plan, view.noise)
    see = _see_gradient if view.sees == "gradient" else _see_update
    seen = see(model, subject, view, data, privacy)
    attacker = _attacker(model, subject, view, data, seen)
    attempts = sorted(_attempts(attacker, view, seen, effort), key=lambda each: -each.psnr)
    others = torch.from_numpy(known.images).float() / 255
    mean = others.mean(dim=0)
    stranger = [Likeness(psnr(each, mean), ssim(each, mean)) for each in seen.truth]
    return Recovery(seen.truth, attempts, _identified(seen.truth, attempts[0].pictures, others), stranger)


def _attacker(model: nn.Module, subject: Subject, view: View, data: Pictures, seen: Seen) -> Attacker:
    """Who knows the masks, or draws some."""
    facts, sure = seen.facts, view.masks == "known"
    if not sure:
        facts = subject.facts(data.part(0, len(seen.truth)), generator(0, "audit", "guessed masks", view.name))
    return Attacker(model, subject, facts, derive_seed(0, "audit", "attacker", view.name), sure=sure)


def _attempts(attacker: Attacker, view: View, seen: Seen, effort: Effort) -> list[Attempt]:
    """Every attack that applies. The auditor takes the best by the truth, which is more than an attacker could."""
    attacks: dict[str, Callable[[], Tensor | None]] = {}
    if view.sees == "gradient":
        attacks["closed form"] = lambda: attacker.by_closed_form(seen.gradient)
        attacks["spans"] = lambda: by_spans(attacker, seen.gradient, effort)
        for smooth in _SMOOTH:
            attacks[f"matching, smoothing {smooth:g}"] = lambda smooth=smooth: attacker.by_matching(  # type: ignore[misc]
                seen.gradient, effort, smooth
            )
    else:
        for smooth in _SMOOTH:
            attacks[f"signs, smoothing {smooth:g}"] = lambda smooth=smooth: attacker.by_signs(  # type: ignore[misc]
                seen.gradient, effort, smooth
            )
    done: list[Attempt] = []
    for name, attack in attacks.items():
        if any(each.psnr > 40 for each in done):
            break  # nothing is left to find
        found = attack()
        if found is not None:
            done.append(Attempt(name, *paired(seen.truth, grey(found))))
    return done


def _see_gradient(model: nn.Module, subject: Subject, view: View, data: Pictures, privacy: Privacy | None) -> Seen:
    """The mean over the hospitals of the gradient of a step's loss, or of what DP-SGD makes of it."""
    seed, part = subject.plan.seed, data.part(0, view.pictures * view.hospitals)
    rows = subject.facts(part, generator(seed, "audit", "masks", view.name)) | {"images": torch.from_numpy(part.images)}
    total: dict[str, Tensor] = {}
    for hospital in range(view.hospitals):
        own = slice(hospital * view.pictures, (hospital + 1) * view.pictures)
        source = NoiseSource(derive_seed(seed, "audit", "view", view.name, hospital))
        protection = None if privacy is None else Protection(privacy, source)
        step = {name: tensor[own] for name, tensor in rows.items()}
        for name, slope in _gradient(model, subject, step, protection).items():
            total[name] = total.get(name, torch.zeros_like(slope)) + slope / view.hospitals
    truth = rows.pop("images").float() / 255
    return Seen(total, truth, rows)


def _gradient(model: nn.Module, subject: Subject, rows: Rows, protection: Protection | None) -> dict[str, Tensor]:
    model.zero_grad()

    def costs_of(rows: Rows) -> Tensor:
        return subject.costs(model, normalise(rows["images"]), rows)

    if protection is None:
        (costs_of(rows).sum() / subject.divisor(rows)).backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    else:
        PrivateBatches(model, costs_of, RUNTIME, protection, len(rows["images"])).backward(rows, torch.tensor(1.0))
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def _see_update(model: nn.Module, subject: Subject, view: View, data: Pictures, privacy: Privacy | None) -> Seen:
    """What the engine's update says of the gradient: the update over minus the rates it was made with, weight decay taken out."""
    seed, each = subject.plan.seed, view.pictures * view.steps
    before, truth, facts = state_of(model), list[Tensor](), list[Rows]()
    total = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    for hospital in range(view.hospitals):
        load_state(model, before)
        first = hospital * each
        steps = [np.arange(start, start + view.pictures) for start in range(first, first + each, view.pictures)]
        source = NoiseSource(derive_seed(seed, "audit", "view", view.name, hospital))
        protection = None if privacy is None else Protection(privacy, source)
        subject.trained(model, data, steps, Progress(_TOTAL // 2, _TOTAL), seed, None, protection)
        draws, masks = generator(seed, "augmentation"), generator(seed, "masks")  # as the engine has drawn
        for rows in steps:
            images = torch.from_numpy(data.images[rows])
            truth.append(augment(images, draw_augmentation(images.shape, subject.stage.augmentation, draws)))
            facts.append(subject.facts(Pictures(data.images[rows], data.labels[rows]), masks))
        update = subtract(state_of(model), before)
        total = {name: total[name] + update[name] for name in total}
    load_state(model, before)
    together = {name: torch.cat([one[name] for one in facts]) for name in facts[0]}
    return Seen(_undone(model, subject, view, total), grey(torch.cat(truth)), together)


def _undone(model: Any, subject: Subject, view: View, total: State) -> dict[str, Tensor]:
    """An update without learning rate and weight decay, which the plan tells."""
    settings, batch = subject.stage.optimizer, subject.stage.batch_size
    rate = sum(learning_rate(_TOTAL // 2 + step, _TOTAL, settings, batch) for step in range(view.steps))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in parameter_groups(model, settings.weight_decay, subject.layer_decay, len(model.encoder.blocks)):
        for parameter in group["params"]:
            name = names[id(parameter)]
            size = rate * group["scale"] * view.hospitals
            found[name] = -total[name] / size - group["weight_decay"] * parameter.detach()
    return found


def _identified(truth: Tensor, found: Tensor, others: Tensor) -> list[bool]:
    """Whether what was recovered is more like its original, by correlation, than like any other picture that is known."""
    candidates = torch.cat([truth, others]).flatten(1)
    candidates = candidates - candidates.mean(dim=1, keepdim=True)
    candidates = candidates / candidates.norm(dim=1, keepdim=True).clamp(min=1e-9)
    wanted = found.flatten(1) - found.flatten(1).mean(dim=1, keepdim=True)
    return [int((candidates @ each).argmax()) == number for number, each in enumerate(wanted)]
