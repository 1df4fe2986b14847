"""The audited training: the engine's, round by round, of pictures that are each of another patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cxrbase_model.dpsgd import Protection, mechanism_of
from cxrbase_model.engine import Progress
from cxrbase_model.normals import NoiseSource
from cxrbase_model.privacy import Mechanism, Privacy
from cxrbase_model.rows import batch_rows, steps_of
from cxrbase_model.seeds import derive_seed
from cxrbase_model.state import State, load_state, state_of
from sim.audit.sample import Pictures
from sim.audit.subject import Subject


@dataclass(frozen=True)
class Trained:
    """The weights before the first round and after each, and what each round cost under DP-SGD."""

    states: list[State]
    mechanisms: list[Mechanism]


def train(subject: Subject, data: Pictures, rounds: int, seed: int, privacy: Privacy | None = None) -> Trained:
    """Some rounds of a hospital that is alone with the server; the noise of DP-SGD is seeded, so that an audit repeats."""
    model, stage = subject.built(), subject.stage
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
        progress = Progress(number * steps, rounds * steps)
        result = subject.trained(model, data, order, progress, drawn, moments, protection)
        moments = result.moments or None
        states.append(state_of(model))
    return Trained(states, mechanisms)


def loaded(subject: Subject, state: State) -> Any:
    """A model with these weights."""
    model = subject.built()
    load_state(model, state)
    return model
