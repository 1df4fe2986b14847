"""What makes simulated hospitals differ: scanner, patients, prevalence, label habits; and who was imaged when."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np

from sim.phantom_detector import Scanner
from sim.phantom_patient import (
    CARDIOMEGALY,
    CONSOLIDATION,
    EFFUSION,
    NODULE,
    PATHOLOGIES,
    PNEUMOTHORAX,
    Lesion,
    Patient,
    Pose,
    draw_lesions,
    draw_patient,
    draw_pose,
)

NAMES = (
    *("riverside", "lindenhof", "santa-clara", "northgate", "bergtal", "san-telmo", "oakwood", "auental"),
    *("miraflores", "harbour-view", "waldblick", "las-lomas", "stonebridge", "rosenau", "el-prado", "westmoor"),
)
MOST_HOSPITALS = len(NAMES)


@dataclass(frozen=True)
class Style:
    """One hospital's habits."""

    name: str
    encoding: str  # mono1, jpeg2000 or rle
    labels: str  # columns, list or letters: how its findings are written down
    modality: str
    maker: tuple[str, str]  # manufacturer and model, both invented
    scanner: Scanner
    ages: tuple[int, int]
    women: float
    supine: float  # share of pictures taken lying, from the front
    prevalence: dict[str, float]  # share of patients with each finding
    uncertain: float  # share of label cells that are uncertain
    missing: float  # share of label cells, and of whole rows, that are missing
    marker: str


@dataclass(frozen=True)
class Picture:
    """One frontal picture to be made: whose, when, how."""

    patient: Patient
    number: int  # of the patient in the hospital, from 1
    study: int  # of the patient, from 1
    instance: int  # of the study, from 1
    taken: date
    lesions: tuple[Lesion, ...]
    pose: Pose
    scanner: Scanner
    seed: int


_BASE = (
    Style(
        name="",
        encoding="mono1",
        labels="columns",
        modality="CR",
        maker=("Northlight Imaging", "PlateReader 12"),
        scanner=Scanner(768, 640, 39.5, gamma=1.15, contrast=0.95, detail=0.35, scatter=0.03, noise=0.014),
        ages=(22, 78),
        women=0.55,
        supine=0.1,
        prevalence={CARDIOMEGALY: 0.20, EFFUSION: 0.20, NODULE: 0.22, PNEUMOTHORAX: 0.17, CONSOLIDATION: 0.19},
        uncertain=0.05,
        missing=0.06,
        marker="L",
    ),
    Style(
        name="",
        encoding="jpeg2000",
        labels="list",
        modality="DX",
        maker=("Helvion", "ClearChest DX"),
        scanner=Scanner(656, 704, 37.0, gamma=0.9, contrast=1.15, detail=0.9, scatter=0.015, noise=0.007, shutter=0.5),
        ages=(45, 92),
        women=0.48,
        supine=0.55,
        prevalence={CARDIOMEGALY: 0.30, EFFUSION: 0.28, NODULE: 0.18, PNEUMOTHORAX: 0.17, CONSOLIDATION: 0.21},
        uncertain=0.06,
        missing=0.04,
        marker="L\nAP",
    ),
    Style(
        name="",
        encoding="rle",
        labels="letters",
        modality="DX",
        maker=("Auralux", "Portable 300"),
        scanner=Scanner(600, 512, 41.0, gamma=1.0, contrast=1.05, detail=0.6, scatter=0.04, noise=0.02),
        ages=(18, 70),
        women=0.42,
        supine=0.3,
        prevalence={CARDIOMEGALY: 0.17, EFFUSION: 0.22, NODULE: 0.17, PNEUMOTHORAX: 0.20, CONSOLIDATION: 0.27},
        uncertain=0.05,
        missing=0.08,
        marker="I",
    ),
)


