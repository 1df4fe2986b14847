"""The end of a run: its models as folders, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cxrbase_model.export import export_classifier, export_encoder
from cxrbase_model.plan import FinetuneStage, PretrainStage, read_plan
from server.examples import Examples, looks, reconstructions
from server.report import write_report
from server.store import RunStore


def finish(folder: Path, examples: Examples | None = None) -> dict[str, Any]:
    """Export what the run has finished so far and write its report; returns the report's content.

    `examples` are public pictures, of which the report shows what the models make; they are kept as examples.npz, which is read where
    none are given.
    """
    kept = folder / "examples.npz"
    if examples is None:
        examples = Examples.kept(kept)
    else:
        examples.keep(kept)
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
    if examples is None:
        return write_report(folder)
    return write_report(
        folder,
        reconstructions(store, pretrained, examples.pictures) if pretrained else (),
        (detector, looks(store, detector, examples)) if detector else None,
    )


def _finished(store: RunStore, stages: list[str]) -> str | None:
    """The last of the stages whose final weights are there."""
    done = [name for name in stages if (store.folder / "stages" / f"{name}.safetensors").exists()]
    return done[-1] if done else None
