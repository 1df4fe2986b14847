"""Each public data set is read as it is published, on small trees of its shape."""

from __future__ import annotations

import csv
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.archive.ingest import ingest
from client.archive.reasons import Reason
from client.archive.settings import (
    ChexpertArchive,
    FolderArchive,
    LabelSettings,
    MimicArchive,
    NihArchive,
    PadchestArchive,
    RsnaArchive,
    VindrArchive,
)
from client.dataset import Cache
from client.site import Site
from cxrbase_model.plan import DataSpec
from cxrbase_model.settings import SettingsError

NAN = math.nan
SPEC = DataSpec(
    findings=("No Finding", "Cardiomegaly", "Pleural Effusion", "Pneumonia"), image_size=32, validation=0.0, test=0.0,
    uncertain="soft",
)  # fmt: skip

MakeSite = Callable[..., Site]
Write = Callable[..., Path]


class Read:
    """What came of an ingest: per patient's pictures the labels and groups, and the reasons of the excluded."""

    def __init__(self, site: Site) -> None:
        self.summary = ingest(site, SPEC)
        self.cache = Cache.open(site.cache_folder)
        with (site.private / "exclusions.csv").open(newline="") as file:
            self.reasons = {row["file"]: row["reason"] for row in csv.DictReader(file)}

    def labels(self) -> set[tuple[float, ...]]:
        """The label rows as a set, NaN shown as -1."""
        return {tuple(np.nan_to_num(row, nan=-1).tolist()) for row in self.cache.labels}

    def shown(self, group: str) -> set[str]:
        return {self.cache.group_names[group][code] for code in self.cache.groups[group]}


def test_a_plain_folder_with_lists(
    tmp_path: Path, make_site: MakeSite, write_picture: Write, write_table: Write
) -> None:
    for number, name in enumerate(["a.jpg", "b.png", "c.jpg", "d.png", "lateral.jpg", "stranger.png"]):
        write_picture(tmp_path / "set" / "images" / name, number, bits=16 if name == "d.png" else 8)
    rows = [
        ("images/a.jpg", "p1", "No Finding", "PA", "M", "61"), ("images/b.png", "p1", "Pneumonia|Cardiomegaly", "AP", "F", ""),
        ("images/c.jpg", "p2", "", "", "", "7"), ("images/d.png", "p3", "Effusion?", "PA", "", ""),
        ("images/lateral.jpg", "p3", "", "LATERAL", "", ""), ("images/missing.jpg", "p4", "", "", "", ""),
    ]  # fmt: skip
    write_table(tmp_path / "set" / "labels.csv", "image,patient_id,findings,view,sex,age", rows)
    read = Read(make_site(archive=FolderArchive(path=tmp_path / "set")))
    assert read.summary.used == 4
    assert read.summary.patients == 3
    assert read.labels() == {(1, 0, 0, 0), (0, 1, -1, 1), (-1, -1, -1, -1), (-1, -1, 0.5, -1)}
    assert read.shown("view") == {"PA", "AP", "unknown"}
    assert read.shown("sex") == {"male", "female", "unknown"}
    assert read.shown("age_band") == {"60-69", "0-9", "unknown"}
    assert read.reasons == {"images/lateral.jpg": Reason.LATERAL, "images/stranger.png": Reason.NO_PATIENT}


def test_a_plain_folder_with_columns(
    tmp_path: Path, make_site: MakeSite, write_picture: Write, write_table: Write
) -> None:
    write_picture(tmp_path / "set" / "x.png", 1)
    write_table(tmp_path / "set" / "labels.csv", "image,patient_id,Herz,Pneumonia", [("x.png", "p1", "1", "U")])
    archive, labels = FolderArchive(path=tmp_path / "set"), LabelSettings(names={"Herz": "Cardiomegaly"})
    assert Read(make_site(archive=archive, labels=labels)).labels() == {(0, 1, -1, 0.5)}


def test_changed_facts_of_a_picture_are_noticed(
    tmp_path: Path, make_site: MakeSite, write_picture: Write, write_table: Write
) -> None:
    write_picture(tmp_path / "set" / "x.png", 1)
    site = make_site(archive=FolderArchive(path=tmp_path / "set"))
    for sex, expected in (("F", "female"), ("M", "male")):
        write_table(tmp_path / "set" / "labels.csv", "image,patient_id,findings,sex", [("x.png", "p1", "", sex)])
        assert Read(site).shown("sex") == {expected}


