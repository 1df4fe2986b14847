"""What a server sees in one view, and what the attacks make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cxrbase_model.augment import augment, draw_augmentation, normalise
from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.dpsgd import PrivateBatches, Protection
from cxrbase_model.engine import Progress, finetune
from cxrbase_model.losses import classification_costs, known_labels
from cxrbase_model.normals import NoiseSource
from cxrbase_model.optim import learning_rate, parameter_groups
from cxrbase_model.parallel import Rows
from cxrbase_model.plan import FinetuneStage, Plan
from cxrbase_model.privacy import Privacy
from cxrbase_model.seeds import derive_seed, generator
from cxrbase_model.state import State, load_state, state_of, subtract
from sim.audit.config import Inversion, View, privacy_of
from sim.audit.inversion import Attacker, Effort, Gradient, grey
from sim.audit.pictures import Pictures
from sim.audit.similarity import Likeness, paired, psnr, ssim
from sim.audit.spans import by_spans
from sim.audit.training import RUNTIME, train

_SMOOTH = (1e-3, 3e-2)  # weights of the total variation in matching: for exact gradients, and for noisy ones
_TOTAL = 1000  # steps of the stage in whose middle an update is seen


@dataclass(frozen=True)
class Seen:
    """What the server has of a view, and, for the auditor alone, the network's inputs behind it, grey values [B, H, W]."""

    gradient: Gradient
    truth: Tensor
    targets: Tensor


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


def warmed(plan: Plan, stage: FinetuneStage, data: Pictures, settings: Inversion, positions: str) -> tuple[Plan, State]:
    """The plan with such positions, and a global model after a few rounds: the first has a head of zeros and gives nothing away."""
    plan = dataclasses.replace(plan, model=dataclasses.replace(plan.model, positions=positions))
    return plan, train(plan, stage, data, settings.warmup, derive_seed(plan.seed, "audit", "warm-up")).states[-1]


def recovery(
    plan: Plan, stage: FinetuneStage, state: State, view: View, data: Pictures, known: Pictures, effort: Effort
) -> Recovery:
    """Attack a view of the first pictures of `data`; `known` are others, among which the recovered one might be looked for."""
    model = build_classifier(plan, stage)
    load_state(model, state)
    privacy = privacy_of(plan, view.noise)
    see = _see_gradient if view.sees == "gradient" else _see_update
    seen = see(model, stage, view, data, privacy, plan.seed)
    attempts = sorted(_attempts(model, stage, view, seen, effort), key=lambda each: -each.psnr)
    others = torch.from_numpy(known.images).float() / 255
    mean = others.mean(dim=0)
    stranger = [Likeness(psnr(each, mean), ssim(each, mean)) for each in seen.truth]
    return Recovery(seen.truth, attempts, _identified(seen.truth, attempts[0].pictures, others), stranger)


def _attempts(model: Classifier, stage: FinetuneStage, view: View, seen: Seen, effort: Effort) -> list[Attempt]:
    """Every attack that applies. The auditor takes the best by the truth, which is more than an attacker could."""
    attacker = Attacker(model, stage, seen.targets, derive_seed(0, "audit", "attacker", view.name))
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


def _see_gradient(
    model: Classifier, stage: FinetuneStage, view: View, data: Pictures, privacy: Privacy | None, seed: int
) -> Seen:
    """The mean over the hospitals of the gradient of a step's loss, or of what DP-SGD makes of it."""
    count = view.pictures * view.hospitals
    images, targets = torch.from_numpy(data.images[:count]), torch.from_numpy(data.labels[:count])
    total: dict[str, Tensor] = {}
    for hospital in range(view.hospitals):
        rows = slice(hospital * view.pictures, (hospital + 1) * view.pictures)
        source = NoiseSource(derive_seed(seed, "audit", "view", view.name, hospital))
        protection = None if privacy is None else Protection(privacy, source)
        for name, part in _gradient(model, stage, images[rows], targets[rows], protection).items():
            total[name] = total.get(name, torch.zeros_like(part)) + part / view.hospitals
    return Seen(total, images.float() / 255, targets)


def _gradient(
    model: Classifier, stage: FinetuneStage, images: Tensor, targets: Tensor, protection: Protection | None
) -> dict[str, Tensor]:
    model.zero_grad()

    def costs_of(rows: Rows) -> Tensor:
        return classification_costs(model(normalise(rows["images"])), rows["targets"], None, stage.loss)

    rows = {"images": images, "targets": targets}
    if protection is None:
        (costs_of(rows).sum() / known_labels(targets)).backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    else:
        PrivateBatches(model, costs_of, RUNTIME, protection, len(images)).backward(rows, torch.tensor(1.0))
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def _see_update(
    model: Classifier, stage: FinetuneStage, view: View, data: Pictures, privacy: Privacy | None, seed: int
) -> Seen:
    """What the engine's update says of the gradient: the update over minus the rates it was made with, weight decay taken out."""
    each = view.pictures * view.steps
    images, targets = (torch.from_numpy(part[: each * view.hospitals]) for part in (data.images, data.labels))
    before, truth = state_of(model), []
    total = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    for hospital in range(view.hospitals):
        load_state(model, before)
        rows = slice(hospital * each, (hospital + 1) * each)
        parts = [slice(start, start + view.pictures) for start in range(rows.start, rows.stop, view.pictures)]
        steps = [(images[part], targets[part]) for part in parts]
        source = NoiseSource(derive_seed(seed, "audit", "view", view.name, hospital))
        finetune(
            model, steps, stage, torch.ones(targets.shape[1]), Progress(_TOTAL // 2, _TOTAL), seed, RUNTIME,
            protection=None if privacy is None else Protection(privacy, source),
        )  # fmt: skip
        draws = generator(seed, "augmentation")  # as the engine has drawn
        truth += [augment(part, draw_augmentation(part.shape, stage.augmentation, draws)) for part, _ in steps]
        update = subtract(state_of(model), before)
        total = {name: total[name] + update[name] for name in total}
    load_state(model, before)
    return Seen(_undone(model, stage, view, total), grey(torch.cat(truth)), targets)


def _undone(model: Classifier, stage: FinetuneStage, view: View, total: State) -> dict[str, Tensor]:
    """An update without learning rate and weight decay, which the plan tells."""
    settings = stage.optimizer
    rate = sum(learning_rate(_TOTAL // 2 + step, _TOTAL, settings, stage.batch_size) for step in range(view.steps))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in parameter_groups(model, settings.weight_decay, stage.layer_decay, len(model.encoder.blocks)):
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
