"""SITE.yaml is checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.archive.settings import FolderArchive
from client.site import read_site
from cxrbase_model.settings import SettingsError


def write(folder: Path, text: str) -> Path:
    (folder / "SITE.yaml").write_text(text, encoding="utf-8")
    return folder / "SITE.yaml"


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    site = read_site(
        write(
            tmp_path,
            "schema: 1\nsite: a\narchive: {kind: folder, path: pictures}\nlabels: {file: l.csv}\nrules: /r.yaml\n",
        )
    )
    assert site.archive == FolderArchive(path=tmp_path / "pictures")
    assert site.labels.file == tmp_path / "l.csv"
    assert site.rules == Path("/r.yaml")
    assert site.cache_folder == tmp_path / "private" / "cache"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("site: a\narchive: {kind: dicom, path: x}", "schema: is required"),
        ("schema: 2\nsite: a\narchive: {kind: dicom, path: x}", "schema: expected one of 1; found 2"),
        (
            "schema: 1\nsite: St. Mary\narchive: {kind: dicom, path: x}",
            "site: expected 1 to 64 letters, digits, - and _",
        ),
        (
            "schema: 1\nsite: a\narchive: {kind: dcm, path: x}",
            r"archive\.kind: expected one of dicom, folder, nih, .*; found 'dcm'",
        ),
        ("schema: 1\nsite: a\narchive: {kind: dicom}", r"archive\.path: is required"),
        (
            "schema: 1\nsite: a\narchive: {kind: dicom, path: x}\nminimum_cell: 0",
            "minimum_cell: expected 1 to 1000, found 0",
        ),
        (
            "schema: 1\nsite: a\narchive: {kind: dicom, path: x}\nlabels: {nams: {}}",
            r"labels\.nams: unknown key; did you mean names\?",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(SettingsError, match=r"SITE\.yaml: " + line):
        read_site(write(tmp_path, text))
