"""Stored values out of every encoding, to the bit where it is lossless, and nothing out of what is damaged or absurd."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from client.archive.decode import coded_size, stored_values
from client.archive.reasons import Excluded, Reason

HEIGHT, WIDTH = 24, 36
RLE = "1.2.840.10008.1.2.5"
JPEG = "1.2.840.10008.1.2.4."


def field(bits: int, *, signed: bool = False) -> NDArray[np.int64]:
    """Waves and noise over the whole range of the bits, int64 [24, 36]."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = np.sin(x / 5) + np.cos(y / 4) + np.random.default_rng(bits).normal(0, 0.1, (HEIGHT, WIDTH))
    values: NDArray[np.int64] = np.rint((waves - waves.min()) / np.ptp(waves) * (2**bits - 1)).astype(np.int64)
    return values - 2 ** (bits - 1) if signed else values


def picture(
    data: bytes, bits: int, *, allocated: int = 16, signed: bool = False, syntax: str = ExplicitVRLittleEndian, **elements: Any
) -> Dataset:  # fmt: skip
    """A description of the pixels in `data`; `elements` replace others."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    values: dict[str, Any] = {
        "Rows": HEIGHT, "Columns": WIDTH, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": allocated, "BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(signed),
    } | elements  # fmt: skip
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = data
    dataset["PixelData"].VR = "OB" if allocated == 8 else "OW"
    dataset.set_original_encoding(syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian)
    return dataset


def reason_of(dataset: Dataset) -> Reason:
    with pytest.raises(Excluded) as caught:
        stored_values(dataset)
    return caught.value.reason


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(
    ("allocated", "bits", "high", "signed"),
    [
        (8, 8, 7, False), (8, 6, 5, False), (8, 8, 7, True), (16, 8, 7, False), (16, 10, 9, False), (16, 12, 11, False),
        (16, 12, 15, False), (16, 10, 12, False), (16, 16, 15, False), (16, 12, 11, True), (16, 12, 15, True),
        (16, 10, 12, True), (16, 16, 15, True), (32, 20, 19, False), (32, 32, 31, True),
    ],
)  # fmt: skip
def test_values_come_out_of_their_bits_whatever_is_in_the_others(
    syntax: str, allocated: int, bits: int, high: int, signed: bool
) -> None:
    values = field(bits, signed=signed)
    mask, shift = 2**bits - 1, high + 1 - bits
    noise = np.random.default_rng(1).integers(0, 2**allocated, values.shape) & ~(mask << shift)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data = ((values & mask) << shift | noise).astype(f"{order}u{allocated // 8}").tobytes()
    dataset = picture(data, bits, allocated=allocated, signed=signed, syntax=syntax, HighBit=high)
    np.testing.assert_array_equal(stored_values(dataset), values)


Encoder = Callable[[NDArray[Any]], bytes | bytearray]


def lossless_jpeg(values: NDArray[Any]) -> bytes | bytearray:
    return imagecodecs.ljpeg_encode(values, bitspersample=12 if values.dtype.itemsize > 1 else 8)


def run_lengths(values: NDArray[Any]) -> bytes:
    """PS3.5 Annex G: a segment for each byte, most significant first."""
    planes = values.astype(values.dtype.newbyteorder(">")).view(np.uint8).reshape(values.size, -1).T
    rows = values.shape[1]
    segments = []
    for plane in planes:
        segment = b"".join(
            imagecodecs.packbits_encode(plane[at : at + rows].tobytes()) for at in range(0, plane.size, rows)
        )
        segments.append(segment + b"\0" * (len(segment) % 2))
    offsets = np.cumsum([64, *(len(segment) for segment in segments)])[:-1]
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


LOSSLESS: dict[str, tuple[str, Encoder]] = {
    "jpeg-lossless": (JPEG + "57", lossless_jpeg),
    "jpeg-lossless-sv1": (JPEG + "70", lossless_jpeg),
    "jpeg-ls": (JPEG + "80", imagecodecs.jpegls_encode),
    "jpeg-2000": (JPEG + "90", lambda values: imagecodecs.jpeg2k_encode(values, codecformat="j2k", level=0)),
    "jpeg-2000-in-a-jp2": (JPEG + "90", lambda values: imagecodecs.jpeg2k_encode(values, codecformat="jp2", level=0)),
    "htj2k": (JPEG + "201", imagecodecs.htj2k_encode),
    "rle": (RLE, run_lengths),
}


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("bits", [8, 12])
def test_lossless_code_streams_come_back_to_the_bit(kind: str, bits: int) -> None:
    syntax, encode = LOSSLESS[kind]
    values = field(bits)
    frame = bytes(encode(np.ascontiguousarray(values.astype(np.uint8 if bits == 8 else np.uint16))))
    dataset = picture(encapsulate([frame]), bits, allocated=8 if bits == 8 else 16, syntax=syntax)
    np.testing.assert_array_equal(stored_values(dataset), values)


@pytest.mark.parametrize("kind", ["jpeg-ls", "rle", "htj2k", "jpeg-2000"])
def test_signed_values_in_unsigned_code_streams_get_their_sign_back(kind: str) -> None:
    syntax, encode = LOSSLESS[kind]
    values = field(12, signed=True)
    frame = bytes(encode((values & 0xFFF).astype(np.uint16)))
    np.testing.assert_array_equal(stored_values(picture(encapsulate([frame]), 12, signed=True, syntax=syntax)), values)


def test_signed_jpeg_2000_code_streams_keep_their_sign() -> None:
    values = field(16, signed=True)
    frame = bytes(imagecodecs.jpeg2k_encode(values.astype(np.int16), codecformat="j2k", level=0))
    dataset = picture(encapsulate([frame]), 16, signed=True, syntax=JPEG + "90")
    np.testing.assert_array_equal(stored_values(dataset), values)


def test_a_frame_may_lie_in_several_fragments() -> None:
    values = field(12)
    frame = bytes(imagecodecs.jpegls_encode(values.astype(np.uint16)))
    dataset = picture(encapsulate([frame], fragments_per_frame=3), 12, syntax=JPEG + "80")
    np.testing.assert_array_equal(stored_values(dataset), values)


def test_run_lengths_of_three_samples_become_colour() -> None:
    values = np.stack([field(8), field(8)[::-1], field(8)[:, ::-1]], axis=2).astype(np.uint8)
    segments = [imagecodecs.packbits_encode(np.ascontiguousarray(values[..., channel])) for channel in range(3)]
    offsets = np.cumsum([64, *(len(segment) for segment in segments)])[:-1]
    frame = struct.pack("<16I", 3, *offsets, *[0] * 12) + b"".join(segments)
    dataset = picture(
        encapsulate([frame]), 8, allocated=8, syntax=RLE, SamplesPerPixel=3, PhotometricInterpretation="RGB"
    )
    np.testing.assert_array_equal(stored_values(dataset), values)


def test_a_file_without_its_meta_group_is_read_as_its_data_set_is_encoded() -> None:
    values = field(12)
    for order, syntax in (("<", ImplicitVRLittleEndian), (">", ExplicitVRBigEndian)):
        dataset = picture(values.astype(f"{order}u2").tobytes(), 12, syntax=syntax)
        del dataset.file_meta
        np.testing.assert_array_equal(stored_values(dataset), values)


@pytest.mark.parametrize("missing", [1, 100, 24 * 36 * 2])
def test_pixels_that_are_fewer_than_described_are_unreadable(missing: int) -> None:
    assert reason_of(picture(field(12).astype("<u2").tobytes()[:-missing], 12)) is Reason.UNREADABLE


def test_a_pad_byte_and_more_after_the_pixels_do_no_harm() -> None:
    values = field(12)
    dataset = picture(values.astype("<u2").tobytes() + b"\0\0", 12)
    with warnings.catch_warnings(action="ignore"):  # pydicom's, of the length
        np.testing.assert_array_equal(stored_values(dataset), values)


@pytest.mark.parametrize("segments", [0, 1, 3, 4_000_000_000])
def test_run_lengths_with_another_number_of_segments_are_unreadable(segments: int) -> None:
    frame = struct.pack("<I", segments) + run_lengths(field(12).astype(np.uint16))[4:]
    assert reason_of(picture(encapsulate([frame]), 12, syntax=RLE)) is Reason.UNREADABLE


def test_run_lengths_that_end_early_are_unreadable() -> None:
    frame = run_lengths(field(12).astype(np.uint16))[:-200]
    assert reason_of(picture(encapsulate([frame]), 12, syntax=RLE)) is Reason.UNREADABLE


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": None}, Reason.UNREADABLE),
        ({"Columns": 0}, Reason.UNREADABLE),
        ({"Rows": HEIGHT + 1}, Reason.UNREADABLE),
        ({"BitsAllocated": 1}, Reason.PIXEL_FORMAT),
        ({"BitsAllocated": 64}, Reason.PIXEL_FORMAT),
        ({"BitsStored": 17}, Reason.PIXEL_FORMAT),
        ({"HighBit": 5}, Reason.PIXEL_FORMAT),
        ({"HighBit": 16}, Reason.PIXEL_FORMAT),
        ({"SamplesPerPixel": 4}, Reason.PIXEL_FORMAT),
        ({"Rows": 60000, "Columns": 60000}, Reason.TOO_LARGE),
    ],
)
def test_a_description_that_cannot_be_is_refused(elements: dict[str, Any], reason: Reason) -> None:
    assert reason_of(picture(field(12).astype("<u2").tobytes(), 12, **elements)) is reason


@pytest.mark.parametrize(
    "syntax", [JPEG + "100", JPEG + "102", "1.2.840.10008.1.2.8.1", JPEG + "110", "1.2.840.113619.5.2", "0"]
)
def test_compressions_of_films_and_unknown_ones_are_not_supported(syntax: str) -> None:
    assert reason_of(picture(encapsulate([b"\0\0\1\xb3" * 600]), 12, syntax=syntax)) is Reason.TRANSFER_SYNTAX


def test_pictures_of_floats_are_no_radiographs() -> None:
    dataset = picture(b"", 16)
    del dataset.PixelData
    dataset.FloatPixelData = np.zeros((HEIGHT, WIDTH), "<f4").tobytes()
    assert reason_of(dataset) is Reason.PIXEL_FORMAT


@pytest.mark.parametrize("kind", [kind for kind in LOSSLESS if kind != "rle"])
def test_the_size_in_a_code_stream_is_read_without_decoding_it(kind: str) -> None:
    frame = bytes(LOSSLESS[kind][1](field(8).astype(np.uint8)))
    assert coded_size(frame) == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "frame", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\0\0", b"\xff\xd8" + b"\xff" * 40, b"no code stream"]
)
def test_a_code_stream_that_says_no_size_is_left_to_its_decoder(frame: bytes) -> None:
    assert coded_size(frame) is None


@pytest.mark.parametrize("kind", ["jpeg-ls", "jpeg-2000", "jpeg-lossless"])
def test_a_code_stream_that_claims_another_size_is_refused_before_memory_is_taken(kind: str) -> None:
    syntax, encode = LOSSLESS[kind]
    frame = bytes(encode(np.zeros((4000, 4000), np.uint8)))
    dataset = picture(encapsulate([frame]), 8, allocated=8, syntax=syntax)
    tracemalloc.start()
    found = reason_of(dataset)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is Reason.UNREADABLE
    assert peak < 4_000_000


LOSSY: dict[str, tuple[str, Encoder]] = {
    "jpeg-baseline": (JPEG + "50", lambda values: imagecodecs.jpeg_encode(values, level=90)),
    "jpeg-ls-near-lossless": (JPEG + "81", lambda values: imagecodecs.jpegls_encode(values, level=2)),
    "jpeg-2000-lossy": (JPEG + "91", lambda values: imagecodecs.jpeg2k_encode(values, codecformat="j2k", level=60)),
}


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_code_streams_come_back_nearly(kind: str) -> None:
    syntax, encode = LOSSY[kind]
    values = field(8)
    dataset = picture(encapsulate([bytes(encode(values.astype(np.uint8)))]), 8, allocated=8, syntax=syntax)
    assert np.abs(stored_values(dataset) - values).max() < 24  # of noise that such codes smooth


@pytest.mark.parametrize("kind", LOSSLESS | LOSSY)
def test_a_code_stream_cut_in_half_or_to_nothing_is_unreadable(kind: str) -> None:
    syntax, encode = (LOSSLESS | LOSSY)[kind]
    frame = bytes(encode(field(8).astype(np.uint8)))
    for length in (0, 1, 3, len(frame) // 4, len(frame) // 2):
        dataset = picture(encapsulate([frame[:length] or b"\0"]), 8, allocated=8, syntax=syntax)
        assert reason_of(dataset) is Reason.UNREADABLE, f"{length} bytes"
