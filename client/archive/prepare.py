"""What a worker does with one file: read, select, render, resize. Everything known of it goes back in one `Prepared`.

Identifiers travel from the worker to the ingest over a pipe and become keys there; they are not written down anywhere.
"""

from __future__ import annotations

import hashlib
import warnings
import zlib
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import pydicom
import pydicom.filereader
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from client.archive.identity import age_years, years_between
from client.archive.pixels import decode_image_file, fit, render
from client.archive.reasons import Excluded, Reason
from client.archive.select import Rules, classify
from client.archive.sources import Facts, Item
from client.site import Limits
from cxrbase_model.plan import DataSpec

_MIB = 1 << 20
_LATERAL = ("LATERAL", "LAT", "L", "LL", "RL", "LLD", "RLD", "LAO", "RAO")
_IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")


@dataclass(frozen=True)
class Settings:
    """What every file is prepared with."""

    spec: DataSpec
    rules: Rules
    limits: Limits
    patient: str = "id"  # or study: what tells patients apart


@dataclass(frozen=True)
class Job:
    """One file and how to prepare it."""

    item: Item
    settings: Settings


@dataclass(frozen=True)
class About:
    """What a header or a CSV says of a picture; empty or None where it says nothing."""

    uid: str = ""
    accession: str = ""
    patient: str = ""
    sex: str = ""
    age: float | None = None
    view: str = "unknown"
    modality: str = ""
    maker: str = ""
    model: str = ""


@dataclass(frozen=True)
class Prepared:
    """The picture as the cache takes it, uint8 [H, W], or the reason why it is left out."""

    about: About
    picture: NDArray[np.uint8] | None = None
    pixel_hash: bytes = b""
    height: int = 0
    width: int = 0
    reason: Reason | None = None


@dataclass(frozen=True)
class Unread:
    """The file could not be read from its disk or server; it may be the file, or the archive may be gone."""


