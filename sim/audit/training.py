"""The audited training: the engine's fine-tuning, round by round, of pictures that are each of another patient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cxrbase_model.augment import normalise
from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.dpsgd import Protection, mechanism_of
from cxrbase_model.engine import Progress, finetune
from cxrbase_model.losses import classification_costs
from cxrbase_model.normals import NoiseSource
from cxrbase_model.plan import FinetuneStage, Plan
from cxrbase_model.privacy import Mechanism, Privacy
from cxrbase_model.rows import batch_rows, steps_of
from cxrbase_model.runtime import Runtime
from cxrbase_model.seeds import derive_seed
from cxrbase_model.state import State, load_state, state_of
from sim.audit.pictures import Pictures

RUNTIME = Runtime(torch.device("cpu"))


@dataclass(frozen=True)
class Trained:
    """The weights before the first round and after each, and what each round cost under DP-SGD."""

    states: list[State]
    mechanisms: list[Mechanism]


def train(
    plan: Plan, stage: FinetuneStage, data: Pictures, rounds: int, seed: int, privacy: Privacy | None = None
) -> Trained:
    """Some rounds of a hospital that is alone with the server; the noise of DP-SGD is seeded, so that an audit repeats."""
    model = build_classifier(plan, stage)
    states, mechanisms, moments = [state_of(model)], [], None
    rows = np.arange(len(data))
    mechanism = None if privacy is None else mechanism_of(privacy, rows, stage.batch_size, stage.local_epochs)
    steps = steps_of(len(rows), stage.batch_size, stage.local_epochs) if mechanism is None else mechanism.steps
    for number in range(rounds):
        drawn = derive_seed(seed, "audit", "train", number)
        protection = None
        if privacy is not None and mechanism is not None:
            protection = Protection(privacy, NoiseSource(derive_seed(seed, "audit", "noise", number)))
            order = protection.batches(rows, rows, mechanism)
            mechanisms.append(mechanism)
        else:
            order = batch_rows(rows, stage.batch_size, drawn, stage.local_epochs)
        result = finetune(
            model, _batches(data, order), stage, torch.ones(len(plan.data.findings)),
            Progress(number * steps, rounds * steps), drawn, RUNTIME, moments, None, protection,
        )  # fmt: skip
        moments = result.moments or None
        states.append(state_of(model))
    return Trained(states, mechanisms)


def losses(model: Classifier, data: Pictures, stage: FinetuneStage) -> torch.Tensor:
    """The mean cost of each picture's known labels, float64 [N], with its graph where one is kept."""
    targets = torch.from_numpy(data.labels)
    costs = classification_costs(model(normalise(torch.from_numpy(data.images))), targets, None, stage.loss)
    return costs.double().sum(dim=1) / torch.isfinite(targets).sum(dim=1).clamp(min=1)


def loaded(plan: Plan, stage: FinetuneStage, state: State) -> Classifier:
    """A model with these weights."""
    model = build_classifier(plan, stage)
    load_state(model, state)
    return model


def _batches(data: Pictures, order: Iterator[NDArray[np.int64]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for rows in order:
        yield torch.from_numpy(data.images[rows]), torch.from_numpy(data.labels[rows])
