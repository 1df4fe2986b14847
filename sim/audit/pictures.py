"""The pictures that are audited: phantoms drawn for it, or one picture of each patient of folders of real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cxrbase_model.plan import DataSpec, Plan
from cxrbase_model.seeds import derive_seed
from cxrbase_model.settings import SettingsError
from sim.audit.config import AuditConfig, PhantomPictures
from sim.audit.sample import Pictures
from sim.config import SimConfig
from sim.phantom import draw_lesions, draw_patient, draw_pose, findings_of, radiograph
from sim.phantom_detector import Scanner
from sim.phantom_patient import FINDINGS, NO_FINDING
from sim.pool import Pool
from sim.prepare import Progress, prepare

_DETECTOR = 160  # pixels of a phantom's side before it is made small


def pictures(config: AuditConfig, plan: Plan, data: Path | None, out: Path, progress: Progress) -> Pictures:
    """As many pictures as the audit needs; SettingsError where `data` has fewer patients with a known label."""
    if isinstance(config.hospitals, PhantomPictures):
        return phantoms(
            plan.data, config.pictures, config.hospitals.seed, lambda done, total: progress("phantoms", done, total)
        )
    if data is None:
        raise SettingsError(
            "--data: is required where hospitals.kind is folders (folder with a sub-folder for each hospital)"
        )
    pool = Pool(
        prepare(SimConfig(plan=config.plan, hospitals=config.hospitals), plan, data, out / "pictures", progress)
    )
    known = np.flatnonzero(np.isfinite(pool.labels).any(axis=1))
    _, first = np.unique(pool.patients[known], return_index=True)
    rows = np.random.default_rng(derive_seed(plan.seed, "audit", "pictures")).permutation(known[first])
    if len(rows) < config.pictures:
        raise SettingsError(f"{data}: expected at least {config.pictures} labelled patients, found {len(rows)}")
    rows = rows[: config.pictures]
    return Pictures(pool.pictures[rows], pool.labels[rows])


def phantoms(spec: DataSpec, count: int, seed: int, progress: Callable[[int, int], None]) -> Pictures:
    """Made-up radiographs, a third of them without a finding; labels of findings that the phantoms do not have are unknown."""
    images = np.empty((count, spec.image_size, spec.image_size), np.uint8)
    labels = np.full((count, len(spec.findings)), np.nan, np.float32)
    for number in range(count):
        rng = np.random.default_rng(derive_seed(seed, "audit", "phantom", number))
        patient = draw_patient(rng)
        sick = () if rng.random() < 1 / 3 else (str(rng.choice([each for each in FINDINGS if each != NO_FINDING])),)
        lesions = draw_lesions(rng, sick)
        side = max(_DETECTOR, spec.image_size)
        picture = radiograph(patient, lesions, draw_pose(rng, supine=False), Scanner(side, side, 39.0), rng)
        small = Image.fromarray(picture).resize((spec.image_size, spec.image_size), Image.Resampling.BOX)
        images[number] = (np.asarray(small, np.float32).clip(0, 1) * 255).round()
        shown = findings_of(lesions)
        for column, finding in enumerate(spec.findings):
            if finding in FINDINGS:
                labels[number, column] = finding in shown
        progress(number + 1, count)
    return Pictures(images, labels)
