"""An archive becomes a cache: every file used or excluded, again and again the same, whatever interrupts it."""

from __future__ import annotations

import csv
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.archive import ingest as ingest_module
from client.archive.ingest import ingest
from client.archive.reasons import Reason
from client.archive.settings import LabelSettings
from client.archive.sources import SourceLost
from client.archive.stopped import IngestStopped
from client.dataset import Cache
from client.site import Compute, Limits, Site
from cxrbase_model.plan import DataSpec
from cxrbase_model.settings import SettingsError

ROOT = "1.2.826.0.1.3680043.10.999"

MakeSite = Callable[..., Site]
Radiograph = Callable[..., Path]


@pytest.fixture
def archive(tmp_path: Path, write_radiograph: Radiograph) -> Path:
    """Eight pictures of four patients, nested, one without ending, and one of each dirt."""
    top = tmp_path / "dicom"
    for number in range(7):
        write_radiograph(top / f"P{number // 2}" / f"study{number}" / ("IM" if number == 3 else "IM.dcm"), number)
    packed = write_radiograph(tmp_path / "packed.dcm", 7)
    with zipfile.ZipFile(top / "more.zip", "w") as file:
        file.write(packed, "inner/folder/IM7")
    write_radiograph(top / "copy.dcm", 1)
    write_radiograph(top / "same pixels.dcm", 2, SOPInstanceUID=f"{ROOT}.3.99")
    write_radiograph(top / "lateral.dcm", 10, ViewPosition="LL")
    write_radiograph(top / "ct.dcm", 11, Modality="CT")
    write_radiograph(top / "nobody.dcm", 12, PatientID="")
    whole = write_radiograph(top / "cut.dcm", 13).read_bytes()
    (top / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    (top / "notes.txt").write_text("Dear colleague, these are the pictures of Verylongname.")
    return top


def contents(cache: Cache) -> tuple[bytes, ...]:
    """Everything of a cache that a training sees."""
    rows = np.arange(len(cache))
    groups = (array.tobytes() for array in cache.groups.values())
    return (
        cache.pixels(rows).tobytes(),
        cache.labels.tobytes(),
        cache.patients.tobytes(),
        cache.splits.tobytes(),
        *groups,
    )


def listed(site: Site) -> dict[str, str]:
    with (site.private / "exclusions.csv").open(newline="") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


def test_every_file_is_used_or_excluded_with_its_reason(archive: Path, make_site: MakeSite, spec: DataSpec) -> None:
    site = make_site()
    summary = ingest(site, spec)
    reasons = listed(site)
    assert summary.used == 8
    assert summary.used + sum(summary.excluded.values()) == 15 == summary.new
    assert reasons["lateral.dcm"] == Reason.LATERAL
    assert reasons["ct.dcm"] == Reason.MODALITY
    assert reasons["nobody.dcm"] == Reason.NO_PATIENT
    assert reasons["notes.txt"] == Reason.NOT_DICOM
    assert sorted(reasons.values()).count(Reason.DUPLICATE_UID) == 1
    assert sorted(reasons.values()).count(Reason.DUPLICATE_PIXELS) == 1
    assert "cut.dcm" in reasons
    cache = Cache.open(site.cache_folder)
    assert len(cache) == 8
    assert len(np.unique(cache.patients)) == summary.patients == 4
    assert cache.pixels(np.arange(8)).shape == (8, 32, 32)


def test_pictures_of_a_patient_share_a_split(
    tmp_path: Path, write_radiograph: Radiograph, make_site: MakeSite, spec: DataSpec
) -> None:
    for number in range(30):
        write_radiograph(tmp_path / "dicom" / str(number), number)
    site = make_site()
    ingest(site, spec)
    cache = Cache.open(site.cache_folder)
    for patient in np.unique(cache.patients):
        assert len(set(cache.splits[cache.patients == patient])) == 1
    assert set(cache.splits) == {0, 1, 2}


def test_header_values_are_kept_as_classes_only(archive: Path, make_site: MakeSite, spec: DataSpec) -> None:
    site = make_site()
    ingest(site, spec)
    cache = Cache.open(site.cache_folder)
    shown = {name: {cache.group_names[name][code] for code in codes} for name, codes in cache.groups.items()}
    assert shown == {"sex": {"female"}, "age_band": {"40-49"}, "view": {"PA"}, "scanner": {"cr-fujifilm"}}


def test_worker_counts_and_file_names_do_not_change_a_cache(
    archive: Path, tmp_path: Path, make_site: MakeSite, spec: DataSpec
) -> None:
    caches = []
    for workers in (1, 2):
        site = make_site(private=tmp_path / f"private{workers}", compute=Compute(workers=workers))
        (site.private / "secret.key").write_text("5" * 64)
        ingest(site, spec)
        caches.append(contents(Cache.open(site.cache_folder)))
        if workers == 1:
            (archive / "P0").rename(archive / "Z0")
    assert caches[0] == caches[1]


def test_another_secret_gives_other_keys_and_another_order(
    archive: Path, tmp_path: Path, make_site: MakeSite, spec: DataSpec
) -> None:
    orders = []
    for secret in ("5" * 64, "6" * 64):
        site = make_site(private=tmp_path / secret[:2])
        (site.private / "secret.key").write_text(secret)
        ingest(site, spec)
        orders.append(contents(Cache.open(site.cache_folder))[0])
    assert orders[0] != orders[1]


def test_a_second_ingest_reads_nothing_and_changes_nothing(archive: Path, make_site: MakeSite, spec: DataSpec) -> None:
    site = make_site()
    ingest(site, spec)
    before = contents(Cache.open(site.cache_folder))
    summary = ingest(site, spec)
    assert (summary.new, summary.unchanged) == (0, 15)
    assert contents(Cache.open(site.cache_folder)) == before


def test_new_changed_and_removed_files_are_noticed(
    archive: Path, tmp_path: Path, write_radiograph: Radiograph, make_site: MakeSite, spec: DataSpec
) -> None:
    site = make_site()
    ingest(site, spec)
    write_radiograph(archive / "new.dcm", 20)
    write_radiograph(archive / "P0" / "study0" / "IM.dcm", 21)
    (archive / "P2" / "study4" / "IM.dcm").unlink()
    summary = ingest(site, spec)
    assert (summary.new, summary.used) == (2, 8)
    assert listed(site)["P2/study4/IM.dcm"] == Reason.GONE
    whole = make_site(private=tmp_path / "fresh")
    (whole.private / "secret.key").write_bytes((site.private / "secret.key").read_bytes())
    ingest(whole, spec)
    assert contents(Cache.open(site.cache_folder)) == contents(Cache.open(whole.cache_folder))
    sizes = [sum(path.stat().st_size for path in one.cache_folder.glob("*.u8")) for one in (site, whole)]
    assert sizes == [8 * 32 * 32] * 2


def test_a_copy_takes_the_place_of_a_file_that_has_gone(archive: Path, make_site: MakeSite, spec: DataSpec) -> None:
    site = make_site()
    ingest(site, spec)
    before = Cache.open(site.cache_folder)
    (archive / "P0" / "study1" / "IM.dcm").unlink()  # the same picture as copy.dcm
    ingest(site, spec)
    assert contents(Cache.open(site.cache_folder)) == contents(before)
    assert "copy.dcm" not in listed(site)


def test_an_interrupted_ingest_goes_on_and_gives_the_same(
    archive: Path, tmp_path: Path, make_site: MakeSite, spec: DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "_COMMIT_ROWS", 2)
    secret = "7" * 64
    whole, broken = make_site(private=tmp_path / "whole"), make_site(private=tmp_path / "broken")
    for site in (whole, broken):
        (site.private / "secret.key").write_text(secret)
    ingest(whole, spec)

    def stop_at(limit: int) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if done == limit:
                raise KeyboardInterrupt

        return progress

    for limit in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            ingest(broken, spec, progress=stop_at(limit))
    summary = ingest(broken, spec)
    assert (summary.new, summary.unchanged) == (7, 8)
    assert contents(Cache.open(broken.cache_folder)) == contents(Cache.open(whole.cache_folder))


def test_another_picture_size_reads_everything_anew_and_other_findings_nothing(
    archive: Path, make_site: MakeSite, spec: DataSpec
) -> None:
    site = make_site()
    ingest(site, spec)
    other = DataSpec(findings=("Edema",), image_size=32, test=0.5)
    assert ingest(site, other).new == 0
    assert Cache.open(site.cache_folder).spec == other
    larger = DataSpec(findings=("Edema",), image_size=48)
    assert ingest(site, larger).new == 15
    assert Cache.open(site.cache_folder).pixels(np.array([0])).shape == (1, 48, 48)


def test_all_files_are_the_owners_alone(archive: Path, make_site: MakeSite, spec: DataSpec) -> None:
    site = make_site()
    ingest(site, spec)
    for path in (site.private, *site.private.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path.name


def test_an_archive_that_is_not_there_is_a_clear_stop_and_the_cache_stays(
    archive: Path, make_site: MakeSite, spec: DataSpec
) -> None:
    site = make_site()
    ingest(site, spec)
    before = contents(Cache.open(site.cache_folder))
    archive.rename(archive.with_name("unplugged"))
    with pytest.raises(SourceLost, match=r"archive\.path: .* is not there"):
        ingest(site, spec)
    archive.mkdir()
    with pytest.raises(SourceLost, match="holds no files; is it plugged in"):
        ingest(site, spec)
    assert contents(Cache.open(site.cache_folder)) == before


def test_losing_most_files_at_once_has_to_be_confirmed(
    tmp_path: Path, write_radiograph: Radiograph, make_site: MakeSite, spec: DataSpec
) -> None:
    for number in range(24):
        write_radiograph(tmp_path / "dicom" / str(number % 2) / str(number), number)
    site = make_site()
    ingest(site, spec)
    for path in (tmp_path / "dicom" / "0").iterdir():
        path.unlink()
    (tmp_path / "dicom" / "1" / "1").unlink()
    with pytest.raises(IngestStopped, match=r"13 of 24 known files are gone .*--accept-loss"):
        ingest(site, spec)
    assert ingest(site, spec, accept_loss=True).used == 11


def test_another_secret_than_last_time_is_refused(archive: Path, make_site: MakeSite, spec: DataSpec) -> None:
    site = make_site()
    ingest(site, spec)
    (site.private / "secret.key").write_text("8" * 64)
    with pytest.raises(SettingsError, match=r"secret\.key is another one than at the last ingest"):
        ingest(site, spec)


def test_a_file_over_the_limit_is_excluded_unread(archive: Path, make_site: MakeSite, spec: DataSpec) -> None:
    with (archive / "huge.dcm").open("wb") as file:
        file.truncate(3 << 20)
    site = make_site(limits=Limits(seconds=20, memory=1024, file=1))
    ingest(site, spec)
    assert listed(site)["huge.dcm"] == Reason.TOO_LARGE


def test_a_label_file_that_is_not_understood_stops_the_ingest_before_any_file_is_read(
    archive: Path, tmp_path: Path, make_site: MakeSite, spec: DataSpec
) -> None:
    (tmp_path / "labels.csv").write_text("SOPInstanceUID,Herz\n1.2.3,1\n")
    site = make_site(labels=LabelSettings(file=tmp_path / "labels.csv"))
    with pytest.raises(SettingsError, match=r"'Herz' is no known finding; nearest: "):
        ingest(site, spec, progress=lambda done, total: pytest.fail("a file was read"))


def test_labels_join_by_uid_accession_or_file(
    archive: Path, tmp_path: Path, make_site: MakeSite, spec: DataSpec
) -> None:
    keys = {"SOPInstanceUID": f"{ROOT}.3.5", "AccessionNumber": "ACC00000005", "path": "P2/study5/IM.dcm"}
    for column, key in keys.items():
        (tmp_path / "labels.csv").write_text(f"{column},Cardiomegaly\n{key},1\nnobody's,0\n")
        site = make_site(labels=LabelSettings(file=tmp_path / "labels.csv", key=column))
        summary = ingest(site, spec)
        assert (summary.labelled, summary.unmatched) == (1, 1)
        assert summary.findings["Cardiomegaly"]["positive"] == 1
        assert summary.findings["No Finding"]["negative"] == 1


def test_two_ingests_of_a_site_at_once_are_refused(archive: Path, make_site: MakeSite, spec: DataSpec) -> None:
    site = make_site()

    def second(done: int, total: int) -> None:
        with pytest.raises(IngestStopped, match="another ingest of this site is running"):
            ingest(site, spec)

    assert ingest(site, spec, progress=second).used == 8


def test_the_review_page_shows_what_was_used_and_left_out(archive: Path, make_site: MakeSite, spec: DataSpec) -> None:
    site = make_site()
    summary = ingest(site, spec)
    path = site.private / "ingest.html"
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert text.count("data:image/png;base64,") == summary.used == 8
    assert all(f"<td>{reason}</td>" in text for reason in summary.excluded)
    assert "lateral.dcm" in text
    assert "cr-fujifilm, 8 pictures" in text
    assert "40-49" in text
    outside = text.replace("data:image/png", "").replace("http-equiv", "")
    assert not any(fetched in outside for fetched in ("http:", "https:", 'src="/', "@import", "<script"))


def test_the_review_page_escapes_what_files_are_called(
    tmp_path: Path, make_site: MakeSite, spec: DataSpec, write_radiograph: Radiograph
) -> None:
    write_radiograph(tmp_path / "dicom" / "<script>alert(1).dcm", 1, Modality="CT")
    write_radiograph(tmp_path / "dicom" / "x.dcm", 2, ManufacturerModelName="<b>bold", Manufacturer="x")
    site = make_site()
    ingest(site, spec)
    text = (site.private / "ingest.html").read_text()
    assert "<script>" not in text
    assert "<b>bold" not in text
    assert "&lt;script&gt;alert(1).dcm" in text


def test_an_ingest_that_uses_nothing_says_so_on_its_page(
    tmp_path: Path, make_site: MakeSite, spec: DataSpec, write_radiograph: Radiograph
) -> None:
    write_radiograph(tmp_path / "dicom" / "ct.dcm", 1, Modality="CT")
    site = make_site()
    ingest(site, spec)
    assert "Nothing is used." in (site.private / "ingest.html").read_text()
