"""The bundle is the same bytes everywhere, Flower takes it, and what is no bundle is refused before anything of it is used."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from flwr.cli.install import install_from_fab
from flwr.common.config import get_fab_config

from cxrbase_model.bundle import (
    BundleError,
    Difference,
    bundle_digest,
    bundle_files,
    differences,
    pack_bundle,
    release_bundle,
    release_files,
)

FILES = {"client/app.py": b"one\ntwo\nthree\n", "server/app.py": b"", "pyproject.toml": b"[project]\n"}
HOUSE = Path(__file__).parents[2]


def zipped(*files: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # of doubled names
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def test_the_same_files_give_the_same_bytes_in_whatever_order_they_come() -> None:
    bundle = pack_bundle(FILES)
    assert pack_bundle(dict(reversed(FILES.items()))) == bundle
    assert bundle_digest(bundle) == hashlib.sha256(bundle).hexdigest()
    assert pack_bundle(FILES | {"server/app.py": b"\n"}) != bundle
    assert pack_bundle({("other.toml" if name == "pyproject.toml" else name): FILES[name] for name in FILES}) != bundle


def test_a_copy_of_the_release_elsewhere_gives_the_same_digest(tmp_path: Path) -> None:
    for package in ("client", "cxrbase_model", "server"):
        shutil.copytree(
            HOUSE / package, tmp_path / package, copy_function=shutil.copy, ignore=lambda *_: {"__pycache__"}
        )
    code = "import cxrbase_model, sys; from cxrbase_model.bundle import *; print(cxrbase_model.__file__, bundle_digest(release_bundle()))"
    environment = {"PYTHONPATH": str(tmp_path), "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "LC_ALL": "C"}
    command = [sys.executable, "-B", "-c", code]
    told = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()
    assert told == [str(tmp_path / "cxrbase_model" / "__init__.py"), bundle_digest(release_bundle())]


def test_the_release_holds_the_three_packages_and_nothing_that_was_compiled() -> None:
    names = set(release_files())
    assert {"client/app.py", "server/app.py", "cxrbase_model/bundle.py", "pyproject.toml"} <= names
    assert {name.split("/")[0] for name in names} == {"client", "server", "cxrbase_model", "pyproject.toml"}
    assert {Path(name).suffix for name in names} == {".py", ".html", ".toml"}


def test_the_bundle_gives_back_the_files_it_was_made_of() -> None:
    assert bundle_files(pack_bundle(FILES)) == dict(sorted(FILES.items()))
    assert bundle_files(release_bundle()) == release_files()


def test_flower_reads_the_bundle_of_the_release(tmp_path: Path) -> None:
    bundle = release_bundle()
    settings = get_fab_config(bundle)["tool"]["flwr"]["app"]
    assert settings["components"] == {"serverapp": "server.app:app", "clientapp": "client.app:app"}
    assert settings["config"].keys() == {"run-directory", "expected-hospitals"}
    installed = install_from_fab(bundle, tmp_path, skip_prompt=True)
    there = {str(path.relative_to(installed)): path.read_bytes() for path in installed.rglob("*") if path.is_file()}
    assert there == release_files()


@pytest.mark.parametrize(
    "name", ["../evil.py", "client/../../evil.py", "/etc/evil.py", "client\\..\\evil.py", "C:evil.py", "client//app.py", "client/./app.py", "./app.py", "."],
)  # fmt: skip
def test_a_path_that_leaves_the_bundle_or_has_two_spellings_is_refused(name: str) -> None:
    with pytest.raises(BundleError, match="below the bundle's own folder"):
        bundle_files(zipped(("client/app.py", b""), (name, b"import os")))


def test_a_doubled_name_is_refused() -> None:
    with pytest.raises(BundleError, match="each file once"):
        bundle_files(zipped(("client/app.py", b"shown"), ("client/app.py", b"run")))


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"\x00" * 4096, b"#!/bin/sh\n", pack_bundle(FILES)[:-30], pack_bundle(FILES)[:200]]
)
def test_what_is_no_zip_file_or_not_all_of_one_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="expected a bundle, a zip file"):
        bundle_files(data)


def test_an_encrypted_file_is_refused() -> None:
    bundle = bytearray(zipped(("client/app.py", b"x" * 50)))
    bundle[6] |= 1  # general purpose bit 0 (APPNOTE.TXT 4.4.4) of the local header
    bundle[bundle.index(b"PK\x01\x02") + 8] |= 1  # and of the central directory
    with pytest.raises(BundleError, match="expected a bundle"):
        bundle_files(bytes(bundle))


def test_what_is_too_large_is_refused_by_its_size_and_by_the_sizes_it_claims() -> None:
    with pytest.raises(BundleError, match="expected a bundle of at most"):
        bundle_files(b"\0" * ((10 << 20) + 1))
    half = bytes(6 << 20)
    with pytest.raises(BundleError, match="expected files of at most"):
        bundle_files(zipped(("a.py", half), ("b.py", half), method=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_file_that_inflates_beyond_what_it_claims_is_refused_before_it_fills_the_memory(method: int) -> None:
    honest = zipped(("bomb.py", bytes(64 << 20)), method=method)
    lie = honest.replace((64 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    tracemalloc.start()
    try:
        with pytest.raises(BundleError):
            bundle_files(lie)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_deflated_bundle_as_other_tools_write_it_is_read() -> None:
    assert bundle_files(zipped(*FILES.items(), method=zipfile.ZIP_DEFLATED)) == FILES


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_anywhere_gives_one_kind_of_error(method: int) -> None:
    whole, chance = zipped(*FILES.items(), method=method), random.Random(1)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 2, 4))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            bundle_files(bytes(damaged))
        except BundleError:
            refused += 1
    assert refused > 500


def test_a_file_without_a_name_is_refused() -> None:
    bundle = bytearray(zipped(("a", b"")))
    lengths = bundle.index(b"PK\x01\x02") + 28  # of the name and of the extra field (APPNOTE.TXT 4.3.12)
    bundle[lengths : lengths + 4] = bytes([0, 0, 1, 0])
    with pytest.raises(BundleError):
        bundle_files(bytes(bundle))


def test_differences_tell_what_was_added_removed_and_changed() -> None:
    bundle = {"client/app.py": b"one\n2\nthree\n", "client/new.py": b"import os\n", "pyproject.toml": b"[project]\n"}
    changed, added, removed = differences(bundle, FILES)
    assert (changed.path, changed.kind) == ("client/app.py", "changed")
    assert changed.diff.splitlines() == [
        "--- release/client/app.py", "+++ bundle/client/app.py", "@@ -1,3 +1,3 @@", " one", "-two", "+2", " three",
    ]  # fmt: skip
    assert (added.path, added.kind, added.diff.splitlines()[-1]) == ("client/new.py", "added", "+import os")
    assert removed == Difference("server/app.py", "removed", "")
    assert differences(FILES, FILES) == []


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    (difference,) = differences({"a.py": b"\xff\x00"}, {})
    assert difference.diff.splitlines()[-1] == "+\\xff\0"
