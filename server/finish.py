"""The end of a run: its models as folders, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cxrbase_model.export import export_classifier, export_encoder
from cxrbase_model.mae import build_autoencoder
from cxrbase_model.plan import FinetuneStage, Plan, PretrainStage, read_plan
from cxrbase_model.predict import reconstruct
from cxrbase_model.state import load_state
from server.page import Triple
from server.report import write_report
from server.store import RunStore


def finish(folder: Path, pictures: NDArray[np.uint8] | None = None) -> dict[str, Any]:
    """Export what the run has finished so far and write its report; returns the report's content.

    `pictures` are public pictures, uint8 [N, S, S], on which the report shows what the autoencoder makes of them; they are
    kept as examples.npy, which is read where none are given.
    """
    kept = folder / "examples.npy"
    if pictures is not None:
        np.save(kept, pictures)
    elif kept.exists():
        pictures = np.load(kept)
    store = RunStore(folder, read_plan(folder / "plan.yaml"))
    pretrained = _finished(store, [stage.name for stage in store.plan.stages if isinstance(stage, PretrainStage)])
    tuned = [stage for stage in store.plan.stages if isinstance(stage, FinetuneStage)]
    whole = [stage.name for stage in tuned if stage.label_fraction == max(other.label_fraction for other in tuned)]
    detector = _finished(store, whole)
    if pretrained or detector:
        export_encoder(store.stage_state(pretrained or detector or ""), store.plan, folder / "export" / "encoder")
    if detector:
        stage = next(each for each in tuned if each.name == detector)
        export_classifier(store.stage_state(detector), store.plan, stage, folder / "export" / "classifier")
    return write_report(folder, _reconstructions(store, pretrained, pictures))


def _finished(store: RunStore, stages: list[str]) -> str | None:
    """The last of the stages whose final weights are there."""
    done = [name for name in stages if (store.folder / "stages" / f"{name}.safetensors").exists()]
    return done[-1] if done else None


def _reconstructions(store: RunStore, stage_name: str | None, pictures: NDArray[np.uint8] | None) -> list[Triple]:
    """Each picture, what the encoder sees of it, and what the autoencoder makes of that."""
    if stage_name is None or pictures is None:
        return []
    plan: Plan = store.plan
    stage = plan.stage(stage_name)
    assert isinstance(stage, PretrainStage)  # the caller names a pretraining stage
    if stage.objective != "mae":  # predicts features, which are no picture
        return []
    model = build_autoencoder(plan)
    load_state(model, store.stage_state(stage_name))
    masked, complete = reconstruct(model, torch.from_numpy(pictures), stage, plan.seed)
    return list(zip(pictures, masked.numpy(), complete.numpy(), strict=True))
