"""Small archives that the tests make themselves."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from client.archive.settings import DicomArchive
from client.site import Compute, Limits, Site
from cxrbase_model.plan import DataSpec

ROOT = "1.2.826.0.1.3680043.10.999"

Radiograph = Callable[..., Path]


def chest(number: int, side: int = 192) -> np.ndarray[Any, Any]:
    """A picture that looks enough like a chest to be taken for one, float64 [side, side], 0 to 1; another for each number."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    rng = np.random.default_rng(number)
    picture = 0.75 - 0.2 * y**2
    for centre in (-0.42, 0.42):
        picture -= 0.5 * np.exp(-(((x - centre) / 0.25) ** 4) - ((y / 0.6) ** 4))
    return np.asarray(np.clip(picture + rng.normal(0, 0.03, picture.shape), 0, 1))


def radiograph(number: int, **elements: Any) -> FileDataset:
    """A frontal chest radiograph as a DICOM data set; `elements` replace or, as None, remove header elements."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"{ROOT}.3.{number}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    pixels = (chest(number) * 4095).astype(np.uint16)
    values: dict[str, Any] = {
        "SOPClassUID": ComputedRadiographyImageStorage, "SOPInstanceUID": f"{ROOT}.3.{number}",
        "StudyInstanceUID": f"{ROOT}.1.{number}", "SeriesInstanceUID": f"{ROOT}.2.{number}",
        "PatientID": f"PAT-{number // 2:06d}", "PatientName": f"Verylongname{number // 2}^Gwendoline", "PatientSex": "F",
        "PatientAge": "043Y", "PatientBirthDate": "19770321", "StudyDate": "20200412", "StudyTime": "101530",
        "AccessionNumber": f"ACC{number:08d}", "Modality": "CR", "BodyPartExamined": "CHEST", "ViewPosition": "PA",
        "Manufacturer": "Fuji Photo Film", "ManufacturerModelName": "FCR", "StudyDescription": "Chest PA",
        "PresentationIntentType": "FOR PRESENTATION", "ImageType": ["ORIGINAL", "PRIMARY"],
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": pixels.shape[0], "Columns": pixels.shape[1],
        "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0,
        "WindowCenter": 2048, "WindowWidth": 4096, "PixelSpacing": [1.8, 1.8],
    } | elements  # fmt: skip
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = pixels.tobytes()
    return dataset


@pytest.fixture
def write_radiograph() -> Radiograph:
    """Writes a radiograph to a path: `write_radiograph(path, number, **elements)`."""

    def write(path: Path, number: int, **elements: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        radiograph(number, **elements).save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def write_picture() -> Callable[..., Path]:
    """Writes a picture file: `write_picture(path, number, bits=8)`, PNG or JPEG by its ending."""

    def write(path: Path, number: int, bits: int = 8) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        scaled = chest(number) * (2**bits - 1)
        Image.fromarray(scaled.astype(np.uint16 if bits == 16 else np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def write_table() -> Callable[[Path, str, Sequence[Sequence[Any]]], Path]:
    """Writes a CSV: `write_table(path, "a,b", [(1, 2), ...])`."""

    def write(path: Path, header: str, rows: Sequence[Sequence[Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header.split(","))
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def spec() -> DataSpec:
    """A small data specification."""
    return DataSpec(
        findings=("No Finding", "Cardiomegaly", "Pleural Effusion", "Pneumonia"),
        image_size=32,
        validation=0.2,
        test=0.2,
    )


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[..., Site]:
    """A site whose private folder is in the test's folder: `make_site(archive=..., labels=...)`; a DICOM tree by default."""

    def make(**settings: Any) -> Site:
        (tmp_path / "dicom").mkdir(exist_ok=True)
        private = settings.get("private", tmp_path / "private")
        private.mkdir(mode=0o700, exist_ok=True)
        if not (private / "secret.key").exists():  # else each run of the tests would split the patients anew
            (private / "secret.key").write_text("1f" * 32)
        defaults: dict[str, Any] = {
            "schema": 1, "site": "test-site", "archive": DicomArchive(path=tmp_path / "dicom"), "private": tmp_path / "private",
            "compute": Compute(workers=1), "limits": Limits(seconds=20, memory=1024),
        }  # fmt: skip
        return Site(**(defaults | settings))

    return make
