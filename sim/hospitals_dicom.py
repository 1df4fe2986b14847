"""Phantom pictures as DICOM files: three ways in which real systems store a radiograph, with invented headers.

Sources: DICOM PS3.3 C.8.1 (CR), C.8.11 (DX), C.7.6.3 (pixels), C.11.1 (modality LUT), C.11.2 (VOI LUT); PS3.5 annex A.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from sim.hospitals_style import Picture, Style
from sim.phantom_strokes import Map

UID_PREFIX = "1.2.826.0.1.3680043.8.498."  # pydicom's root, open to anybody
Pixels = NDArray[np.uint8] | NDArray[np.uint16]
_SYNTAX = {"mono1": ExplicitVRLittleEndian, "jpeg2000": JPEG2000Lossless, "rle": RLELossless}
_GIVEN = {
    "F": ("Ada", "Berta", "Clara", "Dora", "Elena", "Fiona", "Greta", "Hilda", "Ines", "Jana", "Kira", "Lucia"),
    "M": ("Alan", "Bruno", "Carlos", "David", "Emil", "Felix", "Georg", "Hugo", "Ivan", "Jonas", "Karl", "Luis"),
}
_FAMILY = ("Phantom", "Muster", "Ejemplo", "Sample", "Beispiel", "Modelo", "Specimen", "Probe", "Figura", "Dummy")


def uid(*parts: object) -> str:
    """A UID that is the same for the same parts."""
    return str(generate_uid(UID_PREFIX, [str(part) for part in parts]))


def accession(style: Style, picture: Picture, seed: int) -> str:
    """The accession number of the picture's study, 10 digits."""
    return uid("accession", seed, style.name, picture.number, picture.study)[-10:]


def instance_uid(style: Style, picture: Picture, seed: int, view: str = "frontal") -> str:
    """The SOP Instance UID of a picture."""
    return uid("instance", seed, style.name, picture.number, picture.study, picture.instance, view)


def radiograph_file(style: Style, picture: Picture, image: Map, seed: int, view: str = "frontal") -> bytes:
    """A radiograph 0 to 1 as the bytes of a DICOM file, stored the hospital's way; `view` is frontal or lateral."""
    dataset = _header(style, picture, seed, view)
    computed = style.modality == "CR"
    storage = ComputedRadiographyImageStorage if computed else DigitalXRayImageStorageForPresentation
    dataset.SOPClassUID = storage
    dataset.Modality = style.modality
    dataset.ViewPosition = "LL" if view == "lateral" else "AP" if picture.pose.supine else "PA"
    dataset.BodyPartExamined = "CHEST"
    dataset.ImagerPixelSpacing = [f"{picture.scanner.spacing:.4f}"] * 2
    if computed:
        dataset.PixelSpacing = dataset.ImagerPixelSpacing
    else:
        dataset.PresentationIntentType = "FOR PRESENTATION"
        dataset.PatientOrientation = ["A", "F"] if view == "lateral" else ["L", "F"]
        dataset.ImageLaterality = "U"
    dataset.KVP = "85" if picture.pose.supine else "120"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    pixels = _STORE[style.encoding](dataset, image)
    return _encode(dataset, pixels, style.encoding, storage)


def ct_file(style: Style, picture: Picture, hounsfield: Map, seed: int) -> bytes:
    """An axial slice in Hounsfield units as the bytes of a DICOM CT file, uncompressed."""
    dataset = _header(style, picture, seed, "ct")
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality = "CT"
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientPosition = "HFS"
    dataset.SliceThickness = "5"
    dataset.ImagePositionPatient = ["-180", "-180", "-120"]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.PixelSpacing = ["0.9", "0.9"]
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "-1024", "1", "HU"
    dataset.WindowCenter, dataset.WindowWidth = "40", "400"
    _pixel_module(dataset, hounsfield, "MONOCHROME2", 12)
    return _encode(dataset, (hounsfield + 1024).round().clip(0, 4095).astype(np.uint16), "mono1", CTImageStorage)


