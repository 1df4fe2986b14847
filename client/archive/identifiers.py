"""The identifiers of a file in the archive, in every spelling in which they could turn up somewhere else."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

import pydicom
from pydicom.dataelem import DataElement

from client.archive.prepare import begins_like_dicom
from client.archive.sources import Item

_TEXT = frozenset({"AE", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})
_STANDARD_UID = "1.2.840.10008."  # PS3.6 Annex A: classes and transfer syntaxes, the same in every file
_LONGEST = 64
_MOST = 2000  # texts of one file


def identifiers(item: Item) -> tuple[str, ...]:
    """Texts that could identify whom the file is about: of the header, of the CSV beside it, of the file's name and folders."""
    texts = set(re.split(r"[/!]", item.key))
    texts.update(part.rsplit(".", 1)[0] for part in list(texts))
    if item.facts:
        texts.add(item.facts.patient)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        texts.update(_header_texts(item))
    return tuple(sorted(text[:_LONGEST] for text in texts if len(text) >= 4))[:_MOST]


def _header_texts(item: Item) -> Iterator[str]:
    try:
        with item.open() as file:
            start = file.read(132)
            file.seek(0)
            if not begins_like_dicom(start):
                return
            dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True)
            elements = [element for element in dataset.iterall() if element.VR in _TEXT]
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  # a damaged header, which the ingest has excluded; its name is searched all the same
        return
    for element in elements:
        yield from _spellings(element)


def _spellings(element: DataElement) -> Iterator[str]:
    for value in element.value if element.VM > 1 else [element.value]:
        text = str(value or "").strip()
        if text.startswith(_STANDARD_UID):
            continue
        yield text
        if element.VR == "PN":
            yield from re.split(r"[\^= ]+", text)
        if element.VR in ("DA", "DT") and re.match(r"\d{8}", text):
            year, month, day = text[:4], text[4:6], text[6:8]
            yield from (
                text[:8],
                f"{year}-{month}-{day}",
                f"{day}.{month}.{year}",
                f"{month}/{day}/{year}",
                f"{day}/{month}/{year}",
            )
        yield re.sub(r"\D", "", text)
