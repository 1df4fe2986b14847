"""Archives are listed without opening a picture, zip files included."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from client.archive.reasons import Excluded, Reason
from client.archive.sources import DicomTree, Item, SourceLost


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "IM1").write_bytes(b"one")
    (tmp_path / "two.dcm").write_bytes(b"two")
    with zipfile.ZipFile(tmp_path / "pack.ZIP", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/three.dcm", b"three")
        file.writestr("x/", b"")
    return tmp_path


def by_key(top: Path) -> dict[str, Item]:
    return {item.key: item for item in DicomTree(top).items()}


def test_every_file_and_zip_member_is_an_item_that_can_be_read(tree: Path) -> None:
    items = by_key(tree)
    assert {key: item.read(100) for key, item in items.items()} == {
        "a/b/IM1": b"one", "two.dcm": b"two", "pack.ZIP!x/three.dcm": b"three",
    }  # fmt: skip


def test_a_single_zip_file_is_an_archive(tree: Path) -> None:
    assert list(by_key(tree / "pack.ZIP")) == ["pack.ZIP!x/three.dcm"]


def test_an_item_changes_with_its_file_or_member(tree: Path) -> None:
    before = by_key(tree)
    os.utime(tree / "two.dcm", ns=(1, 1))
    with zipfile.ZipFile(tree / "pack.ZIP", "w") as file:
        file.writestr("x/three.dcm", b"THREE")
        file.writestr("x/four.dcm", b"four")
    after = by_key(tree)
    for key in ("two.dcm", "pack.ZIP!x/three.dcm"):
        assert before[key].changed != after[key].changed
    assert before["a/b/IM1"] == after["a/b/IM1"]


def test_links_are_followed_once_and_dangling_ones_left_out(tree: Path) -> None:
    (tree / "loop").symlink_to(tree)
    (tree / "lost").symlink_to(tree / "nowhere")
    assert len(by_key(tree)) == 3


def test_a_file_that_is_larger_than_the_limit_or_than_it_says_is_too_large(tree: Path) -> None:
    for item in (by_key(tree)["two.dcm"], Item("two.dcm", 1, 0, tree / "two.dcm")):
        with pytest.raises(Excluded) as caught:
            item.read(2)
        assert caught.value.reason == Reason.TOO_LARGE


def test_a_zip_bomb_is_not_unpacked_beyond_the_limit(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(50 << 20))
    (item,) = DicomTree(tmp_path).items()
    lying = Item(item.key, 10, item.changed, item.path, item.member)
    for bomb in (item, lying):
        with pytest.raises(Excluded) as caught:
            bomb.read(1 << 20)
        assert caught.value.reason == Reason.TOO_LARGE


def test_a_damaged_zip_is_one_file_and_a_damaged_member_unreadable(tree: Path) -> None:
    whole = (tree / "pack.ZIP").read_bytes()
    (tree / "broken.zip").write_bytes(whole[:20])
    (tree / "pack.ZIP").write_bytes(whole.replace(b"three.dcm", b"tHree.dcm", 1))
    items = by_key(tree)
    assert items["broken.zip"].read(100) == whole[:20]
    with pytest.raises(Excluded) as caught:
        items["pack.ZIP!x/three.dcm"].read(100)
    assert caught.value.reason == Reason.UNREADABLE


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = DicomTree(tmp_path / "gone")
    assert not source.present()
    with pytest.raises(SourceLost, match=r"archive\.path: .*gone is not there"):
        list(source.items())
