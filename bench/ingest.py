"""Pictures a second that an ingest prepares, per transfer syntax, against the loop that everybody writes first."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless

from bench.timing import fastest
from client.archive.decode import stored_values
from client.archive.prepare import Job, Prepared, Settings, prepare
from client.archive.select import Rules
from client.archive.sources import Item
from client.archive.workers import Pool
from client.site import Limits
from cxrbase_model.plan import DataSpec
from sim.phantom_sheet import example_pictures

ROWS, COLUMNS, SIZE = 2500, 2000, 224
CR_STORAGE = "1.2.840.10008.5.1.4.1.1.1"
_ROOT = "1.2.826.0.1.3680043.10.997"
_FILES, _TURNS, _PER_WORKER = 3, 3, 24
_SETTINGS = Settings(DataSpec(image_size=SIZE, findings=("No Finding",)), Rules(), Limits(seconds=60, memory=2048))

Encode = Callable[[NDArray[np.uint16]], Any]  # to bytes or a bytearray


def _eight(encode: Encode) -> Encode:
    return lambda values: encode((values >> 4).astype(np.uint8))


JPEG = "1.2.840.10008.1.2.4."
# name to transfer syntax, bits stored, and how a frame is encoded, None where pydicom does
SYNTAXES: dict[str, tuple[str, int, Encode | None]] = {
    "implicit": ("1.2.840.10008.1.2", 12, None),
    "explicit": ("1.2.840.10008.1.2.1", 12, None),
    "big_endian": ("1.2.840.10008.1.2.2", 12, None),
    "deflated": ("1.2.840.10008.1.2.1.99", 12, None),
    "rle": (RLELossless, 12, None),
    "jpeg_baseline": (f"{JPEG}50", 8, _eight(lambda values: imagecodecs.jpeg_encode(values, level=95))),
    "jpeg_extended": (f"{JPEG}51", 12, lambda values: imagecodecs.jpeg_encode(values, level=95, bitspersample=12)),
    "jpeg_lossless": (f"{JPEG}70", 12, lambda values: imagecodecs.ljpeg_encode(values, bitspersample=12)),
    "jpeg_ls": (f"{JPEG}80", 12, imagecodecs.jpegls_encode),
    "jpeg_2000": (f"{JPEG}90", 12, lambda values: imagecodecs.jpeg2k_encode(values, codecformat="j2k", level=0)),
    "jpeg_2000_lossy": (f"{JPEG}91", 12, lambda values: imagecodecs.jpeg2k_encode(values, codecformat="j2k", level=75)),
    "htj2k": (f"{JPEG}201", 12, imagecodecs.htj2k_encode),
}


def ingest() -> dict[str, float]:
    """2000 x 2500 pixels to 224: for each syntax pictures a second and, under its name, the ratio to the plain loop, both in one process.

    Where pydicom has no decoder among our dependencies, the plain loop is given ours. `two_workers` is how many times as
    fast as one worker process two are, over files of all syntaxes.
    """
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(temporary)
        files = {name: write_files(folder, name) for name in SYNTAXES}
        for name, paths in files.items():
            ours, plain = [], []
            for _ in range(_TURNS):  # in turns, so that what slows the machine for a while slows both
                ours.append(fastest(partial(_prepare_all, paths), 1))
                plain.append(fastest(partial(_plain_all, paths), 1))
            found[f"{name}_per_second"] = len(paths) / min(ours)
            found[name] = min(plain) / min(ours)
        found["least_ratio"] = min(found[name] for name in SYNTAXES)
        mixed = [path for index in range(_FILES) for path in (paths[index] for paths in files.values())]
        one, two = [], []
        for _ in range(_TURNS):
            one.append(_pooled(mixed, 1))
            two.append(_pooled(mixed, 2))
    found["two_workers"] = min(one) / min(two)
    found["two_workers_per_second"] = 1 / min(two)
    return found


def write_files(folder: Path, name: str, count: int = _FILES) -> list[Path]:
    """Radiographs of a phantom in one transfer syntax, with a VOI window, noise of their own."""
    syntax, bits, encode = SYNTAXES[name]
    rng = np.random.default_rng(0)
    picture = Image.fromarray(example_pictures(1024)[0]).resize((COLUMNS, ROWS), Image.Resampling.BICUBIC)
    paths = []
    for index in range(count):
        noisy = np.asarray(picture, np.float64) * 15 + 100 + rng.normal(0, 12, (ROWS, COLUMNS))
        values = np.clip(noisy, 0, 4095).astype(np.uint16)
        paths.append(folder / f"{name}{index}.dcm")
        dataset = _header(f"{_ROOT}.{index}", bits, little_endian=name != "big_endian")
        if encode is not None:
            dataset.PixelData = encapsulate([encode(values)])
        elif syntax == RLELossless:
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.PixelData = values.tobytes()
            dataset.compress(RLELossless, generate_instance_uid=False)
        else:
            dataset.PixelData = values.astype(">u2" if name == "big_endian" else "<u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        dataset["PixelData"].VR = "OW" if encode is None and syntax != RLELossless else "OB"
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def _header(uid: str, bits: int, *, little_endian: bool) -> FileDataset:
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(CR_STORAGE), UID(uid)
    dataset = FileDataset(
        "",
        pydicom.Dataset(),
        file_meta=meta,
        preamble=b"\0" * 128,
        is_implicit_VR=False,
        is_little_endian=little_endian,
    )
    values = {
        "SOPClassUID": CR_STORAGE, "SOPInstanceUID": uid, "PatientID": uid, "Modality": "CR",
        "BodyPartExamined": "CHEST", "ViewPosition": "PA", "PresentationIntentType": "FOR PRESENTATION",
        "ImageType": ["ORIGINAL", "PRIMARY"], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "Rows": ROWS, "Columns": COLUMNS, "BitsAllocated": 16 if bits > 8 else 8, "BitsStored": bits,
        "HighBit": bits - 1, "PixelRepresentation": 0, "WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits,
    }  # fmt: skip
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def plain(path: Path) -> NDArray[np.uint8]:
    """The plain loop's picture, uint8 [224, 224]: pydicom, its VOI LUT, a scale to 8 bits, Pillow's resize."""
    dataset = pydicom.dcmread(BytesIO(path.read_bytes()))
    try:
        values = pixel_array(dataset)
    except RuntimeError:  # no decoder
        values = stored_values(dataset)
    shown = apply_voi_lut(values, dataset).astype(np.float64)
    shown = (shown - shown.min()) / max(1e-9, shown.max() - shown.min())
    return np.asarray(Image.fromarray((shown * 255).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _plain_all(paths: Sequence[Path]) -> None:
    for path in paths:
        plain(path)


def _jobs(paths: Sequence[Path]) -> list[Job]:
    return [Job(Item(path.name, path.stat().st_size, 0, path), _SETTINGS) for path in paths]


def _prepare_all(paths: Sequence[Path]) -> None:
    for job in _jobs(paths):
        _check(job, prepare(job))


def _check(job: Job, result: object) -> None:
    if not isinstance(result, Prepared) or result.picture is None:
        reason = getattr(result, "reason", None)
        raise RuntimeError(f"ingest: {job.item.key} should be used, and was left out as {reason}")


def _pooled(paths: Sequence[Path], workers: int) -> float:
    """Seconds a picture with so many worker processes, once they have started."""
    jobs = _jobs(paths)
    turns = max(1, _PER_WORKER * workers // len(jobs))
    with Pool(prepare, count=workers, seconds=60, memory=4 << 30) as pool:
        for job, result in pool.run(jobs[: 2 * workers]):
            _check(job, result)
        started = time.perf_counter()
        for job, result in pool.run(jobs * turns):
            _check(job, result)
        return (time.perf_counter() - started) / (len(jobs) * turns)
