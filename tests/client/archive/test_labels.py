"""A hospital's label file is read as it is: columns or lists, its own words, keyed by picture or study."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from client.archive.identity import Secret
from client.archive.labelbook import LabelBook
from client.archive.labels import LabelRow, column_marks, key_type, listed_marks, read_labels, read_rows
from client.archive.manifest import Entry
from client.archive.settings import LabelSettings
from cxrbase_model.labels import Mark, Vocabulary
from cxrbase_model.settings import SettingsError

P, N, U = Mark.POSITIVE, Mark.NEGATIVE, Mark.UNCERTAIN


@pytest.mark.parametrize(
    ("cells", "marks"),
    [
        ({"Edema": "1.0", "Mass": "0", "Nodule": "-1.0", "Hernia": ""}, {"Edema": P, "Mass": N, "Nodule": U}),
        ({"Edema": "P", "Mass": "n", "Nodule": "U", "Hernia": "NaN"}, {"Edema": P, "Mass": N, "Nodule": U}),
        ({"Edema": " yes ", "Mass": "False"}, {"Edema": P, "Mass": N}),
        ({"reader": "Dr. Who", "Edema": "1"}, {"Edema": P}),
    ],
)
def test_columns_hold_one_word_each(cells: dict[str, str], marks: dict[str, Mark]) -> None:
    assert column_marks(cells.items(), LabelSettings(ignore=("reader",))) == marks


@pytest.mark.parametrize(
    ("cell", "marks"),
    [
        ("Edema|Mass?", {"Edema": P, "Mass": U}),
        (" Edema | ", {"Edema": P}),
        ("", {}),
        ("None", {}),
    ],
)
def test_a_list_names_what_is_there(cell: str, marks: dict[str, Mark]) -> None:
    assert listed_marks(cell, LabelSettings(list="findings")) == marks


def test_separator_and_doubt_are_the_hospitals() -> None:
    settings = LabelSettings(list="findings", separator=";", doubt="(?)")
    assert listed_marks("Edema (?); Mass", settings) == {"Edema": U, "Mass": P}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (LabelSettings(), "uid"),
        (LabelSettings(key="Accession No"), "accession"),
        (LabelSettings(key="filename"), "file"),
        (LabelSettings(key="filename", by="uid"), "uid"),
    ],
)
def test_what_the_key_is_follows_from_its_name_or_the_settings(settings: LabelSettings, expected: str) -> None:
    assert key_type(settings) == expected


def test_a_word_nobody_listed_is_an_error_that_names_line_and_column_but_not_the_word(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("SOPInstanceUID,Edema\n1.2,1\n1.3,Mr. Smith\n")
    with pytest.raises(
        SettingsError, match=r"labels\.csv: line 3, column 'Edema': expected a word of labels\.positive"
    ) as caught:
        list(read_labels(tmp_path / "labels.csv", LabelSettings()))
    assert "Smith" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"UID,Edema\n1.2,1\n", r"has no column 'SOPInstanceUID'; its columns: UID, Edema"),
        (b"SOPInstanceUID,Edema\n1.2\n", "line 2 has another number of cells than the header"),
        (b"SOPInstanceUID,Edema\n\xff\xfe,1\n", "is not a CSV file in UTF-8"),
    ],
)
def test_a_file_that_is_no_such_table_is_named(tmp_path: Path, text: bytes, line: str) -> None:
    (tmp_path / "labels.csv").write_bytes(text)
    with pytest.raises(SettingsError, match=line):
        list(read_labels(tmp_path / "labels.csv", LabelSettings()))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"labels\.csv: cannot be read \(No such file or directory\)"):
        list(read_rows(tmp_path / "labels.csv"))


def test_byte_order_marks_accents_and_gzip_are_read(tmp_path: Path) -> None:
    (tmp_path / "labels.csv.gz").write_bytes(gzip.compress("Überschrift,b\nä,1\n".encode("utf-8-sig")))
    assert list(read_rows(tmp_path / "labels.csv.gz")) == [{"Überschrift": "ä", "b": "1"}]


def entry(name: str, uid: bytes | None = None, accession: bytes | None = None) -> Entry:
    return Entry(name, 1, 1, "", "", uid=uid, accession=accession)


class TestLabelBook:
    secret = Secret(b"s" * 32)

    def book(self, *rows: LabelRow, uncertain: str = "ignore") -> LabelBook:
        book = LabelBook(Vocabulary(("Edema",)), uncertain, self.secret)
        for row in rows:
            book.add(row)
        return book

    def test_a_picture_is_found_by_uid_file_name_or_accession(self) -> None:
        book = self.book(
            LabelRow("uid", "1.2", {"Edema": P}),
            LabelRow("file", "a/b.png", {"Edema": N}),
            LabelRow("file", "c.png", {"Edema": P}),
            LabelRow("file", "d", {"Edema": N}),
            LabelRow("accession", "A1", {"Edema": P}),
        )
        entries = [
            entry("x", uid=self.secret.key("uid", "1.2")),
            entry("a/b.png"),
            entry("z/c.png"),
            entry("pack.zip!d.dcm"),
            entry("y", uid=b"other", accession=self.secret.key("accession", "A1")),
            entry("nothing"),
        ]
        labels, matched = book.labels(entries)
        np.testing.assert_array_equal(labels[:, 0], np.array([1, 0, 1, 0, 1, np.nan], np.float32))
        assert matched == 5

    def test_a_short_name_that_two_files_have_finds_neither(self) -> None:
        labels, matched = self.book(LabelRow("file", "IM1", {"Edema": P})).labels([entry("a/IM1"), entry("b/IM1")])
        assert np.isnan(labels).all()
        assert matched == 0

    @pytest.mark.parametrize(("policy", "value"), [("ignore", np.nan), ("soft", 0.5), ("ones", 1.0), ("zeros", 0.0)])
    def test_rows_that_disagree_are_uncertain(self, policy: str, value: float) -> None:
        rows = [LabelRow("file", "a", {"Edema": P}), LabelRow("file", "a", {"Edema": N}), LabelRow("file", "a", {})]
        labels, _ = self.book(*rows, uncertain=policy).labels([entry("a")])
        np.testing.assert_array_equal(labels, np.array([[value]], np.float32))

    def test_rows_that_agree_or_add_are_merged(self) -> None:
        rows = [LabelRow("file", "a", {}), LabelRow("file", "a", {"Edema": P}), LabelRow("file", "a", {"Edema": P})]
        assert self.book(*rows).labels([entry("a")])[0][0, 0] == 1.0


def test_a_list_of_a_reader_who_looks_for_everything_says_what_is_absent() -> None:
    settings = LabelSettings(list="Befunde", absent="negative", names={"Erguss": "Effusion", "Herd": "Nodule"})
    assert listed_marks("Erguss?", settings) == {"Erguss": U, "Herd": Mark.NEGATIVE}
    assert listed_marks("", settings) == {}
