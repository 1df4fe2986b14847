"""Who is imaged and how: a phantom patient, the lesions a patient has, and the pose of one exposure.

A patient's anatomy follows from a few numbers and a seed and is the same in all pictures of the patient; the pose is
drawn for every picture. Sizes are in centimetres and roughly those of adults (heart and thorax: Danzer, Am J Med Sci
157, 1919, for the cardiothoracic ratio).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CARDIOMEGALY = "Cardiomegaly"
EFFUSION = "Pleural Effusion"
NODULE = "Nodule"
PNEUMOTHORAX = "Pneumothorax"
CONSOLIDATION = "Consolidation"
NO_FINDING = "No Finding"
FINDINGS = (NO_FINDING, CARDIOMEGALY, EFFUSION, NODULE, PNEUMOTHORAX, CONSOLIDATION)
PATHOLOGIES = FINDINGS[1:]

RIGHT, LEFT_SIDE = -1, 1


@dataclass(frozen=True)
class Patient:
    """The anatomy that stays the same from picture to picture; lengths in cm."""

    seed: int  # of the vessels, the texture and everything else that has no number of its own
    sex: str = "F"  # F or M
    age: int = 60  # years
    half_width: float = 13.2  # of the inner thorax
    lung_height: float = 23.0  # from the apex to the right dome, in full inspiration
    girth: float = 3.0  # soft tissue around the ribs
    heart_ratio: float = 0.45  # cardiothoracic ratio; above 0.5 is an enlarged heart
    aorta: float = 1.0  # relative size of the aortic knob, grows with age
    rib_spacing: float = 2.35
    rib_drop: float = 1.0  # relative steepness of the ribs
    bone: float = 1.0  # relative bone density, falls with age
    breast: float = 0.0  # 0 to 1.5
    scoliosis: float = 0.0  # sideways bend of the spine
    pacemaker: bool = False


@dataclass(frozen=True)
class Lesion:
    """One abnormality: which finding it shows, on which side, how large and where."""

    finding: str
    side: int  # RIGHT (-1) or LEFT_SIDE (1), the patient's
    size: float  # 0 (just visible) to 1 (large)
    across: float = 0.5  # place in the lung: 0 medial to 1 lateral
    down: float = 0.5  # place in the lung: 0 apex to 1 diaphragm
    seed: int = 0  # of its irregular outline


@dataclass(frozen=True)
class Pose:
    """How the patient stood or lay for one picture."""

    inspiration: float = 1.0  # relative lung height
    tilt: float = 0.0  # degrees in the plane of the picture
    turn: float = 0.0  # -1 to 1, rotation about the long axis: shifts the front against the spine
    shift: tuple[float, float] = (0.0, 0.0)  # cm, of the centre of the picture
    supine: bool = False  # lying, from the front (AP): larger heart, shallow breath, arms at the side, leads
    leads: int = 0  # electrodes on the chest


def draw_patient(rng: np.random.Generator, *, ages: tuple[int, int] = (20, 90), women: float = 0.5) -> Patient:
    """A patient of a random build; `ages` in years, `women` the share of women."""
    female = bool(rng.random() < women)
    low, high = ages
    age = int(np.clip(rng.triangular(low, low + 0.6 * (high - low), high + 1), low, high))
    size = (0.94 if female else 1.03) * rng.normal(1.0, 0.04)
    old = max(age - 50, 0) / 40
    return Patient(
        seed=int(rng.integers(2**31)),
        sex="F" if female else "M",
        age=age,
        half_width=float(13.4 * size * rng.normal(1.0, 0.03)),
        lung_height=float(22.5 * size * rng.normal(1.0, 0.05)),
        girth=float(np.clip(rng.gamma(4.0, 0.75), 1.4, 6.5)),
        heart_ratio=float(np.clip(rng.normal(0.435 + 0.012 * old, 0.022), 0.38, 0.485)),
        aorta=float(np.clip(rng.normal(0.95 + 0.3 * old, 0.1), 0.75, 1.5)),
        rib_spacing=float(2.35 * size * rng.normal(1.0, 0.03)),
        rib_drop=float(rng.normal(1.0, 0.1)),
        bone=float(np.clip(rng.normal(1.05 - 0.25 * old, 0.1), 0.6, 1.3)),
        breast=float(np.clip(rng.normal(0.75, 0.3), 0.2, 1.5)) if female else 0.0,
        scoliosis=float(rng.normal(0.0, 0.25 + 0.3 * old)),
        pacemaker=bool(age > 60 and rng.random() < 0.06),
    )


def draw_lesions(rng: np.random.Generator, findings: tuple[str, ...]) -> tuple[Lesion, ...]:
    """Lesions that show the given findings, of random side, size and place. Raises ValueError on an unknown finding."""
    lesions: list[Lesion] = []
    for finding in findings:
        if finding not in PATHOLOGIES:
            raise ValueError(f"finding {finding!r} is not drawn; expected one of {', '.join(PATHOLOGIES)}")
        sides: list[int] = [RIGHT if rng.random() < 0.55 else LEFT_SIDE]
        if finding == EFFUSION and rng.random() < 0.35:
            sides.append(-sides[0])
        if finding == NODULE:
            sides += [int(side) for side in rng.choice([RIGHT, LEFT_SIDE], size=rng.choice(3, p=[0.55, 0.3, 0.15]))]
        lesions += [_draw_lesion(rng, finding, side) for side in sides]
    return tuple(lesions)


def draw_pose(rng: np.random.Generator, *, supine: bool) -> Pose:
    """The pose of one exposure; lying patients are placed less well and breathe in less."""
    spread = 1.6 if supine else 1.0
    return Pose(
        inspiration=float(np.clip(rng.normal(0.93 if supine else 0.99, 0.03), 0.84, 1.05)),
        tilt=float(np.clip(rng.normal(0.0, 1.3 * spread), -4, 4)),
        turn=float(np.clip(rng.normal(0.0, 0.3 * spread), -1, 1)),
        shift=tuple(np.clip(rng.normal(0, 0.65 * spread, 2), -1.6, 1.6).tolist()),
        supine=supine,
        leads=int(rng.integers(0, 4)) if supine else 0,
    )


def _draw_lesion(rng: np.random.Generator, finding: str, side: int) -> Lesion:
    down = rng.uniform(0.2, 0.8)
    across = rng.uniform(0.6 if side == LEFT_SIDE and down > 0.5 else 0.3, 0.78)  # not behind the heart
    if finding == CONSOLIDATION:  # the lower lobes are the usual place
        across, down = rng.uniform(0.3, 0.7), rng.beta(2.6, 1.5) * 0.75 + 0.12
    return Lesion(finding, side, float(rng.beta(2.2, 1.3)), float(across), float(down), int(rng.integers(2**31)))