def style_of(index: int, seed: int) -> Style:
    """The habits of hospital `index`, 0 to 15; three kinds take turns, later ones vary. Raises ValueError beyond."""
    if not 0 <= index < MOST_HOSPITALS:
        raise ValueError(f"hospital {index}: expected 0 to {MOST_HOSPITALS - 1}")
    base = replace(_BASE[index % len(_BASE)], name=NAMES[index])
    if index < len(_BASE):
        return base
    rng = np.random.default_rng((seed, 17, index))
    machine = replace(
        base.scanner,
        rows=base.scanner.rows + 16 * int(rng.integers(-4, 5)),
        field=base.scanner.field * float(rng.uniform(0.97, 1.03)),
        gamma=base.scanner.gamma * float(rng.uniform(0.85, 1.15)),
        contrast=base.scanner.contrast * float(rng.uniform(0.92, 1.08)),
        detail=base.scanner.detail * float(rng.uniform(0.6, 1.4)),
        noise=base.scanner.noise * float(rng.uniform(0.7, 1.4)),
    )
    shares = {finding: max(0.16, share * float(rng.uniform(0.8, 1.25))) for finding, share in base.prevalence.items()}
    return replace(base, scanner=machine, prevalence=shares, supine=float(rng.uniform(0.05, 0.6)))


def draw_census(style: Style, pictures: int, seed: int) -> list[Picture]:
    """Who is imaged when: 1 to 3 studies a patient, 1 to 3 frontal pictures a study, `pictures` in all.

    Findings belong to the patient and mostly stay from study to study; each finding has its quota of patients, so
    that a small hospital also has enough of each.
    """
    rng = np.random.default_rng((seed, 1))
    sizes = _studies(rng, pictures)
    has = _quotas(rng, style, [sum(one) for one in sizes])
    census: list[Picture] = []
    for number, studies in enumerate(sizes):
        patient = draw_patient(rng, ages=style.ages, women=style.women)
        findings = tuple(finding for finding in PATHOLOGIES if number in has[finding])
        lesions = draw_lesions(rng, findings)
        day = date(2014, 1, 1) + timedelta(days=int(rng.integers(0, 3000)))
        for study, count in enumerate(studies, 1):
            shown = tuple(_later(rng, lesion) for lesion in lesions)
            if study > 1 and shown and rng.random() < 0.15:  # one finding has healed
                healed = shown[int(rng.integers(len(shown)))].finding
                shown = tuple(lesion for lesion in shown if lesion.finding != healed)
            for instance in range(1, count + 1):
                pose = draw_pose(rng, supine=bool(rng.random() < style.supine))
                machine = _machine(rng, style, pose)
                noise_seed = int(rng.integers(2**31))
                census.append(Picture(patient, number + 1, study, instance, day, shown, pose, machine, noise_seed))
            day += timedelta(days=int(rng.integers(2, 200)))
    return census


def _studies(rng: np.random.Generator, pictures: int) -> list[list[int]]:
    """For each patient the number of pictures in each study, about 2.6 pictures a patient."""
    patients: list[list[int]] = []
    left = pictures
    while left > 0:
        studies: list[int] = []
        for count in rng.choice([1, 1, 2], size=int(rng.choice([1, 2, 3], p=[0.3, 0.4, 0.3]))).tolist():
            taken = min(count, left)
            left -= taken
            if taken:
                studies.append(taken)
        patients.append(studies)
    return patients


def _quotas(rng: np.random.Generator, style: Style, weights: list[int]) -> dict[str, set[int]]:
    """For each finding the patients who have it, until they hold the finding's share of the pictures."""
    total = sum(weights)
    chosen: dict[str, set[int]] = {}
    for finding, share in style.prevalence.items():
        chosen[finding], held = set(), 0
        for patient in rng.permutation(len(weights)).tolist():
            if held >= share * total:
                break
            chosen[finding].add(patient)
            held += weights[patient]
    return chosen


def _later(rng: np.random.Generator, lesion: Lesion) -> Lesion:
    """The same lesion at another study: a little larger or smaller."""
    return replace(lesion, size=float(np.clip(lesion.size + rng.normal(0, 0.08), 0, 1)))


def _machine(rng: np.random.Generator, style: Style, pose: Pose) -> Scanner:
    """The hospital's scanner as one technician set it for one picture."""
    letters = style.marker.replace("\nAP", "\nAP" if pose.supine else "")
    return replace(
        style.scanner,
        gamma=style.scanner.gamma * float(np.exp(rng.normal(0, 0.06))),
        contrast=style.scanner.contrast * float(np.exp(rng.normal(0, 0.04))),
        noise=style.scanner.noise * float(np.exp(rng.normal(0, 0.2))),
        field=style.scanner.field * float(np.exp(rng.normal(0, 0.02))),
        shutter=style.scanner.shutter * float(rng.random() < 0.4) + float(rng.uniform(0, 0.6) * (rng.random() < 0.25)),
        marker=letters if rng.random() < 0.8 else "",
    )
