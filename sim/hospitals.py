"""Simulated hospitals: each a folder with a DICOM archive, a label CSV and a SITE.yaml, as a real one would have.

    OUT/riverside/SITE.yaml  labels.csv  dicom/...

The archives are real DICOM files that differ as hospitals differ (see `hospitals_style`) and hold what real archives
hold besides frontal chest pictures: a truncated file, a copy, lateral views, CT slices, a text file. The same seed
writes the same bytes, on any number of processor cores.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.hospitals_dicom import accession, ct_file, radiograph_file
from sim.hospitals_labels import label_file, label_section, site_yaml
from sim.hospitals_style import MOST_HOSPITALS, Picture, Style, draw_census, style_of
from sim.phantom import radiograph
from sim.phantom_dirt import ct_slice, lateral

Progress = Callable[[str, int, int], None]

SERIAL_BELOW = 60  # pictures; starting worker processes takes longer than drawing these
NOTE = "Archive export of {name}. Questions: picture archive team, extension 4711. Contains phantoms only.\n"


@dataclass(frozen=True)
class Job:
    """One file to write: the picture and how it is made into bytes."""

    path: Path
    style: Style
    picture: Picture
    seed: int
    kind: str = "frontal"  # frontal, lateral, ct or truncated


def write_hospitals(
    out: Path, hospitals: int = 3, pictures: int = 320, seed: int = 0, progress: Progress | None = None
) -> list[Path]:
    """Write `hospitals` archives of `pictures` frontal radiographs each below `out`; returns each SITE.yaml's path.

    `progress(site, done, total)` is called after each file. Raises ValueError when a number is out of range and
    FileExistsError when a hospital's folder exists already, since mixing two archives would leave neither.
    """
    if not 1 <= hospitals <= MOST_HOSPITALS:
        raise ValueError(f"hospitals: expected 1 to {MOST_HOSPITALS}, found {hospitals}")
    if pictures < 1:
        raise ValueError(f"pictures: expected at least 1, found {pictures}")
    styles = [style_of(index, seed) for index in range(hospitals)]
    seeds = [hospital_seed(seed, index) for index in range(hospitals)]
    for style in styles:
        if (out / style.name).exists():
            raise FileExistsError(f"{out / style.name}: exists already; choose another folder or remove it first")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    plans = list(zip(styles, seeds, strict=True))
    if hospitals * pictures < SERIAL_BELOW or cores == 1:
        return [_write_hospital(out, style, pictures, own, progress, None) for style, own in plans]
    with ProcessPoolExecutor(min(cores, 16), mp_context=multiprocessing.get_context("spawn")) as pool:
        return [_write_hospital(out, style, pictures, own, progress, pool) for style, own in plans]


def write_job(job: Job) -> None:
    """Draw one picture and write its file; a pure function of the job."""
    rng = np.random.default_rng((job.picture.seed, 4))
    if job.kind == "ct":
        content = ct_file(job.style, job.picture, ct_slice(job.picture.patient, 256, rng), job.seed)
    elif job.kind == "lateral":
        image = lateral(job.picture.patient, job.picture.scanner, rng)
        content = radiograph_file(job.style, job.picture, image, job.seed, "lateral")
    else:
        image = radiograph(job.picture.patient, job.picture.lesions, job.picture.pose, job.picture.scanner, rng)
        content = radiograph_file(job.style, job.picture, image, job.seed, job.kind)
    job.path.parent.mkdir(parents=True, exist_ok=True)
    job.path.write_bytes(content[: len(content) * 3 // 5] if job.kind == "truncated" else content)


def hospital_seed(seed: int, index: int) -> int:
    """The seed of hospital `index` in a run of seed `seed`."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])


def _write_hospital(
    out: Path, style: Style, pictures: int, seed: int, progress: Progress | None, pool: ProcessPoolExecutor | None
) -> Path:
    folder = out / style.name
    census = draw_census(style, pictures, seed)
    jobs = list(_jobs(folder / "dicom", style, census, seed))
    done = map(write_job, jobs) if pool is None else pool.map(write_job, jobs, chunksize=8)
    for count, _ in enumerate(done, 1):
        if progress:
            progress(style.name, count, len(jobs))
    copied = next(job for job in jobs if job.kind == "frontal")
    copy = folder / "dicom" / "export" / ("copy_of_" + copied.path.name)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(copied.path.read_bytes())
    (folder / "dicom" / "README.txt").write_text(NOTE.format(name=style.name), encoding="utf-8")
    (folder / "labels.csv").write_text(label_file(style, census, seed), encoding="utf-8")
    site = folder / "SITE.yaml"
    site.write_text(site_yaml(style, label_section(style)), encoding="utf-8")
    return site


def _jobs(root: Path, style: Style, census: list[Picture], seed: int) -> Iterator[Job]:
    """Every DICOM file of an archive; the dirt belongs to patients spread over the census."""
    for picture in census:
        yield Job(root / _place(style, picture, seed, "I"), style, picture, seed)
    dirt = {"truncated": 1, "lateral": 2 + len(census) // 100, "ct": 2}
    step = max(len(census) // sum(dirt.values()), 1)
    chosen = iter(census[::step] * sum(dirt.values()))
    for kind, count in dirt.items():
        for _ in range(count if len(census) > 20 else 1):
            picture = next(chosen)
            yield Job(root / _place(style, picture, seed, kind[0].upper()), style, picture, seed, kind)


def _place(style: Style, picture: Picture, seed: int, letter: str) -> str:
    """Where the hospital's archive keeps a file: three habits, one without file extensions."""
    image = f"{letter}{picture.instance:06d}"
    if style.encoding == "mono1":
        return f"P{picture.number:06d}/S{picture.study:04d}/{image}"
    if style.encoding == "jpeg2000":
        return f"{picture.taken:%Y/%m}/{accession(style, picture, seed)}/{image}.dcm"
    name = f"{accession(style, picture, seed)}_{image}"
    return f"{picture.number % 8:02d}/{name}{'' if picture.number % 5 == 0 else '.DCM'}"