@pytest.mark.parametrize(("name", "age"), [("Data_Entry_2017.csv", "058Y"), ("Data_Entry_2017_v2020.csv", "58")])
def test_nih_chest_xray14(
    tmp_path: Path, make_site: MakeSite, write_picture: Write, write_table: Write, name: str, age: str
) -> None:
    top = tmp_path / "nih"
    write_picture(top / "images_001" / "images" / "00000001_000.png", 1)
    write_picture(top / "images_002" / "images" / "00000002_000.png", 2)
    write_picture(top / "images_002" / "images" / "00000002_001.png", 3)
    write_table(
        top / name, "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position",
        [
            ("00000001_000.png", "Cardiomegaly|Effusion", 0, 1, age, "M", "PA"),
            ("00000002_000.png", "No Finding", 0, 2, age, "F", "AP"),
            ("00000002_001.png", "Hernia", 1, 2, age, "F", "AP"),
            ("00000009_000.png", "Hernia", 1, 9, age, "F", "AP"),
        ],
    )  # fmt: skip
    read = Read(make_site(archive=NihArchive(path=top)))
    assert read.summary.patients == 2
    assert read.labels() == {(0, 1, 1, 0), (1, 0, 0, 0), (0, 0, 0, 0)}
    assert read.shown("age_band") == {"50-59"}


CHEXPERT = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,"
    "Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


def chexpert(**marks: Any) -> list[Any]:
    """The fourteen cells, blank but for those named (underscores for spaces)."""
    return [marks.get(name.replace(" ", "_"), "") for name in CHEXPERT.split(",")]


def test_chexpert(tmp_path: Path, make_site: MakeSite, write_picture: Write, write_table: Write) -> None:
    top = tmp_path / "CheXpert-v1.0-small"
    write_picture(top / "train" / "patient00001" / "study1" / "view1_frontal.jpg", 1)
    write_picture(top / "train" / "patient00002" / "study1" / "view1_frontal.jpg", 2)
    write_picture(top / "train" / "patient00002" / "study1" / "view2_lateral.jpg", 3)
    write_picture(top / "valid" / "patient64541" / "study1" / "view1_frontal.jpg", 4)
    base = f"{top.name}/train"
    header = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{CHEXPERT}"
    write_table(
        top / "train.csv", header,
        [
            (f"{base}/patient00001/study1/view1_frontal.jpg", "Female", 68, "Frontal", "AP", *chexpert(No_Finding="1.0")),
            (
                f"{base}/patient00002/study1/view1_frontal.jpg", "Male", 30, "Frontal", "PA",
                *chexpert(Cardiomegaly="1.0", Pneumonia="-1.0", Pleural_Effusion="0.0"),
            ),
            (f"{base}/patient00002/study1/view2_lateral.jpg", "Male", 30, "Lateral", "", *chexpert()),
        ],
    )  # fmt: skip
    write_table(
        top / "valid.csv", header,
        [(f"{top.name}/valid/patient64541/study1/view1_frontal.jpg", "Unknown", 90, "Frontal", "AP", *chexpert(Edema="1.0"))],
    )  # fmt: skip
    read = Read(make_site(archive=ChexpertArchive(path=top)))
    assert read.summary.patients == 3
    assert read.labels() == {(1, 0, 0, 0), (0, 1, 0, 0.5), (0, -1, -1, -1)}
    assert read.shown("sex") == {"female", "male", "unknown"}
    assert set(read.reasons.values()) == {Reason.LATERAL}


def test_mimic_cxr_jpg(tmp_path: Path, make_site: MakeSite, write_picture: Write, write_table: Write) -> None:
    top = tmp_path / "mimic"
    pictures = {"aaaa": ("p10/p10000032/s50414267", "PA"), "bbbb": ("p10/p10000032/s50414267", "LATERAL"),
                "cccc": ("p10/p10000764/s57375967", "AP")}  # fmt: skip
    for number, (name, (folder, _)) in enumerate(pictures.items()):
        write_picture(top / "files" / folder / f"{name}.jpg", number)
    ids = {name: (folder.split("/")[1][1:], folder.split("/")[2][1:]) for name, (folder, _) in pictures.items()}
    write_table(
        top / "mimic-cxr-2.0.0-metadata.csv", "dicom_id,subject_id,study_id,ViewPosition,Rows,Columns,StudyDate",
        [(name, *ids[name], view, 10, 10, 21800506) for name, (_, view) in pictures.items()],
    )  # fmt: skip
    write_table(
        top / "mimic-cxr-2.0.0-chexpert.csv", f"subject_id,study_id,{CHEXPERT}",
        [(*ids["aaaa"], *chexpert(Pneumonia="-1.0")), (*ids["cccc"], *chexpert(Cardiomegaly="0.0", Pleural_Effusion="1.0"))],
    )  # fmt: skip
    read = Read(make_site(archive=MimicArchive(path=top)))
    assert read.labels() == {(-1, -1, -1, 0.5), (0, 0, 1, -1)}
    assert list(read.reasons.values()) == [Reason.LATERAL]


