"""Which DICOM files are frontal chest radiographs, decided from the header alone (PS3.3 A.2, A.26, C.8.1.1, C.8.11)."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from pydicom import Dataset

from client.archive.reasons import Excluded, Reason
from cxrbase_model.settings import knob


class View(StrEnum):
    """The frontal views that are told apart."""

    PA = "PA"
    AP = "AP"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Rules:
    """A site's own rules of selection; the defaults keep frontal chest radiographs only."""

    modalities: tuple[str, ...] = knob(("CR", "DX", "DR", "RG"), why="values of (0008,0060) Modality that are used")
    body_parts: tuple[str, ...] = knob(
        ("CHEST", "THORAX", "LUNG", "TORAX", "RIB", "POUMON", "PULMON", "BRUST"),
        why="words of (0018,0015) Body Part Examined or a description that mean the chest",
    )
    unknown_modality: bool = knob(False, why="use pictures whose header says nothing about the modality")
    unknown_body_part: bool = knob(False, why="use radiographs that say nothing about the part of the body")
    unknown_view: bool = knob(True, why="use chest radiographs that do not say which view they are")
    lateral: bool = knob(False, why="use lateral views too")
    burned_in: bool = knob(False, why="use pictures whose (0028,0301) Burned In Annotation is YES")
    secondary_capture: bool = knob(False, why="use secondary captures and derived pictures")
    for_processing: bool = knob(False, why="use raw pictures, (0008,0068) Presentation Intent Type FOR PROCESSING")
    minimum_size: int = knob(128, unit="pixels", low=1, high=10_000, why="shortest side of a picture that is used")


