"""Public data sets as they are published, and the plain folder: pictures in folders or zip files, facts and labels in CSV files.

Each layout says which CSV rows there are, how a row names its picture, whose it is and what is marked in it. Pictures that no
row names have no patient and are excluded for that.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import ClassVar

from client.archive.labels import Marks, column_marks, listed_marks, read_rows
from client.archive.layout import Layout, Named, need
from client.archive.settings import LabelSettings
from client.archive.sources import Facts, Item
from cxrbase_model.labels import CHEXPERT_14, NIH_14, NO_FINDING, VINDR_28, Mark, fold


class PlainFolder(Layout):
    """`labels.csv` with image, patient_id and where known findings, view, sex, age; or one column per finding."""

    _ABOUT = ("image", "patient_id", "view", "sex", "age", "original_width", "original_height")

    def __init__(self, top: Path, labels: LabelSettings, table: str) -> None:
        super().__init__(top, labels)
        self._table = table

    def name_of(self, key: str) -> str:
        """The path below the folder."""
        return key

    def rows(self) -> Iterator[Named]:
        """The rows of the one table."""
        for path in self.tables(self._table):
            for row in read_rows(path):
                need(path, row, "image", "patient_id")
                facts = Facts(
                    row["patient_id"].strip(), *(row.get(name, "").strip() for name in ("view", "sex", "age"))
                )
                yield Named(PurePosixPath(row["image"].strip()).as_posix(), facts, self._row_marks(row))

    def _row_marks(self, row: dict[str, str]) -> Marks:
        if self.settings.file is not None:
            return {}
        listed = self.settings.list or "findings"
        if listed in row:
            return listed_marks(row[listed], self.settings)
        return column_marks(((name, cell) for name, cell in row.items() if name not in self._ABOUT), self.settings)


class NihChestXray14(Layout):
    """Wang et al. 2017 (arXiv 1705.02315). The report miner looked for all fourteen, so one that is not listed is absent."""

    def rows(self) -> Iterator[Named]:
        """Data_Entry_2017.csv, in which the age was 058Y, or Data_Entry_2017_v2020.csv, in which it is 58."""
        for path in self.tables("Data_Entry_2017*.csv"):
            for row in read_rows(path):
                need(path, row, "Image Index", "Finding Labels", "Patient ID")
                facts = Facts(
                    row["Patient ID"].strip(),
                    view=row.get("View Position", ""),
                    sex=row.get("Patient Gender", ""),
                    age=row.get("Patient Age", ""),
                )
                yield Named(
                    row["Image Index"].strip(),
                    facts,
                    _completed(listed_marks(row["Finding Labels"], self.settings), NIH_14),
                )


class Chexpert(Layout):
    """Irvin et al. 2019 (arXiv 1901.07031): 1, 0, -1 uncertain, blank not mentioned. The first folder of `Path` is the set's own."""

    def name_of(self, key: str) -> str:
        """The path below the folder."""
        return key

    def rows(self) -> Iterator[Named]:
        """train.csv and valid.csv."""
        for path in self.tables("train.csv", "valid.csv"):
            for row in read_rows(path):
                need(path, row, "Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
                name = row["Path"].strip().split("/", 1)[-1]
                patient = re.search(r"patient\d+", name)
                view = row["AP/PA"] if row["Frontal/Lateral"] == "Frontal" else "LATERAL"
                facts = Facts(patient[0] if patient else "", view=view, sex=row["Sex"], age=row["Age"])
                yield Named(name, facts, _columns(row, CHEXPERT_14, self.settings))


class MimicCxrJpg(Layout):
    """Johnson et al. 2019 (arXiv 1901.07042): labels per study by the CheXpert labeller, view per picture in the metadata."""

    def rows(self) -> Iterator[Named]:
        """The metadata table, joined with the labels of each study."""
        studies = {}
        for path in self.tables("mimic-cxr-2.*-chexpert.csv"):
            for row in read_rows(path):
                need(path, row, "subject_id", "study_id")
                studies[row["study_id"]] = _columns(row, CHEXPERT_14, self.settings)
        for path in self.tables("mimic-cxr-2.*-metadata.csv"):
            for row in read_rows(path):
                need(path, row, "dicom_id", "subject_id", "study_id", "ViewPosition")
                facts = Facts(row["subject_id"], view=row["ViewPosition"])
                yield Named(f"{row['dicom_id']}.jpg", facts, studies.get(row["study_id"], {}))


class VindrCxr(Layout):
    """Nguyen et al. 2022 (arXiv 2012.15029): three readers a training picture, of whom most decide; a consensus for the test.

    The headers were blanked: every picture counts as a patient of its own.
    """

    def name_of(self, key: str) -> str:
        """The file's name without its ending."""
        return PurePosixPath(key).stem

    def rows(self) -> Iterator[Named]:
        """annotations/image_labels_train.csv and image_labels_test.csv."""
        for path in self.tables("annotations/image_labels_*.csv"):
            readers: dict[str, list[Marks]] = {}
            for row in read_rows(path):
                need(path, row, "image_id")
                readers.setdefault(row["image_id"], []).append(_columns(row, VINDR_28, self.settings))
            for name, marks in readers.items():
                yield Named(name, Facts(name), _majority(marks))


class PadChest(Layout):
    """Bustos et al. 2020 (arXiv 1901.07441): a list of labels out of each report, 16-bit pictures.

    The reports were labelled whole, so a finding of `_READ` that is not listed is absent, unless the report only says that
    nothing has changed.
    """

    strict = False
    _READ: ClassVar[dict[str, str]] = {
        "atelectasis": "Atelectasis", "cardiomegaly": "Cardiomegaly", "consolidation": "Consolidation",
        "pulmonary edema": "Edema", "emphysema": "Emphysema", "pulmonary fibrosis": "Pulmonary Fibrosis",
        "hiatal hernia": "Hernia", "infiltrates": "Infiltration", "mass": "Mass", "nodule": "Nodule",
        "pleural effusion": "Pleural Effusion", "pleural thickening": "Pleural Thickening", "pneumonia": "Pneumonia",
        "pneumothorax": "Pneumothorax",
    }  # fmt: skip
    _SILENT = ("unchanged", "exclude", "suboptimal study")
    _VIEWS: ClassVar[dict[str, str]] = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP", "L": "LATERAL"}

    def rows(self) -> Iterator[Named]:
        """The one table; ages out of the study's date and the year of birth."""
        for path in self.tables("PADCHEST_chest_x_ray_images_labels_*.csv", "*PADCHEST*labels*.csv")[:1]:
            for row in read_rows(path):
                need(path, row, "ImageID", "PatientID", "Labels")
                projection = row.get("Projection", "")
                facts = Facts(
                    row["PatientID"].strip(),
                    view=self._VIEWS.get(projection, "OTHER" if projection else ""),
                    sex=row.get("PatientSex_DICOM", ""),
                    age=_age(row.get("StudyDate_DICOM", ""), row.get("PatientBirth", "")),
                    scanner=row.get("Manufacturer_DICOM", ""),
                )
                yield Named(row["ImageID"].strip(), facts, self._report_marks(row["Labels"]))

    def _report_marks(self, cell: str) -> Marks:
        try:
            listed = ast.literal_eval(cell)
        except (ValueError, SyntaxError):
            return {}
        if not isinstance(listed, list):
            return {}
        names = [str(name).strip().lower() for name in listed if str(name).strip()]
        if not names or any(name in self._SILENT for name in names):
            return {self._READ[name]: Mark.POSITIVE for name in names if name in self._READ}
        marks = {self._READ.get(name, name): Mark.POSITIVE for name in names if name != "normal"}
        return _completed(marks or {NO_FINDING: Mark.POSITIVE}, self._READ.values())


class RsnaPneumonia(Layout):
    """Shih et al. 2019 (doi 10.1148/ryai.2019180041): lung opacity that may be pneumonia, or not, or a normal picture."""

    _CLASSES: ClassVar[dict[str, Marks]] = {
        "Lung Opacity": {"Pneumonia": Mark.POSITIVE, "Lung Opacity": Mark.POSITIVE},
        "No Lung Opacity / Not Normal": {
            "Pneumonia": Mark.NEGATIVE,
            "Lung Opacity": Mark.NEGATIVE,
            NO_FINDING: Mark.NEGATIVE,
        },
        "Normal": {NO_FINDING: Mark.POSITIVE},
    }

    def name_of(self, key: str) -> str:
        """The file's name without its ending."""
        return PurePosixPath(key).stem

    def items(self) -> Iterator[Item]:
        """Every picture; test pictures have no row, and the file's name is their patient."""
        for item in super().items():
            name = self.name_of(item.key)
            yield item if item.facts and item.facts.patient else replace(item, facts=Facts(name))

    def rows(self) -> Iterator[Named]:
        """The target of each picture, sharpened by its detailed class where that file is there."""
        classes = {}
        for path in self.top.glob("stage_2_detailed_class_info.csv"):
            for row in read_rows(path):
                need(path, row, "patientId", "class")
                classes[row["patientId"]] = row["class"]
        for path in self.tables("stage_2_train_labels.csv"):
            for row in read_rows(path):
                need(path, row, "patientId", "Target")
                fallback = {"Pneumonia": Mark.POSITIVE if row["Target"] == "1" else Mark.NEGATIVE}
                marks = self._CLASSES.get(classes.get(row["patientId"], ""), fallback)
                yield Named(row["patientId"], Facts(row["patientId"]), marks)


def _columns(row: dict[str, str], vocabulary: Iterable[str], settings: LabelSettings) -> Marks:
    """The marks of those columns whose names the vocabulary knows."""
    known = {fold(name) for name in vocabulary} | {"other diseases"}
    return column_marks(((name, cell) for name, cell in row.items() if fold(name) in known), settings)


def _completed(marks: Marks, vocabulary: Iterable[str]) -> Marks:
    """The marks of a list that names all there is of a vocabulary: what it does not name is absent."""
    named = {fold(name) for name in marks} | ({"pleural effusion"} if "Effusion" in marks else set())
    return marks | {name: Mark.NEGATIVE for name in vocabulary if fold(name) not in named}


def _majority(readers: list[Marks]) -> Marks:
    """What most readers of one picture say of each finding; a draw is uncertain."""
    merged: Marks = {}
    for name in {name for marks in readers for name in marks}:
        said = [marks[name] for marks in readers if name in marks]
        for_it, against = said.count(Mark.POSITIVE), said.count(Mark.NEGATIVE)
        merged[name] = Mark.POSITIVE if for_it > against else Mark.NEGATIVE if against > for_it else Mark.UNCERTAIN
    return merged


def _age(study: str, birth: str) -> str:
    """Years between a date YYYYMMDD and a year."""
    year = re.match(r"\d{4}", birth)
    return str(int(study[:4]) - int(year[0])) if year and re.match(r"\d{8}", study) else ""