def test_vindr_cxr(tmp_path: Path, make_site: MakeSite, write_radiograph: Write, write_table: Write) -> None:
    top = tmp_path / "vindr"
    blank = {"PatientID": None, "PatientName": None, "AccessionNumber": None, "ViewPosition": None}
    for number, name in enumerate(["train/aa", "train/bb", "test/cc"]):
        write_radiograph(top / f"{name}.dicom", number, **blank)
    header = "image_id,rad_id,Cardiomegaly,Pleural effusion,Pneumonia,Other diseases,No finding"
    write_table(
        top / "annotations" / "image_labels_train.csv", header,
        [("aa", "R1", 1, 0, 0, 0, 0), ("aa", "R2", 1, 1, 0, 0, 0), ("aa", "R3", 0, 0, 0, 0, 0)]
        + [("bb", f"R{reader}", 0, 0, 0, 0, 1) for reader in (8, 9, 10)],
    )  # fmt: skip
    write_table(
        top / "annotations" / "image_labels_test.csv", header.replace("rad_id,", "").replace("diseases", "disease"),
        [("cc", 0, 0, 1, 0, 0)],
    )  # fmt: skip
    read = Read(make_site(archive=VindrArchive(path=top)))
    assert read.summary.patients == 3
    assert read.labels() == {(0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1)}


def test_padchest(tmp_path: Path, make_site: MakeSite, write_picture: Write, write_table: Write) -> None:
    top = tmp_path / "padchest"
    names = [f"{number}.png" for number in range(6)]
    for number, name in enumerate(names[:3]):
        write_picture(top / "0" / name, number, bits=16)
    with zipfile.ZipFile(tmp_path / "1.zip", "w") as file:
        for number, name in enumerate(names[3:], start=3):
            file.write(write_picture(tmp_path / name, number, bits=16), name)
    (tmp_path / "1.zip").rename(top / "1.zip")
    labels = [
        "['normal']",
        "['cardiomegaly', 'costophrenic angle blunting']",
        "['unchanged', 'pneumonia']",
        "",
        "['normal']",
        "[]",
    ]
    views = ["PA", "AP_horizontal", "PA", "PA", "L", "COSTAL"]
    write_table(
        top / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
        "ImageID,ImageDir,StudyDate_DICOM,PatientID,PatientBirth,PatientSex_DICOM,Projection,Labels",
        [(name, 0, "20140915", f"p{name}", "1930.0", "M", view, label) for name, view, label in zip(names, views, labels, strict=True)],
    )  # fmt: skip
    read = Read(make_site(archive=PadchestArchive(path=top)))
    assert read.labels() == {(1, 0, 0, 0), (0, 1, 0, 0), (0, -1, -1, 1), (-1, -1, -1, -1)}
    assert read.reasons == {"1.zip!4.png": Reason.LATERAL, "1.zip!5.png": Reason.NOT_CHEST}
    assert read.shown("age_band") == {"80+"}


def test_rsna_pneumonia(tmp_path: Path, make_site: MakeSite, write_radiograph: Write, write_table: Write) -> None:
    top = tmp_path / "rsna"
    for number, name in enumerate(["sick", "well", "other", "test"]):
        folder = "stage_2_test_images" if name == "test" else "stage_2_train_images"
        write_radiograph(top / folder / f"{name}.dcm", number, PatientID=name)
    write_table(
        top / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target",
        [("sick", 1, 2, 3, 4, 1), ("sick", 5, 6, 7, 8, 1), ("well", "", "", "", "", 0), ("other", "", "", "", "", 0)],
    )  # fmt: skip
    site = make_site(archive=RsnaArchive(path=top))
    assert Read(site).labels() == {(0, -1, -1, 1), (-1, -1, -1, 0), (-1, -1, -1, -1)}
    write_table(
        top / "stage_2_detailed_class_info.csv", "patientId,class",
        [("sick", "Lung Opacity"), ("well", "Normal"), ("other", "No Lung Opacity / Not Normal")],
    )  # fmt: skip
    read = Read(site)
    assert read.labels() == {(0, -1, -1, 1), (1, 0, 0, 0), (0, -1, -1, 0), (-1, -1, -1, -1)}
    assert read.shown("sex") == {"female"}


def test_a_folder_that_is_not_the_data_set_says_what_is_missing(tmp_path: Path, make_site: MakeSite) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"archive\.path: .*empty holds no Data_Entry_2017\*\.csv"):
        Read(make_site(archive=NihArchive(path=tmp_path / "empty")))


def test_a_table_without_a_column_says_which(tmp_path: Path, make_site: MakeSite, write_table: Write) -> None:
    write_table(tmp_path / "set" / "labels.csv", "picture,patient_id", [("a", "b")])
    with pytest.raises(SettingsError, match=r"labels\.csv: has no column 'image'; its columns: picture, patient_id"):
        Read(make_site(archive=FolderArchive(path=tmp_path / "set")))
