"""How each simulated hospital writes its findings down: names, marks, uncertain and missing entries; its SITE.yaml."""

from __future__ import annotations

import csv
from collections.abc import Callable
from io import StringIO
from typing import Any

import numpy as np
import yaml

from sim.hospitals_dicom import accession, instance_uid
from sim.hospitals_style import Picture, Style
from sim.phantom import findings_of
from sim.phantom_patient import FINDINGS, NO_FINDING, PATHOLOGIES

NAMES: dict[str, dict[str, str]] = {  # habit -> plan's finding -> the hospital's name
    "columns": {
        "No Finding": "Normal study",
        "Cardiomegaly": "Enlarged heart",
        "Pleural Effusion": "Effusion",
        "Nodule": "Lung nodule",
        "Pneumothorax": "Pneumothorax",
        "Consolidation": "Air space consolidation",
    },
    "list": {
        "No Finding": "ohne Befund",
        "Cardiomegaly": "Kardiomegalie",
        "Pleural Effusion": "Pleuraerguss",
        "Nodule": "Rundherd",
        "Pneumothorax": "Pneumothorax",
        "Consolidation": "Infiltrat",
    },
    "letters": {
        "No Finding": "Sin hallazgos",
        "Cardiomegaly": "Cardiomegalia",
        "Pleural Effusion": "Derrame pleural",
        "Nodule": "Nódulo",
        "Pneumothorax": "Neumotórax",
        "Consolidation": "Consolidación",
    },
}

Mark = bool | None  # True, False, or None for uncertain; a missing cell has no entry
Row = dict[str, Mark]


def label_file(style: Style, census: list[Picture], seed: int) -> str:
    """The hospital's label CSV as text."""
    writer = {"columns": _columns, "list": _list, "letters": _letters}[style.labels]
    return writer(style, census, np.random.default_rng((seed, 2)), seed)


def site_yaml(style: Style, labels: dict[str, Any]) -> str:
    """The hospital's SITE.yaml as text; `labels` is its section on labels."""
    site = {
        "schema": 1,
        "site": style.name,
        "archive": {"kind": "dicom", "path": "dicom"},
        "labels": labels,
        "private": "private",
        "minimum_cell": 5,
        "compute": {"device": "auto", "devices": 1, "threads": 1, "workers": 2},  # hospitals share the machine
        "policy": {"plans": "any", "patients": 1},  # made up; studies use very few labels
    }
    return yaml.safe_dump(site, sort_keys=False, allow_unicode=True, width=120)


def _marks(style: Style, picture: Picture, rng: np.random.Generator) -> Row:
    """What a reader wrote about one picture: mostly the truth, sometimes uncertain, sometimes nothing."""
    shown = findings_of(picture.lesions)
    row: Row = {}
    for finding in FINDINGS:
        draw = rng.random()
        if finding != NO_FINDING and draw < style.missing:
            continue
        doubtful = finding != NO_FINDING and draw < style.missing + style.uncertain
        row[finding] = None if doubtful else finding in shown
    if any(mark is None for mark in row.values()):
        row.pop(NO_FINDING)  # who is in doubt does not call a study normal
    return row


def _columns(style: Style, census: list[Picture], rng: np.random.Generator, seed: int) -> str:
    """One column a finding, keyed by SOP Instance UID: 1, 0, -1 for uncertain, empty for missing (as in CheXpert)."""
    signs = {True: "1", False: "0", None: "-1"}
    return _table(style, census, rng, "SOPInstanceUID", lambda one: instance_uid(style, one, seed), signs)


def _letters(style: Style, census: list[Picture], rng: np.random.Generator, seed: int) -> str:
    """One column a finding and one row a study, by accession number: P, N, U for positive, negative, uncertain."""
    studies = [one for one in census if one.instance == 1]
    signs = {True: "P", False: "N", None: "U"}
    return _table(style, studies, rng, "AccessionNumber", lambda one: accession(style, one, seed), signs)


def _table(
    style: Style,
    census: list[Picture],
    rng: np.random.Generator,
    key: str,
    key_of: Callable[[Picture], str],
    signs: dict[Mark, str],
) -> str:
    rows = [[key, *(NAMES[style.labels][finding] for finding in FINDINGS)]]
    for picture in census:
        marks = _marks(style, picture, rng)
        if rng.random() >= style.missing:
            rows.append([key_of(picture), *(signs[marks[one]] if one in marks else "" for one in FINDINGS)])
    return _csv(rows)


def _list(style: Style, census: list[Picture], rng: np.random.Generator, seed: int) -> str:
    """One list of what is there, by SOP Instance UID; a `?` marks doubt, an empty list a picture nobody has read."""
    names = NAMES["list"]
    rows = [["SOPInstanceUID", "Befunde"]]
    for picture in census:
        marks = _marks(style, picture, rng)
        read = rng.random() >= style.missing
        noted = [one for one in PATHOLOGIES if marks.get(one, False) is not False]
        shown = [names[one] + ("?" if marks[one] is None else "") for one in noted]
        missed = any(one not in marks for one in findings_of(picture.lesions) if one != NO_FINDING)
        text = "|".join(shown) or ("" if missed else names[NO_FINDING])
        rows.append([instance_uid(style, picture, seed), text if read else ""])
    return _csv(rows)


def _csv(rows: list[list[str]]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def label_section(style: Style) -> dict[str, Any]:
    """The `labels` section of the hospital's SITE.yaml: where its findings stand and what their names mean."""
    names = {theirs: ours for ours, theirs in NAMES[style.labels].items()}
    if style.labels == "list":
        return {"file": "labels.csv", "key": "SOPInstanceUID", "list": "Befunde", "absent": "negative", "names": names}
    key = "AccessionNumber" if style.labels == "letters" else "SOPInstanceUID"
    return {"file": "labels.csv", "key": key, "names": names}
