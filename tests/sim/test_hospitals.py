"""Simulated hospitals: real DICOM archives of three kinds, with their labels, their habits and their dirt."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from client.archive.labels import read_labels
from client.archive.settings import LabelSettings
from client.site import read_site
from cxrbase_model.labels import Mark, Vocabulary
from sim.hospitals import hospital_seed, write_hospitals
from sim.hospitals_dicom import instance_uid, radiograph_file
from sim.hospitals_labels import NAMES, label_file
from sim.hospitals_style import MOST_HOSPITALS, Picture, draw_census, style_of
from sim.phantom import FINDINGS, findings_of, radiograph

PICTURES = 8


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of three small hospitals."""
    out = tmp_path_factory.mktemp("phantoms")
    return [site.parent for site in write_hospitals(out, 3, PICTURES, seed=5)]


@pytest.fixture(scope="module")
def archives(hospitals: list[Path]) -> list[list[FileDataset]]:
    """The readable DICOM files of each hospital; a truncated one may be among them."""
    return [[data for path in _files(folder / "dicom") if (data := _read(path)) is not None] for folder in hospitals]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _read(path: Path) -> FileDataset | None:
    try:
        return pydicom.dcmread(path)
    except (InvalidDicomError, EOFError, UserWarning):  # pydicom warns of a truncated stream, an error in tests
        return None


def _decodes(data: FileDataset) -> bool:
    try:
        return data.pixel_array.shape == (data.Rows, data.Columns)
    except (ValueError, RuntimeError, EOFError, UserWarning):
        return False


def _frontal(data: FileDataset) -> bool:
    return data.get("ViewPosition") in ("PA", "AP")


@pytest.mark.parametrize(
    ("index", "syntax", "photometric", "allocated", "stored", "modality"),
    [
        (0, ExplicitVRLittleEndian, "MONOCHROME1", 16, 12, "CR"),
        (1, JPEG2000Lossless, "MONOCHROME2", 16, 16, "DX"),
        (2, RLELossless, "MONOCHROME2", 8, 8, "DX"),
    ],
)
def test_each_kind_of_hospital_stores_its_pictures_its_own_way(
    archives: list[list[FileDataset]],
    index: int,
    syntax: str,
    photometric: str,
    allocated: int,
    stored: int,
    modality: str,
) -> None:
    frontals = [data for data in archives[index] if _frontal(data) and _decodes(data)]
    assert len(frontals) == PICTURES + 1  # and the copy
    for data in frontals:
        assert data.file_meta.TransferSyntaxUID == syntax
        assert data.PhotometricInterpretation == photometric
        assert (data.BitsAllocated, data.BitsStored, data.Modality) == (allocated, stored, modality)
    assert ("RescaleSlope" in frontals[0]) == (index == 1)
    assert ("VOILUTSequence" in frontals[0]) == (index == 2)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_viewer_that_follows_the_standard_shows_the_picture_that_was_drawn(index: int) -> None:
    style = style_of(index, 0)
    picture = draw_census(style, 1, seed=3)[0]
    drawn = radiograph(picture.patient, picture.lesions, picture.pose, picture.scanner, np.random.default_rng(0))
    data = pydicom.dcmread(BytesIO(radiograph_file(style, picture, drawn, 3)))
    shown = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data).astype(np.float64)
    shown = (shown - shown.min()) / np.ptp(shown)
    shown = 1 - shown if data.PhotometricInterpretation == "MONOCHROME1" else shown
    expected = (drawn - drawn.min()) / np.ptp(drawn)
    assert np.abs(shown - expected).max() < 0.01


def test_headers_are_complete_and_invented(archives: list[list[FileDataset]]) -> None:
    needed = "PatientName PatientID PatientBirthDate PatientSex PatientAge AccessionNumber StudyDate BodyPartExamined"
    needed += " ViewPosition Manufacturer ImagerPixelSpacing BurnedInAnnotation StudyInstanceUID SeriesInstanceUID"
    for archive in archives:
        for data in filter(_frontal, archive):
            assert not [name for name in needed.split() if not data.get(name)]
            assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
            years = int(data.StudyDate[:4]) - int(data.PatientBirthDate[:4])
            assert years - int(data.PatientAge[:3]) in (0, 1)


def test_each_archive_holds_its_dirt(hospitals: list[Path], archives: list[list[FileDataset]]) -> None:
    for folder, archive in zip(hospitals, archives, strict=True):
        files = _files(folder / "dicom")
        assert sum(path.suffix == ".txt" for path in files) == 1
        contents = Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
        assert sorted(contents.values())[-2:] == [1, 2]
        assert sum(data.Modality == "CT" for data in archive) == 1
        assert sum(data.get("ViewPosition") == "LL" for data in archive) == 1
        broken = [path for path in files if path.suffix != ".txt" and not ((data := _read(path)) and _decodes(data))]
        assert len(broken) == 1


def test_some_files_have_no_extension(hospitals: list[Path]) -> None:
    assert any(not path.suffix for path in _files(hospitals[0] / "dicom"))