# values of (0018,5101) View Position (C.8.1.1) that are not frontal; with decubitus ones, where fluid and gas lie another way
_LATERAL_POSITIONS = {"LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "LAT", "LATERAL", "OBLIQUE"}
# PS3.16 CID 4010 DX View, SNOMED CT beside the SNOMED RT codes before it
_PA_CODES = {"272479007", "R-10214", "R-40888"}
_AP_CODES = {"399348003", "R-10206"}
_FRONTAL_CODES = {"399033003", "R-10202"}
# fmt: off
_LATERAL_CODES = {
    "399067008", "R-102CD", "399173006", "R-10236", "399198007", "R-10232", "399260004", "R-10224", "399352003", "R-10228",
    "30730003", "G-A145",  # sagittal
    "399182000", "R-102C1", "399135007", "R-10220", "399356000", "R-40985", "399006002", "R-10212", "399038007", "R-10210",
    "399184004", "R-10238", "399236003", "R-10234", "399059000", "R-10216", "399312000", "R-10208", "399160007", "R-10204",
    "260427002", "R-40783", "260426006", "R-40782", "399368009", "R-10226", "399099002", "R-10230", "399004004", "R-10246",
    "399132005", "R-10252", "399325008", "R-10254",  # to here oblique ones
    "399061009", "R-10241", "399110001", "R-102C2",  # axial, tangential
}
# fmt: on
_LATERAL_WORDS = re.compile(
    r"\b(LAT(ERAL|ERALE|ERALES|ERALIS)?|SEITLICH|SEITE|PROFIL|PERFIL|LL|OBLIQUE|SCHRAEG|DECUBITUS|[LR](AO|PO))\b"
)
_PA_WORDS = re.compile(r"\bP\.?\s?A\.?\b|POSTERO\s?-?ANTERIOR")
_AP_WORDS = re.compile(r"\bA\.?\s?P\.?\b|ANTERO\s?-?POSTERIOR|BEDSIDE|PORTABLE|LIEGEND|SUPINE")
_SPINE = re.compile(r"SPINE|WIRBEL|COLUMNA|RACHIS|\b[BHL]WS\b")  # some of its names begin with those of the chest
_OTHER_PARTS = re.compile(
    r"\b(ABD(OMEN)?|PELVIS|BECKEN|HAND|FOOT|FUSS|KNEE|KNIE|SKULL|HEAD|HIP|HUEFTE|ANKLE|WRIST|ELBOW|SHOULDER|SCHULTER|"
    r"EXTREMITY|LEG|ARM|FINGER|TOE|BREAST|MAMMA|JAW|SINUS(ES)?|FEMUR|HUMERUS|TIBIA|BONE)\b"
)
_SECONDARY_CAPTURES = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame relatives below it


def classify(dataset: Dataset, rules: Rules) -> View:
    """The view of a radiograph that is used; Excluded with the reason otherwise."""
    if "PixelData" not in dataset and "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
        cut_off = "Rows" in dataset and _text(dataset, "Modality") in rules.modalities
        raise Excluded(Reason.UNREADABLE if cut_off else Reason.NO_PIXELS)
    modality = _text(dataset, "Modality")
    if modality not in rules.modalities and (modality or not rules.unknown_modality):
        raise Excluded(Reason.MODALITY)
    _check_kind(dataset, rules)
    _check_body_part(dataset, rules)
    return _view(dataset, rules)


def _check_kind(dataset: Dataset, rules: Rules) -> None:
    if _text(dataset, "PresentationIntentType") == "FOR PROCESSING" and not rules.for_processing:
        raise Excluded(Reason.FOR_PROCESSING)
    kind = [str(part).strip().upper() for part in _values(dataset, "ImageType")]
    derived = "LOCALIZER" in kind or (len(kind) > 1 and kind[0] == "DERIVED" and kind[1] == "SECONDARY")
    capture = f"{_text(dataset, 'SOPClassUID')}.".startswith(f"{_SECONDARY_CAPTURES}.")
    if (derived or capture) and not rules.secondary_capture:
        raise Excluded(Reason.SECONDARY_CAPTURE)
    if _text(dataset, "BurnedInAnnotation") == "YES" and not rules.burned_in:
        raise Excluded(Reason.BURNED_IN)
    if int(_text(dataset, "NumberOfFrames") or 1) > 1:
        raise Excluded(Reason.MULTI_FRAME)


def _check_body_part(dataset: Dataset, rules: Rules) -> None:
    """(0018,0015) Body Part Examined, then the anatomic region code, then descriptions, of which the first that tells counts."""
    part = _text(dataset, "BodyPartExamined")
    region = " ".join(_folded(str(item.get("CodeMeaning", ""))) for item in _items(dataset, "AnatomicRegionSequence"))
    for text in (part, region, *_descriptions(dataset)):
        if _SPINE.search(text):
            raise Excluded(Reason.NOT_CHEST)
        if _names_part(text, rules.body_parts):
            return
        if _OTHER_PARTS.search(text):
            raise Excluded(Reason.NOT_CHEST)
    if part:
        raise Excluded(Reason.NOT_CHEST)
    if not rules.unknown_body_part:
        raise Excluded(Reason.BODY_PART_UNKNOWN)


def _names_part(text: str, words: tuple[str, ...]) -> bool:
    """Whether one of the words is in the text, also within others, as in Bettlunge; short ones, as RIB, only where one begins."""
    return any(word in text and (len(word) > 3 or re.search(rf"\b{re.escape(word)}", text)) for word in words)


def _view(dataset: Dataset, rules: Rules) -> View:
    """(0018,5101) View Position, (0054,0220) View Code Sequence, (0020,0020) Patient Orientation, then descriptions."""
    found = _view_position(dataset) or _view_code(dataset) or _view_orientation(dataset) or _view_described(dataset)
    if found == "LATERAL":
        if not rules.lateral:
            raise Excluded(Reason.LATERAL)
        return View.UNKNOWN
    if found is None and not rules.unknown_view:
        raise Excluded(Reason.VIEW_UNKNOWN)
    return View(found) if found in (View.PA, View.AP) else View.UNKNOWN


def _view_position(dataset: Dataset) -> str | None:
    position = _text(dataset, "ViewPosition")
    return "LATERAL" if position in _LATERAL_POSITIONS else _named_view(position)


def _view_code(dataset: Dataset) -> str | None:
    for item in _items(dataset, "ViewCodeSequence"):
        code = str(item.get("CodeValue", "")).strip().upper()
        for name, codes in (
            ("LATERAL", _LATERAL_CODES),
            ("PA", _PA_CODES),
            ("AP", _AP_CODES),
            ("FRONTAL", _FRONTAL_CODES),
        ):
            if code in codes:
                return name
        if named := _named_view(_folded(str(item.get("CodeMeaning", "")))):
            return named
    return None


def _view_orientation(dataset: Dataset) -> str | None:
    """Rows that run from front to back (A or P) belong to a lateral view (PS3.3 C.7.6.1.1.1)."""
    rows = [str(value).strip().upper() for value in _values(dataset, "PatientOrientation")]
    return "LATERAL" if rows and rows[0][:1] in ("A", "P") else None


def _view_described(dataset: Dataset) -> str | None:
    """The view that the first telling description names; the series' before the study's, which may list the views of several."""
    for text in _descriptions(dataset):
        if named := _named_view(text):
            return named
    return None


def _named_view(text: str) -> str | None:
    """The view a text names; none where it names both a frontal and a lateral one, as descriptions of whole studies do."""
    frontal = "PA" if _PA_WORDS.search(text) else "AP" if _AP_WORDS.search(text) else None
    if _LATERAL_WORDS.search(text):
        oblique = "OBLIQUE" in text  # a postero-anterior oblique view is one view, not two
        return "LATERAL" if frontal is None or oblique else None
    return frontal


def _descriptions(dataset: Dataset) -> list[str]:
    """What people wrote, folded, the nearest to the picture first."""
    names = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription", "StudyDescription")
    return [text for text in (_text(dataset, name) for name in names) if text]


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else _folded(str(value))


def _folded(text: str) -> str:
    """Upper case, no accents, umlauts written out, underscores as spaces."""
    text = text.upper().replace("Ä", "AE").replace("Ö", "OE").replace("Ü", "UE").replace("_", " ")
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().strip()


def _values(dataset: Dataset, keyword: str) -> list[object]:
    value = dataset.get(keyword)
    if value is None:
        return []
    return list(value) if not isinstance(value, str) and hasattr(value, "__iter__") else [value]


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    value = dataset.get(keyword)
    return list(value) if value is not None and hasattr(value, "__iter__") else []
