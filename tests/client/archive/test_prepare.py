"""One file at a time: what is damaged, cut off or hostile is left out with its reason and costs next to nothing."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless

from client.archive.prepare import Job, Prepared, Settings, prepare
from client.archive.reasons import Reason
from client.archive.select import Rules
from client.archive.sources import Facts, Item
from client.site import Limits
from cxrbase_model.plan import DataSpec

Radiograph = Callable[..., Path]
MIB = 1 << 20
LIMIT = 16  # MiB for a file
MOST = (LIMIT + 8) * MIB  # reading takes the limit at once


@pytest.fixture
def outcome(spec: DataSpec, tmp_path: Path) -> Callable[..., Prepared]:
    """What comes of the bytes of a file: `outcome(data, **rules)`."""

    def run(data: bytes, **rules: Any) -> Prepared:
        path = tmp_path / "outcome.dcm"
        path.write_bytes(data)
        item = Item("outcome.dcm", len(data), 1, path)
        done = prepare(Job(item, Settings(spec, Rules(**rules), Limits(file=LIMIT))))
        assert isinstance(done, Prepared)
        return done

    return run


@pytest.fixture
def encoded(write_radiograph: Radiograph, tmp_path: Path) -> Callable[[str], bytes]:
    """The bytes of a good radiograph: plain, rle or jpeg2000."""

    def make(kind: str) -> bytes:
        dataset = pydicom.dcmread(write_radiograph(tmp_path / "file.dcm", 1))
        if kind == "rle":
            dataset.compress(RLELossless, generate_instance_uid=False)
        if kind == "jpeg2000":
            frame = imagecodecs.jpeg2k_encode(dataset.pixel_array, codecformat="j2k", reversible=True, level=0)
            dataset.PixelData = encapsulate([bytes(frame)])
            dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    return make


@pytest.mark.parametrize("kind", ["plain", "rle", "jpeg2000"])
def test_a_file_that_is_cut_off_within_its_pixels_is_unreadable(
    kind: str, encoded: Callable[[str], bytes], outcome: Callable[..., Prepared]
) -> None:
    data = encoded(kind)
    whole = outcome(data)
    assert whole.reason is None
    assert whole.picture is not None
    begin = data.rindex(b"\xe0\x7f\x10\x00") + 12
    for share in (0.02, 0.3, 0.7, 0.95):
        cut = begin + int(share * (len(data) - begin))
        assert outcome(data[:cut]).reason is Reason.UNREADABLE, f"{share:.0%} of the pixels"


def test_a_file_that_is_cut_off_before_its_pixels_is_never_used(
    encoded: Callable[[str], bytes], outcome: Callable[..., Prepared]
) -> None:
    data = encoded("plain")
    begin = data.rindex(b"\xe0\x7f\x10\x00")
    assert all(outcome(data[:cut]).reason is not None for cut in range(0, begin + 12, 7))


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", Reason.NOT_DICOM), (b"no picture at all", Reason.NOT_DICOM), (b"\x89PNG and no more", Reason.NOT_DICOM)],
)
def test_what_is_no_radiograph_is_said(data: bytes, reason: Reason, outcome: Callable[..., Prepared]) -> None:
    assert outcome(data).reason is reason


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": 65535, "Columns": 65535}, Reason.TOO_LARGE),
        ({"Rows": 0}, Reason.UNREADABLE),
        ({"BitsAllocated": 24}, Reason.PIXEL_FORMAT),
        ({"BitsStored": 17}, Reason.PIXEL_FORMAT),
        ({"HighBit": 16}, Reason.PIXEL_FORMAT),
        ({"SamplesPerPixel": 7}, Reason.PIXEL_FORMAT),
        ({"NumberOfFrames": 3}, Reason.MULTI_FRAME),
        ({"PatientID": ""}, Reason.NO_PATIENT),
    ],
)
def test_a_description_that_cannot_be_is_refused_before_memory_is_taken(
    elements: dict[str, Any],
    reason: Reason,
    write_radiograph: Radiograph,
    tmp_path: Path,
    outcome: Callable[..., Prepared],
) -> None:
    data = write_radiograph(tmp_path / "file.dcm", 1, **elements).read_bytes()
    tracemalloc.start()
    found = outcome(data).reason
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is reason
    assert peak < MOST


def deflated(data: bytes, more: bytes = b"") -> bytes:
    """A file with its data set deflated (PS3.5 A.5), `more` behind it."""
    meta = 144 + int.from_bytes(data[140:144], "little")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflater.compress(data[meta:]) + deflater.compress(more) + deflater.flush()
    old, new = b"\x14\x001.2.840.10008.1.2.1\0", b"\x16\x001.2.840.10008.1.2.1.99"
    head = data[:meta].replace(old, new)
    assert len(head) == meta + 2
    return head[:140] + (len(head) - 144).to_bytes(4, "little") + head[144:] + body


def test_a_deflated_file_is_used_and_a_deflate_bomb_is_not(
    encoded: Callable[[str], bytes], outcome: Callable[..., Prepared]
) -> None:
    data = encoded("plain")
    assert outcome(deflated(data)).pixel_hash == outcome(data).pixel_hash
    bomb = deflated(data, more=b"\x00" * (64 * MIB))
    assert len(bomb) < MIB
    tracemalloc.start()
    assert outcome(bomb).reason is Reason.TOO_LARGE
    assert tracemalloc.get_traced_memory()[1] < MOST + LIMIT * MIB  # what comes out grows by copies
    tracemalloc.stop()


def test_a_deflated_file_that_is_cut_off_is_unreadable(
    encoded: Callable[[str], bytes], outcome: Callable[..., Prepared]
) -> None:
    data = deflated(encoded("plain"))
    assert outcome(data[: len(data) * 3 // 4]).reason is Reason.UNREADABLE


def test_a_percentile_window_stands_in_for_one_that_shows_nothing(
    write_radiograph: Radiograph, tmp_path: Path, outcome: Callable[..., Prepared]
) -> None:
    windows: list[dict[str, Any]] = [
        {"WindowCenter": -90000, "WindowWidth": 1},
        {"WindowCenter": 1e9, "WindowWidth": 2},
        {"WindowCenter": None, "WindowWidth": None},
    ]
    for number, window in enumerate(windows):
        done = outcome(write_radiograph(tmp_path / f"{number}.dcm", 1, **window).read_bytes())
        assert done.picture is not None, done.reason
        assert float(np.std(done.picture)) > 25


SILENT = {"Modality": None, "BodyPartExamined": None, "ViewPosition": None, "StudyDescription": None, "PatientID": None}
CAPTURE = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImageType": ["DERIVED", "SECONDARY"]}


@pytest.mark.parametrize(
    ("elements", "facts", "expected"),
    [
        (SILENT, Facts("7"), "unknown"),  # as VinDr-CXR's headers are
        (CAPTURE, Facts("7"), "PA"),  # as the RSNA challenge's files are
        (SILENT, Facts("7", view="AP"), "AP"),
        ({}, Facts("7", view="AP"), "AP"),  # the table goes before the header
        ({}, Facts("7", view="LATERAL"), Reason.LATERAL),
        ({}, Facts("7", view="OTHER"), Reason.NOT_CHEST),
        ({"Modality": "CT"}, Facts("7"), Reason.MODALITY),
        ({"BodyPartExamined": "HAND"}, Facts("7"), Reason.NOT_CHEST),
        (SILENT, Facts(""), Reason.MODALITY),  # the table does not name it
        (CAPTURE, Facts(""), Reason.SECONDARY_CAPTURE),
        (SILENT, None, Reason.MODALITY),
        (CAPTURE, None, Reason.SECONDARY_CAPTURE),
    ],
)
def test_a_file_that_a_table_names_need_not_say_itself_what_it_is(
    elements: dict[str, Any],
    facts: Facts | None,
    expected: str | Reason,
    write_radiograph: Radiograph,
    tmp_path: Path,
    spec: DataSpec,
) -> None:
    path = write_radiograph(tmp_path / "file.dcm", 1, **elements)
    item = Item("file.dcm", path.stat().st_size, 1, path, facts=facts)
    done = prepare(Job(item, Settings(spec, Rules(), Limits())))
    assert isinstance(done, Prepared)
    assert (done.reason or done.about.view) == expected
