"""Where a hospital's pictures and labels are, and how they are written down: the `archive:` and `labels:` of SITE.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.archive.pacs.settings import DicomwebArchive, DimseArchive
from cxrbase_model.settings import knob


@dataclass(frozen=True)
class DicomArchive:
    """A tree of DICOM files, however nested and named, zip files among them."""

    kind: str = knob("dicom", choices=("dicom",), why="names the type of archive")
    path: Path = knob(why="the top folder, or one .zip file")
    patient: str = knob(
        "id",
        choices=("id", "study"),
        why="what tells patients apart: (0010,0020) Patient ID, or the study in archives whose IDs were blanked",
    )


@dataclass(frozen=True)
class FolderArchive:
    """Pictures with one CSV: `image` (path below the folder), `patient_id`, and where known `view`, `sex`, `age`, findings."""

    kind: str = knob("folder", choices=("folder",), why="names the type of archive")
    path: Path = knob(why="the folder that holds the CSV and the pictures")
    table: str = knob("labels.csv", why="the CSV in that folder")


@dataclass(frozen=True)
class NihArchive:
    """NIH ChestX-ray14 as published: Data_Entry_2017*.csv and pictures in images*/ folders."""

    kind: str = knob("nih", choices=("nih",), why="names the type of archive")
    path: Path = knob(why="the folder that holds Data_Entry_2017*.csv")


@dataclass(frozen=True)
class ChexpertArchive:
    """CheXpert as published: train.csv, valid.csv and the pictures they name; 1, 0, -1 and blank labels."""

    kind: str = knob("chexpert", choices=("chexpert",), why="names the type of archive")
    path: Path = knob(why="the folder that holds train.csv")


@dataclass(frozen=True)
class MimicArchive:
    """MIMIC-CXR-JPG as published: files/p10/..., the metadata table and the CheXpert-labeller table."""

    kind: str = knob("mimic", choices=("mimic",), why="names the type of archive")
    path: Path = knob(why="the folder that holds files/ and mimic-cxr-2.0.0-*.csv(.gz)")


@dataclass(frozen=True)
class VindrArchive:
    """VinDr-CXR as published: train/ and test/ DICOM files, image-level labels in annotations/."""

    kind: str = knob("vindr", choices=("vindr",), why="names the type of archive")
    path: Path = knob(why="the folder that holds annotations/, train/ and test/")


@dataclass(frozen=True)
class PadchestArchive:
    """PadChest as published: the labels CSV and 16-bit PNG pictures, in numbered folders or zip files."""

    kind: str = knob("padchest", choices=("padchest",), why="names the type of archive")
    path: Path = knob(why="the folder that holds PADCHEST_chest_x_ray_images_labels_*.csv(.gz)")


@dataclass(frozen=True)
class RsnaArchive:
    """RSNA Pneumonia Detection Challenge as published: stage_2_*.csv and DICOM files."""

    kind: str = knob("rsna", choices=("rsna",), why="names the type of archive")
    path: Path = knob(why="the folder that holds stage_2_train_labels.csv")


Archive = (
    DicomArchive
    | FolderArchive
    | NihArchive
    | ChexpertArchive
    | MimicArchive
    | VindrArchive
    | PadchestArchive
    | RsnaArchive
    | DicomwebArchive
    | DimseArchive
)


@dataclass(frozen=True)
class LabelSettings:
    """How the hospital writes its labels down. Archives of public layouts bring their own file and marks."""

    file: Path | None = knob(None, why="CSV of labels; none where the archive brings its own, or has none")
    key: str = knob("SOPInstanceUID", why="the column that names the picture")
    by: str = knob(
        "auto",
        choices=("auto", "uid", "accession", "file"),
        why="what that column holds: SOP Instance UID, Accession Number, or the file's name or path; auto goes by its name",
    )
    list: str = knob("", why="the column that lists the findings of a row; empty where each finding has its own column")
    separator: str = knob("|", why="what parts the findings of such a list")
    doubt: str = knob("?", why="what ends an uncertain finding in such a list")
    absent: str = knob(
        "unknown",
        choices=("unknown", "negative"),
        why="what a finding of `names` is that such a list leaves out; negative where readers look for each of them",
    )
    names: dict[str, str] = knob(factory=dict, why="the hospital's names of findings to the plan's, where they differ")
    ignore: tuple[str, ...] = knob((), why="columns and findings of the file that are not to be learned")
    positive: tuple[str, ...] = knob(("1", "p", "pos", "positive", "y", "yes", "true"), why="cells that say present")
    negative: tuple[str, ...] = knob(("0", "n", "neg", "negative", "no", "false"), why="cells that say absent")
    uncertain: tuple[str, ...] = knob(("-1", "u", "uncertain", "?"), why="cells that say uncertain")
    missing: tuple[str, ...] = knob(("", "nan", "na", "n/a", "none"), why="cells that say nothing")