def test_the_client_reads_each_site_file_and_every_label(
    hospitals: list[Path], archives: list[list[FileDataset]]
) -> None:
    for folder, archive in zip(hospitals, archives, strict=True):
        site = read_site(folder / "SITE.yaml")
        assert site.site == folder.name
        vocabulary = Vocabulary(FINDINGS, site.labels.names, site.labels.ignore)
        assert site.labels.file is not None
        rows = list(read_labels(site.labels.file, site.labels))
        for row in rows:
            assert vocabulary.encode(row.marks, "ignore").shape == (len(FINDINGS),)
        keyword = {"uid": "SOPInstanceUID", "accession": "AccessionNumber"}[rows[0].by]
        assert {row.key for row in rows} <= {data.get(keyword) for data in archive}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_labels_say_what_is_drawn_but_for_the_uncertain_and_the_missing(index: int) -> None:
    style = style_of(index, 0)
    census = draw_census(style, 200, seed=2)
    rows = list(csv.reader(label_file(style, census, 2).splitlines()))
    cells = Counter(cell for row in rows[1:] for cell in row[1:])
    if style.labels == "list":
        assert cells[""] > 2
        assert sum("?" in cell for cell in cells) > 2
        assert set("|".join(cells).replace("?", "").split("|")) <= {*NAMES["list"].values(), ""}
        return
    positive, negative, uncertain = ("1", "0", "-1") if style.labels == "columns" else ("P", "N", "U")
    assert set(cells) == {positive, negative, uncertain, ""}
    total = sum(cells.values())
    assert 0.02 < cells[uncertain] / total < 0.1
    assert 0.02 < cells[""] / total < 0.16
    if style.labels == "columns":
        assert len(rows) - 1 < len(census)  # some pictures have no row at all


def test_no_label_contradicts_the_picture() -> None:
    style = style_of(0, 0)
    census = draw_census(style, 120, seed=9)
    shown = {instance_uid(style, picture, 9): findings_of(picture.lesions) for picture in census}
    ours = {theirs: finding for finding, theirs in NAMES["columns"].items()}
    for row in csv.DictReader(label_file(style, census, 9).splitlines()):
        truth = shown[row.pop("SOPInstanceUID")]
        for name, cell in row.items():
            if cell in ("0", "1"):
                assert (cell == "1") == (ours[name] in truth)


@pytest.mark.parametrize("index", range(MOST_HOSPITALS))
def test_every_finding_is_common_enough_in_every_hospital_to_be_measured(index: int) -> None:
    census = draw_census(style_of(index, 1), 320, hospital_seed(1, index))
    assert len(census) == 320
    shares = {finding: np.mean([finding in findings_of(one.lesions) for one in census]) for finding in FINDINGS}
    assert min(shares.values()) >= 0.12
    assert max(shares.values()) < 0.5


def test_patients_have_several_pictures_and_mostly_keep_their_findings() -> None:
    census = draw_census(style_of(0, 0), 320, seed=0)
    by_patient: dict[int, list[Picture]] = defaultdict(list)
    for picture in census:
        by_patient[picture.number].append(picture)
    assert 2.3 < len(census) / len(by_patient) < 3.2
    assert all(len({one.patient for one in pictures}) == 1 for pictures in by_patient.values())
    kept = [len({findings_of(one.lesions) for one in pictures}) == 1 for pictures in by_patient.values()]
    assert np.mean(kept) > 0.8
    for pictures in by_patient.values():
        studies = defaultdict(set)
        for one in pictures:
            studies[one.study].add(findings_of(one.lesions))
        assert all(len(findings) == 1 for findings in studies.values())  # one report, one truth


def test_hospitals_differ_and_have_names_of_their_own() -> None:
    styles = [style_of(index, 0) for index in range(MOST_HOSPITALS)]
    assert len({style.name for style in styles}) == MOST_HOSPITALS
    assert len({style.scanner for style in styles}) == MOST_HOSPITALS
    assert [style.encoding for style in styles[:4]] == ["mono1", "jpeg2000", "rle", "mono1"]


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path, hospitals: list[Path]) -> None:
    again = write_hospitals(tmp_path, 1, PICTURES, seed=5)[0].parent
    first = {path.relative_to(hospitals[0]): path.read_bytes() for path in _files(hospitals[0])}
    assert {path.relative_to(again): path.read_bytes() for path in _files(again)} == first


def test_progress_is_told_after_each_file(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    write_hospitals(tmp_path, 1, 2, seed=1, progress=lambda *step: told.append(step))
    assert told == [("riverside", done, 5) for done in range(1, 6)]  # 2 frontal, 1 truncated, 1 lateral, 1 CT


def test_a_folder_that_exists_is_not_mixed_with(tmp_path: Path) -> None:
    (tmp_path / "riverside").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        write_hospitals(tmp_path, 1, 2)


@pytest.mark.parametrize(("hospitals", "pictures"), [(0, 10), (17, 10), (3, 0)])
def test_numbers_out_of_range_are_refused(tmp_path: Path, hospitals: int, pictures: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        write_hospitals(tmp_path, hospitals, pictures)


def test_uncertain_marks_reach_the_client_as_uncertain(tmp_path: Path) -> None:
    style = style_of(1, 0)
    table = tmp_path / "labels.csv"
    table.write_text(label_file(style, draw_census(style, 200, seed=2), 2), encoding="utf-8")
    settings = LabelSettings(file=table, key="SOPInstanceUID", list="Befunde", names={})
    marks = Counter(mark for row in read_labels(table, settings) for mark in row.marks.values())
    assert marks[Mark.UNCERTAIN] > 5
    assert marks[Mark.POSITIVE] > 100
