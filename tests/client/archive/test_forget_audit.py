"""A forgotten patient leaves no trace, and the audit finds what should not be in a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from client.archive import finish as finish_module
from client.archive.audit import audit
from client.archive.cache import CacheError, verify_cache
from client.archive.forget import forget
from client.archive.identity import load_secret
from client.archive.ingest import ingest
from client.archive.reasons import Reason
from client.archive.settings import LabelSettings
from client.archive.sources import SourceLost
from client.dataset import Cache
from client.feedback import Residual
from client.moments import Moments
from client.own import Own
from client.site import Site
from cxrbase_model.messages import Task
from cxrbase_model.plan import DataSpec

ROOT = "1.2.826.0.1.3680043.10.999"


@pytest.fixture
def site(tmp_path: Path, make_site: Callable[..., Site], write_radiograph: Callable[..., Path], spec: DataSpec) -> Site:
    """An ingested site of six pictures of three patients, with labels."""
    for number in range(6):
        write_radiograph(tmp_path / "dicom" / f"Verylongname{number // 2}" / f"IM{number:06d}.dcm", number)
    rows = "".join(f"{ROOT}.3.{number},{number % 2}\n" for number in range(6))
    (tmp_path / "labels.csv").write_text(f"SOPInstanceUID,Cardiomegaly\n{rows}")
    site = make_site(labels=LabelSettings(file=tmp_path / "labels.csv"))
    ingest(site, spec)
    return site


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def pictures_of(cache: Cache) -> dict[bytes, bytes]:
    """Of every picture its labels and split."""
    return {
        cache.pixels(np.array([row])).tobytes(): cache.labels[row].tobytes() + bytes([cache.splits[row]])
        for row in range(len(cache))
    }


def failures(site: Site) -> list[str]:
    return [check.text for check in audit(site) if not check.passed]


class TestForget:
    def test_pixels_labels_keys_and_names_of_the_patient_go_and_all_else_stays(self, site: Site) -> None:
        before = pictures_of(Cache.open(site.cache_folder))
        key = load_secret(site.private).key("patient", "PAT-000001")
        done = forget(site, "PAT-000001")
        assert (done.files, done.pictures) == (2, 2)
        after = pictures_of(Cache.open(site.cache_folder))
        gone = [picture for picture in before if picture not in after]
        assert len(gone) == 2
        assert after.items() < before.items()
        assert b"Verylongname1" not in everything(site.private)
        shards = everything(site.cache_folder)
        assert not any(picture in shards for picture in gone)
        assert key not in shards
        verify_cache(site.cache_folder)
        assert failures(site) == []

    def test_later_ingests_leave_the_patient_out_and_keep_no_name(self, site: Site, spec: DataSpec) -> None:
        forget(site, "PAT-000001")
        for again in (False, True):
            summary = ingest(site, spec, again=again)
            assert summary.used == 4
            assert summary.excluded == {Reason.FORGOTTEN: 2}
        assert b"Verylongname1" not in everything(site.private)

    def test_the_archive_is_not_needed_and_not_touched(self, site: Site, tmp_path: Path) -> None:
        before = everything(tmp_path / "dicom")
        (tmp_path / "dicom").rename(tmp_path / "unplugged")
        assert forget(site, "PAT-000000").pictures == 2
        assert everything(tmp_path / "unplugged") == before

    def test_a_forgetting_that_was_killed_is_ended_by_the_next(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = pictures_of(Cache.open(site.cache_folder))
        with monkeypatch.context() as patch:
            patch.setattr(finish_module, "write_cache", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                forget(site, "PAT-000001")
        assert pictures_of(Cache.open(site.cache_folder)) == before
        forget(site, "PAT-000001")
        assert len(Cache.open(site.cache_folder)) == 4
        assert len(everything(site.cache_folder.parent).split(b"Verylongname1")) == 1

    def test_pictures_that_wait_in_the_spool_are_removed(
        self, site: Site, tmp_path: Path, write_radiograph: Callable[..., Path]
    ) -> None:
        spooled = site.private / "spool" / "Verylongname2" / "IM000004.dcm"
        write_radiograph(spooled, 4)
        assert forget(site, "PAT-000002").spooled == 1
        assert not spooled.exists()

    def test_what_training_has_kept_goes_too(self, site: Site) -> None:
        task = Task("pretrain", "run", 1, "mae", 1, "mae", "text", "digest")
        for kept in (Moments(site.private, task), Residual(site.private, task), Own(site.private, task)):
            kept.keep({"w": torch.ones(2)})
        folders = [site.private / name for name in ("optimizer", "residual", "own")]
        assert all(folder.exists() for folder in folders)
        forget(site, "PAT-000001")
        assert not any(folder.exists() for folder in folders)

    def test_an_unknown_patient_is_remembered_and_changes_nothing(self, site: Site) -> None:
        before = pictures_of(Cache.open(site.cache_folder))
        assert forget(site, "PAT-999999").files == 0
        assert pictures_of(Cache.open(site.cache_folder)) == before

    def test_where_nothing_was_ingested_there_is_nothing_to_forget(
        self, make_site: Callable[..., Site], tmp_path: Path
    ) -> None:
        with pytest.raises(CacheError, match="nothing was ingested here"):
            forget(make_site(private=tmp_path / "new"), "PAT-000001")


class TestAudit:
    def test_an_honest_cache_passes(self, site: Site) -> None:
        checks = audit(site)
        assert [check.text for check in checks if not check.passed] == []
        assert any("6 of 6 pictures that were rendered again are byte for byte" in check.text for check in checks)

    def test_a_stray_file_is_found(self, site: Site) -> None:
        (site.cache_folder / "notes.txt").write_text("x")
        (site.cache_folder / "notes.txt").chmod(0o600)
        assert failures(site) == ["the cache folder holds more than it should: notes.txt; run ingest to the end"]

    @pytest.mark.parametrize("encoding", ["ascii", "utf-16-le", "utf-16-be"])
    def test_a_name_behind_the_pictures_is_found_in_any_encoding(self, site: Site, encoding: str) -> None:
        (shard,) = site.cache_folder.glob("*.u8")
        with shard.open("ab") as file:
            file.write("Verylongname1".encode(encoding))
        found = failures(site)
        assert "the cache folder holds more than it should: pixels-00001.u8; run ingest to the end" in found
        assert "pixels holds 1 texts that also stand in the archive's headers or file names" in found

    def test_a_name_in_cache_json_is_found(self, site: Site) -> None:
        path = site.cache_folder / "cache.json"
        path.write_bytes(path.read_bytes().rstrip()[:-1] + b', "x": "Gwendoline"}\n')
        found = failures(site)
        assert "cache.json holds more than its typed contents" in found
        assert "cache.json holds 1 texts that also stand in the archive's headers or file names" in found

    def test_files_that_others_can_read_are_found(self, site: Site) -> None:
        (site.private / "exclusions.csv").chmod(0o644)
        assert failures(site) == ["1 files of the private folder can be read by others, such as exclusions.csv"]

    def test_pixels_that_are_not_the_archives_are_found(
        self, site: Site, tmp_path: Path, write_radiograph: Callable[..., Path]
    ) -> None:
        write_radiograph(tmp_path / "dicom" / "Verylongname0" / "IM000000.dcm", 77)
        assert failures(site) == ["5 of 6 pictures that were rendered again are byte for byte those of the cache"]

    def test_without_the_archive_there_is_no_proof(self, site: Site, tmp_path: Path) -> None:
        (tmp_path / "dicom").rename(tmp_path / "unplugged")
        with pytest.raises(SourceLost):
            audit(site)
