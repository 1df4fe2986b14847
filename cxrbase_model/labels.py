"""The label vocabulary: how each hospital's names, uncertain and missing labels become numbers that mean the same everywhere.

A hospital writes `Mark`s under its own names. A `Vocabulary` knows which of the plan's findings each name stands for, and
`Vocabulary.encode` turns the marks of one picture into a vector: 1 present, 0 absent, 0.5 uncertain where the plan keeps
doubt, NaN unknown (masked in every loss and metric).

`No Finding` is a statement about all others (CheXpert, arXiv 1901.07031): a picture without finding has none of them, and one
with any of them is not without finding. Support devices are no finding in this sense.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

NO_FINDING = "No Finding"
SUPPORT_DEVICES = "Support Devices"

CHEXPERT_14 = (
    NO_FINDING, "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", SUPPORT_DEVICES,
)  # fmt: skip
NIH_14 = (
    "Atelectasis", "Cardiomegaly", "Pleural Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural Thickening", "Hernia",
)  # fmt: skip
VINDR_28 = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema",
    "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift",
    "Nodule/Mass", "Pleural Effusion", "Pleural Thickening", "Pneumothorax", "Pulmonary Fibrosis", "Rib fracture",
    "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other disease", NO_FINDING,
)  # fmt: skip
VOCABULARIES = {"chexpert-14": CHEXPERT_14, "nih-14": NIH_14, "vindr-28": VINDR_28}

_SAME = {  # other spellings of one finding, folded, to the name used above
    "effusion": "Pleural Effusion",
    "airspace opacity": "Lung Opacity",
    "fibrosis": "Pulmonary Fibrosis",
    "normal": NO_FINDING,
    "no findings": NO_FINDING,
    "nofinding": NO_FINDING,
    "other diseases": "Other disease",
    "oedema": "Edema",
    "infiltrate": "Infiltration",
    "infiltrates": "Infiltration",
}

UNCERTAIN_VALUES = {"ones": 1.0, "zeros": 0.0, "soft": 0.5, "ignore": np.nan}


class Mark(StrEnum):
    """What a hospital says about one finding in one picture; no mark means that it says nothing."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    UNCERTAIN = "uncertain"


class UnknownFinding(ValueError):
    """A name that no vocabulary knows; the text lists the nearest names that one does."""


def fold(name: str) -> str:
    """A name without the differences that do not matter: case, spaces, _ and - (letters with accents keep them)."""
    return re.sub(r"[\s_\-]+", " ", name).strip().casefold()


_KNOWN = {fold(name): name for vocabulary in VOCABULARIES.values() for name in vocabulary}