def _header(style: Style, picture: Picture, seed: int, view: str) -> Dataset:
    patient, taken = picture.patient, picture.taken
    rng = np.random.default_rng((patient.seed, 9))
    born = taken.replace(day=1) - timedelta(days=round(365.25 * patient.age) + int(rng.integers(0, 300)))
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPInstanceUID = instance_uid(style, picture, seed, view)
    dataset.StudyInstanceUID = uid("study", seed, style.name, picture.number, picture.study)
    dataset.SeriesInstanceUID = uid("series", seed, style.name, picture.number, picture.study, view)
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = taken.strftime("%Y%m%d")
    dataset.StudyTime = dataset.ContentTime = f"{rng.integers(7, 20):02d}{rng.integers(60):02d}{picture.instance:02d}"
    dataset.AccessionNumber = accession(style, picture, seed)
    dataset.StudyID = str(picture.study)
    dataset.SeriesNumber, dataset.InstanceNumber = 1, picture.instance
    dataset.Manufacturer, dataset.ManufacturerModelName = style.maker
    dataset.InstitutionName = f"{style.name.title()} Phantom Hospital"
    dataset.ReferringPhysicianName = "Example^Doctor"
    dataset.StudyDescription = "Chest"
    dataset.PatientName = f"{_FAMILY[rng.integers(len(_FAMILY))]}^{_GIVEN[patient.sex][rng.integers(12)]}"
    dataset.PatientID = patient_id(style, picture.number)
    dataset.PatientBirthDate = born.strftime("%Y%m%d")
    dataset.PatientSex = patient.sex
    dataset.PatientAge = f"{_years(born, taken):03d}Y"
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    return dataset


def patient_id(style: Style, number: int) -> str:
    """The hospital's own number of a patient."""
    return f"{style.name[:3].upper()}{100000 + 7 * number}"


def _years(born: date, taken: date) -> int:
    return taken.year - born.year - ((taken.month, taken.day) < (born.month, born.day))


def _pixel_module(dataset: Dataset, image: Map, photometric: str, bits: int) -> None:
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 if bits <= 8 else 16
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = 0


def _store_mono1(dataset: Dataset, image: Map) -> NDArray[np.uint16]:
    """MONOCHROME1, 12 bits: large values are dark, so that the picture is inverted before it is shown."""
    _pixel_module(dataset, image, "MONOCHROME1", 12)
    dataset.WindowCenter, dataset.WindowWidth = "2048", "3700"
    return np.asarray((2048 - 3700 * (image - 0.5)).round().clip(0, 4095), np.uint16)


def _store_jpeg2000(dataset: Dataset, image: Map) -> NDArray[np.uint16]:
    """MONOCHROME2, 16 bits: stored values become log exposure by slope and intercept, of which a window is shown."""
    _pixel_module(dataset, image, "MONOCHROME2", 16)
    slope, intercept = 0.5, -500.0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = str(slope), str(intercept), "US"
    dataset.WindowCenter, dataset.WindowWidth = "2500", "5000"
    dataset.WindowCenterWidthExplanation = "NORMAL"
    dataset.VOILUTFunction = "LINEAR"
    return np.asarray(((5000 * image - intercept) / slope).round().clip(0, 65535), np.uint16)


def _store_rle(dataset: Dataset, image: Map) -> NDArray[np.uint8]:
    """MONOCHROME2, 8 bits, shown through a VOI LUT: the stored values are the square root of the shown ones."""
    _pixel_module(dataset, image, "MONOCHROME2", 8)
    table = Dataset()
    entries = np.square(np.arange(256) / 255.0) * 4095
    table.LUTDescriptor = [256, 0, 12]
    table.LUTExplanation = "CHEST"
    table.LUTData = entries.round().astype(np.uint16).tolist()
    for element in ("LUTDescriptor", "LUTData"):
        table[element].VR = "US"
    dataset.VOILUTSequence = Sequence([table])
    return np.asarray((255 * np.sqrt(np.clip(image, 0, 1))).round(), np.uint8)


_STORE: dict[str, Callable[[Dataset, Map], Pixels]] = {
    "mono1": _store_mono1,
    "jpeg2000": _store_jpeg2000,
    "rle": _store_rle,
}


def _encode(dataset: Dataset, pixels: Pixels, encoding: str, storage: UID) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    whole = FileDataset(buffer, dataset, preamble=b"\0" * 128, file_meta=meta)
    whole.PixelData = pixels.tobytes()
    whole["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    if _SYNTAX[encoding] != ExplicitVRLittleEndian:
        whole.compress(_SYNTAX[encoding], pixels, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    whole.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