def prepare(job: Job) -> Prepared | Unread:
    """Prepare one file; never raises for anything in it but MemoryError, which is the pool's to handle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of odd values and quotes them
        return _prepare(job)


def _prepare(job: Job) -> Prepared | Unread:
    about = About()
    try:
        data = job.item.read(job.settings.limits.file * _MIB)
        if job.item.facts is not None and data.startswith(_IMAGE_MAGIC):
            about = _with_facts(about, job.item.facts)
            _check_facts(about, job.settings.rules)
            picture = decode_image_file(data, job.settings.rules)
        else:
            dataset = read_dicom(data, job.settings.limits.file * _MIB)
            about = _with_facts(about_header(dataset, job.settings.patient), job.item.facts)
            rules = _rules_for(job.item.facts, job.settings.rules)
            view = classify(dataset, rules)
            if about.view == "unknown":
                about = replace(about, view=view.value)
            _check_facts(about, rules)
            picture = render(dataset, rules)
        return _fitted(about, picture, job.settings.spec)
    except Excluded as excluded:
        return Prepared(about, reason=excluded.reason)
    except OSError:
        return Unread()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  # parsers and decoders raise anything on hostile bytes; the text may quote a header
        return Prepared(about, reason=Reason.UNREADABLE)


def read_dicom(data: bytes, limit: int) -> Dataset:
    """A data set with or without preamble (PS3.10 7.1), inflated to at most `limit` bytes.

    Excluded: NOT_DICOM where the bytes do not begin like one, TOO_LARGE beyond the limit, UNREADABLE where a deflated stream is cut off.
    """
    if not begins_like_dicom(data):
        raise Excluded(Reason.NOT_DICOM)
    dataset = _deflated(data, limit) or pydicom.dcmread(BytesIO(data), force=True)
    if not len(dataset):  # cut off within its pixels, of which pydicom keeps nothing; the header is there all the same
        dataset = pydicom.dcmread(BytesIO(data), force=True, stop_before_pixels=True)
        dataset.PixelData = b""
    return dataset


def _deflated(data: bytes, limit: int) -> Dataset | None:
    """A data set that is deflated as a whole (PS3.5 A.5), None for any other; a kilobyte may hold a megabyte of zeros."""
    file = BytesIO(data)
    preamble = pydicom.filereader.read_preamble(file, force=True)
    meta = pydicom.filereader.read_dataset(
        file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag.group != 2
    )
    if str(meta.get("TransferSyntaxUID", "")) != DeflatedExplicitVRLittleEndian:
        return None
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(file.read(), limit + 1)
    except zlib.error:
        raise Excluded(Reason.UNREADABLE) from None
    if len(inflated) > limit:
        raise Excluded(Reason.TOO_LARGE)
    if not inflater.eof:
        raise Excluded(Reason.UNREADABLE)
    plain = BytesIO(inflated)
    dataset = pydicom.filereader.read_dataset(plain, is_implicit_VR=False, is_little_endian=True)
    return FileDataset(plain, dataset, preamble, FileMetaDataset(meta), is_implicit_VR=False, is_little_endian=True)


def begins_like_dicom(data: bytes) -> bool:
    """Whether bytes begin as a DICOM file does: by its preamble, or by an element of group 0002 or 0008 in either byte order."""
    return data[128:132] == b"DICM" or data[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08")


def about_header(dataset: Dataset, patient: str) -> About:
    """What the header says (PS3.3 C.7.1.1, C.7.2, C.7.5.1); `patient` says what tells patients apart, id or study."""
    birth, study = _text(dataset, "PatientBirthDate"), _text(dataset, "StudyDate")
    age = age_years(_text(dataset, "PatientAge"))
    return About(
        uid=_text(dataset, "SOPInstanceUID"),
        accession=_text(dataset, "AccessionNumber"),
        patient=_text(dataset, "PatientID" if patient == "id" else "StudyInstanceUID"),
        sex=_text(dataset, "PatientSex"),
        age=years_between(birth, study) if age is None else age,
        modality=_text(dataset, "Modality"),
        maker=_text(dataset, "Manufacturer"),
        model=_text(dataset, "ManufacturerModelName"),
    )


def _with_facts(about: About, facts: Facts | None) -> About:
    """What a CSV says of a picture goes before what its header says."""
    if facts is None:
        return about
    told = {"patient": facts.patient, "sex": facts.sex, "maker": facts.scanner, "view": facts.view.strip().upper()}
    age = age_years(facts.age)
    return replace(about, **{name: text for name, text in told.items() if text}, age=about.age if age is None else age)


def _rules_for(facts: Facts | None, rules: Rules) -> Rules:
    """The rules for a DICOM file: one that a table of chest radiographs names need not say itself that it is one.

    The RSNA challenge's files are secondary captures, VinDr-CXR's headers were blanked.
    """
    if facts is None or not facts.patient:
        return rules
    return replace(
        rules,
        unknown_modality=True,
        unknown_body_part=True,
        secondary_capture=True,
        unknown_view=rules.unknown_view or bool(facts.view),
    )


def _check_facts(about: About, rules: Rules) -> None:
    """What `classify` does for headers, for what a CSV tells."""
    if not about.patient:
        raise Excluded(Reason.NO_PATIENT)
    if about.view in _LATERAL and not rules.lateral:
        raise Excluded(Reason.LATERAL)
    if about.view == "OTHER":
        raise Excluded(Reason.NOT_CHEST)
    if about.view == "unknown" and not rules.unknown_view:
        raise Excluded(Reason.VIEW_UNKNOWN)


def _fitted(about: About, picture: NDArray[np.uint8], spec: DataSpec) -> Prepared:
    fitted = fit(picture, spec)
    digest = hashlib.sha256(fitted.tobytes()).digest()[:16]
    return Prepared(about, fitted, digest, height=picture.shape[0], width=picture.shape[1])


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()