class Vocabulary:
    """The plan's findings and the names a hospital has for them.

    `names` maps the hospital's names to the plan's and wins over everything else; `ignore` names what is not to be learned.
    Names of the well-known vocabularies that the plan does not learn are known, so they are no error. With `strict` off any other
    name is taken as known and not learned, for public sets with long vocabularies of their own.
    """

    def __init__(
        self,
        findings: tuple[str, ...],
        names: Mapping[str, str] | None = None,
        ignore: Iterable[str] = (),
        *,
        strict: bool = True,
    ) -> None:
        self.findings = findings
        self.strict = strict
        self.ignored = {fold(name) for name in ignore}
        self._columns = {fold(name): column for column, name in enumerate(findings)}
        self._renamed = {fold(theirs): ours for theirs, ours in (names or {}).items()}
        for theirs, ours in (names or {}).items():
            if fold(ours) not in self._columns and fold(ours) not in _KNOWN:
                raise UnknownFinding(f"labels.names.{theirs}: {_unknown(ours, self._choices())}")

    def column(self, name: str) -> int | None:
        """The output the name stands for, or None where it is known and not learned; UnknownFinding where it is not known."""
        folded = fold(name)
        if folded in self._renamed:
            return self._columns.get(fold(self._renamed[folded]))
        if folded in self._columns:
            return self._columns[folded]
        same = fold(_SAME.get(folded, folded))
        if same in self._columns:
            return self._columns[same]
        by_synonym = [column for known, column in self._columns.items() if fold(_SAME.get(known, known)) == same]
        if by_synonym:
            return by_synonym[0]
        if same in _KNOWN or folded in self.ignored or not self.strict:
            return None
        raise UnknownFinding(
            f"labels: {_unknown(name, self._choices())}; map it in labels.names or leave it out by labels.ignore"
        )

    def is_ignored(self, name: str) -> bool:
        """Whether the hospital wants the name left out, as if it had not been written."""
        return fold(name) in self.ignored and fold(name) not in self._renamed

    def meaning(self, name: str) -> str:
        """The plan's or the well-known name for a hospital's name, itself where there is none."""
        folded = fold(name)
        if folded in self._renamed:
            return self._renamed[folded]
        return _KNOWN.get(fold(_SAME.get(folded, folded)), name)

    def encode(self, marks: Mapping[str, Mark], uncertain: str) -> NDArray[np.float32]:
        """The labels of one picture, float32 [C]: 1, 0, 0.5 or NaN for unknown.

        marks: the hospital's names with what it says of each. uncertain: the plan's policy, one of ones, zeros, soft, ignore.
        """
        told: dict[int, Mark] = {}
        ill = False
        for name, mark in marks.items():
            if self.is_ignored(name):
                continue
            column, meaning = self.column(name), self.meaning(name)
            ill = ill or (mark == Mark.POSITIVE and meaning not in (NO_FINDING, SUPPORT_DEVICES))
            if column is not None:
                told[column] = _stronger(mark, told.get(column))
        self._infer(told, ill=ill, well=self._says_well(marks))
        labels = np.full(len(self.findings), np.nan, np.float32)
        for column, mark in told.items():
            labels[column] = _number(mark, uncertain)
        return labels

    def _says_well(self, marks: Mapping[str, Mark]) -> bool:
        positive = [name for name, mark in marks.items() if mark == Mark.POSITIVE and not self.is_ignored(name)]
        return any(self.meaning(name) == NO_FINDING for name in positive)

    def _infer(self, told: dict[int, Mark], *, ill: bool, well: bool) -> None:
        """Add what follows: with any finding, `No Finding` is absent; without finding, all that is not told otherwise is."""
        for column, finding in enumerate(self.findings):
            if self.meaning(finding) == NO_FINDING:
                if ill:
                    told[column] = Mark.NEGATIVE
            elif well and not ill and self.meaning(finding) != SUPPORT_DEVICES:
                told.setdefault(column, Mark.NEGATIVE)

    def _choices(self) -> list[str]:
        return [*self.findings, *(name for name in _KNOWN.values() if name not in self.findings)]


def prevalence(labels_NC: NDArray[np.float32], findings: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Per finding how many rows are positive, negative, uncertain (0.5) and unknown."""
    counts = {}
    for column, finding in enumerate(findings):
        values = labels_NC[:, column]
        counts[finding] = {
            "positive": int((values > 0.5).sum()),
            "negative": int((values < 0.5).sum()),
            "uncertain": int((values == 0.5).sum()),
            "unknown": int(np.isnan(values).sum()),
        }
    return counts


def _number(mark: Mark, uncertain: str) -> float:
    return {Mark.POSITIVE: 1.0, Mark.NEGATIVE: 0.0, Mark.UNCERTAIN: UNCERTAIN_VALUES[uncertain]}[mark]


def _stronger(mark: Mark, other: Mark | None) -> Mark:
    """Two of the hospital's names may stand for one finding (bacterial and viral pneumonia): present wins over doubt over absent."""
    order = [None, Mark.NEGATIVE, Mark.UNCERTAIN, Mark.POSITIVE]
    return max(mark, other or mark, key=order.index)


def _unknown(name: str, choices: list[str]) -> str:
    """What to say of an unknown name: itself and the nearest known ones."""
    by_fold = {fold(choice): choice for choice in choices}
    close = difflib.get_close_matches(fold(name), by_fold, n=3, cutoff=0.5) or difflib.get_close_matches(
        fold(name), by_fold, n=3, cutoff=0.3
    )
    nearest = ", ".join(by_fold[item] for item in close) or ", ".join(choices[:5])
    return f"{name!r} is no known finding; nearest: {nearest}"
