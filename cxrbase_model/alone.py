"""A whole plan on one table of pictures, without any hospital: what a researcher trains, and what a federation is compared with.

A stage takes as many passes over the pictures as its rounds would have taken in a hospital that had them all. What is finished is
kept, and training that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxrbase_model.ahead import read_ahead
from cxrbase_model.checkpoint import LocalCheckpoint
from cxrbase_model.classifier import Classifier
from cxrbase_model.codec import pack, unpack
from cxrbase_model.composition import epsilon
from cxrbase_model.dpsgd import mechanism_of, protect
from cxrbase_model.engine import LocalResult, Progress, Runtime, finetune, pretrain
from cxrbase_model.export import export_classifier, export_encoder
from cxrbase_model.files import write_private
from cxrbase_model.initial import build_model, initial_state
from cxrbase_model.losses import positive_weights
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.metrics import evaluate_scores
from cxrbase_model.normals import NoiseSource
from cxrbase_model.parallel import World
from cxrbase_model.plan import EvaluateStage, FinetuneStage, Plan, PretrainStage, Privacy, balance_of, timeline
from cxrbase_model.predict import predict
from cxrbase_model.privacy import Mechanism
from cxrbase_model.rows import finding_chances, labelled, labelled_share, steps_of, training_rows
from cxrbase_model.seeds import derive_seed
from cxrbase_model.settings import SettingsError
from cxrbase_model.state import State, load_state, state_of

_SPLITS = ("test", "validation", "train")  # as the draw of a patient rises
_PREDICT_BATCH = 64
DELTA = 1e-5  # of the epsilon that is told


class Arrays:
    """A folder of pictures.npy (uint8 [N, S, S], mapped into memory), labels.npy (float32 [N, C], NaN where unknown) and
    patients.npy (int64 [N]), each row a picture; SettingsError where they are not of the plan's shape.

    Patients are split by the plan's shares and seed.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.pictures = _load(folder / "pictures.npy", np.uint8, (plan.data.image_size, plan.data.image_size))
        self.labels: NDArray[np.float32] = np.array(
            _load(folder / "labels.npy", np.float32, (len(plan.data.findings),))
        )
        self.patients: NDArray[np.int64] = np.array(_load(folder / "patients.npy", np.int64, ()))
        if not len(self.pictures) == len(self.labels) == len(self.patients) > 0:
            raise SettingsError(f"{folder}: expected as many pictures as labels and patients, and at least one")
        unique, place = np.unique(self.patients, return_inverse=True)
        draws = [derive_seed(plan.seed, "split", int(patient)) / 2**63 for patient in unique]
        self._split = np.digitize(draws, [plan.data.test, plan.data.test + plan.data.validation])[place]

    def rows(self, split: str) -> NDArray[np.int64]:
        """The rows of train, validation or test, ascending."""
        return np.flatnonzero(self._split == _SPLITS.index(split))

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Pictures [B, S, S] and labels [B, C] of some rows."""
        return torch.from_numpy(np.array(self.pictures[rows])), torch.from_numpy(self.labels[rows])


def train_plan(plan: Plan, arrays: Arrays, out: Path, runtime: Runtime) -> Iterator[str]:
    """Train and evaluate a plan's stages in order; gives a line about each. Leaves below `out` each stage's weights
    (stages/NAME.safetensors), each evaluation (evaluations/MODEL.json) and the last encoder and classifier as exports.

    SettingsError where `out` has stages of another plan; stages may be added at its end. InitError where a stage's `init` cannot be had, TrainingDiverged where a loss is not finite.
    """
    spent: list[Mechanism] = []
    for item in timeline(plan):
        if isinstance(item.stage, EvaluateStage):
            yield _evaluate(plan, item.stage, item.model_of, arrays, out, runtime)
        elif item.stage_round == 1:
            yield _train(plan, item.stage, arrays, out, runtime)
            if plan.privacy is not None:
                spent.append(_mechanism(plan, plan.privacy, item.stage, arrays))
    if plan.privacy is not None:
        yield f"privacy: epsilon {epsilon(spent, plan.privacy.unit, DELTA):.3g} at delta {DELTA:g} for each {plan.privacy.unit}, noise from a secure source"


def _train(plan: Plan, stage: PretrainStage | FinetuneStage, arrays: Arrays, out: Path, runtime: Runtime) -> str:
    upto = replace(plan, stages=plan.stages[: plan.stages.index(stage) + 1]).digest
    if _is_finished(out, stage.name, upto):
        return f"{stage.name}: finished before"
    model = build_model(plan, stage)
    load_state(model, initial_state(plan, stage, lambda name: _finished(out, name)))
    result = _fit(plan, stage, model, arrays, LocalCheckpoint(out / "interrupted.safetensors"), runtime)
    if World.current().rank == 0:
        state = state_of(model)
        export_encoder(state, plan, out / "encoder")
        if isinstance(stage, FinetuneStage):
            export_classifier(state, plan, stage, out / "classifier")
        _write(_plan(out, stage.name), upto.encode())
        _write(_weights(out, stage.name), pack(state))
    World.current().wait()  # the next stage may start from these
    loss = "not told under privacy" if plan.privacy is not None else f"{result.loss:.4g}"
    return f"{stage.name}: {result.steps} steps, {result.examples / result.seconds:.1f} pictures a second, loss {loss}"


def _fit(
    plan: Plan, stage: PretrainStage | FinetuneStage, model: MaskedAutoencoder | Classifier, arrays: Arrays,
    checkpoint: LocalCheckpoint, runtime: Runtime,
) -> LocalResult:  # fmt: skip
    """One call of the engine, over the passes of all rounds."""
    rows, seed = _rows(plan, stage, arrays), derive_seed(plan.seed, "alone", stage.name)
    epochs = stage.rounds * stage.local_epochs
    if len(rows) == 0:
        raise SettingsError(f"stage {stage.name}: there is no picture to learn from")
    protection = protect(plan.privacy, NoiseSource() if plan.privacy is not None else None)
    if protection is None:
        steps = steps_of(len(rows), stage.batch_size, epochs)
        chosen = training_rows(arrays, rows, stage.batch_size, seed, epochs, balance_of(stage))
    else:
        mechanism = _mechanism(plan, protection.privacy, stage, arrays)
        steps, chosen = mechanism.steps, protection.batches(rows, arrays.patients[rows], mechanism)
    readers = (
        runtime.readers if protection is None else 0
    )  # who is in a step is drawn from the noise's source, in its turn
    batches, progress = read_ahead(arrays.batch, chosen, readers), Progress(0, steps)
    if isinstance(stage, FinetuneStage) and isinstance(model, Classifier):
        labels = arrays.labels[rows]
        chances = None if stage.balance == "none" else finding_chances(labels)
        weights = positive_weights(labels, stage.positive_weight, chances)  # ones under privacy: the plan is checked
        return finetune(
            model, batches, stage, weights, progress, seed, runtime, checkpoint=checkpoint, protection=protection
        )
    assert isinstance(stage, PretrainStage)  # the model is the stage's
    assert isinstance(model, MaskedAutoencoder)
    pictures = (images for images, _ in batches)
    return pretrain(model, pictures, stage, progress, seed, runtime, checkpoint=checkpoint, protection=protection)


def _rows(plan: Plan, stage: PretrainStage | FinetuneStage, arrays: Arrays) -> NDArray[np.int64]:
    """What a stage learns from."""
    rows = arrays.rows("train")
    if isinstance(stage, FinetuneStage):
        return labelled_share(arrays, rows, stage.label_fraction, derive_seed(plan.seed, "label-share"))
    return rows


def _mechanism(plan: Plan, privacy: Privacy, stage: PretrainStage | FinetuneStage, arrays: Arrays) -> Mechanism:
    """What a stage costs."""
    patients = arrays.patients[_rows(plan, stage, arrays)]
    return mechanism_of(privacy, patients, stage.batch_size, stage.rounds * stage.local_epochs)


def _evaluate(plan: Plan, stage: EvaluateStage, name: str, arrays: Arrays, out: Path, runtime: Runtime) -> str:
    model_stage, rows = plan.stage(name), labelled(arrays, arrays.rows(stage.split))
    assert isinstance(model_stage, FinetuneStage)  # the plan has been checked
    if len(rows) == 0:
        return f"{stage.name}: {name}: no labelled picture in the {stage.split} split"
    model = build_model(plan, model_stage)
    assert isinstance(model, Classifier)
    load_state(model, _finished(out, name))
    parts = np.array_split(rows, -(-len(rows) // _PREDICT_BATCH))
    scores = predict(model, (arrays.batch(part)[0] for part in parts), runtime).numpy()
    found = evaluate_scores(
        scores, arrays.labels[rows], arrays.patients[rows], plan.data.findings,
        seed=derive_seed(plan.seed, "bootstrap"), minimum_cell=1,
    )  # fmt: skip
    if World.current().rank == 0:
        _write(out / "evaluations" / f"{name}.json", json.dumps(found, indent=2).encode())
    return f"{stage.name}: {name}: {_auroc_text(found)} on {len(rows)} pictures"


def _auroc_text(found: dict[str, Any]) -> str:
    mean = found["mean_auroc"]
    if mean is None:
        return "no finding has both classes"
    return f"AUROC {mean['value']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})"


def _weights(out: Path, name: str) -> Path:
    return out / "stages" / f"{name}.safetensors"


def _plan(out: Path, name: str) -> Path:
    """Where the digest of the plan is kept, up to the stage, that its weights are of."""
    return out / "stages" / f"{name}.plan"


def _is_finished(out: Path, name: str, upto: str) -> bool:
    """Whether the stage has been trained; SettingsError where that was by another plan, or from other stages before it."""
    path = _weights(out, name)
    if path.exists() and _plan(out, name).exists() and _plan(out, name).read_text() != upto:
        raise SettingsError(f"{path}: was trained by another plan; name another folder by --out, or remove it")
    return path.exists()


def _finished(out: Path, name: str) -> State:
    return unpack(_weights(out, name).read_bytes())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, data)


def _load(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        raise SettingsError(f"{path}: expected an array that numpy.save wrote") from None
    if array.dtype != dtype or array.shape[1:] != shape or array.ndim == 0:
        wanted = ", ".join(["N", *(str(side) for side in shape)])
        raise SettingsError(f"{path}: expected {np.dtype(dtype)} [{wanted}], found {array.dtype} {list(array.shape)}")
    return array  # type: ignore[no-any-return]  # numpy's load has no type
