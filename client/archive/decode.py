"""From an encoded picture to stored values: every transfer syntax that meets chest radiography (PS3.5 Annex A).

Compressed syntaxes go to imagecodecs (BSD; libjpeg-turbo, CharLS, OpenJPEG, OpenJPH), uncompressed ones to numpy by way of pydicom.
"""

from __future__ import annotations

import struct
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.utils import pixel_array

from client.archive.reasons import Excluded, Reason

MOST_PIXELS = 200_000_000  # a 43 x 43 cm detector at 0.05 mm has 74 million

_PLAIN = {"", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"}
_RLE = "1.2.840.10008.1.2.5"
_JPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
_JPEG_LOSSLESS = {"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}
_JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
_JPEG_2000 = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}
_HTJ2K = {f"1.2.840.10008.1.2.4.{n}" for n in (201, 202, 203)}
_PACKED = {_RLE} | _JPEG | _JPEG_LOSSLESS | _JPEG_LS | _JPEG_2000 | _HTJ2K


def stored_values(dataset: Dataset) -> NDArray[Any]:
    """The stored values of a single-frame picture, [H, W] or [H, W, 3], high bits cleared and sign extended (PS3.3 C.7.6.3).

    Excluded where the description is absurd, too large or of an unsupported kind, or the data does not hold the picture.
    """
    rows, columns, samples, allocated, stored, high = _description(dataset)
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", "")) if hasattr(dataset, "file_meta") else ""
    if syntax not in _PLAIN:
        values = _decompress(dataset, syntax, rows, columns, samples, allocated)
    else:
        values = _uncompressed(dataset, rows * columns * samples * allocated // 8, allocated)
    expected = (rows, columns) if samples == 1 else (rows, columns, samples)
    if values.shape != expected:
        raise Excluded(Reason.UNREADABLE)
    return _clear_high_bits(values, stored, high, signed=dataset.get("PixelRepresentation", 0) == 1)


def _description(dataset: Dataset) -> tuple[int, int, int, int, int, int]:
    try:
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        samples, allocated = int(dataset.get("SamplesPerPixel") or 1), int(dataset.BitsAllocated)
        stored = int(dataset.get("BitsStored") or allocated)
        high = int(dataset["HighBit"].value) if dataset.get("HighBit") is not None else stored - 1
    except (AttributeError, TypeError, ValueError):
        raise Excluded(Reason.UNREADABLE) from None
    if (
        allocated not in (8, 16, 32)
        or samples not in (1, 3)
        or not 0 < stored <= allocated
        or not stored - 1 <= high < allocated
    ):
        raise Excluded(Reason.PIXEL_FORMAT)
    if rows < 1 or columns < 1:
        raise Excluded(Reason.UNREADABLE)
    if rows * columns * samples > MOST_PIXELS:
        raise Excluded(Reason.TOO_LARGE)
    return rows, columns, samples, allocated, stored, high


def _uncompressed(dataset: Dataset, expected_bytes: int, allocated: int) -> NDArray[Any]:
    if "PixelData" not in dataset:
        raise Excluded(Reason.PIXEL_FORMAT)  # float pixels: a parametric map
    if len(dataset.PixelData) < expected_bytes:
        raise Excluded(Reason.UNREADABLE)
    if not getattr(dataset, "file_meta", None) or "TransferSyntaxUID" not in dataset.file_meta:
        _assume_syntax(dataset)
    return pixel_array(
        dataset, raw=True, bits_stored=allocated
    )  # or it clears bits as if High Bit were Bits Stored - 1


def _assume_syntax(dataset: Dataset) -> None:
    """A file without its meta group says by its own encoding what it is (PS3.10 7.5)."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = dataset.original_encoding
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = (
        ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    )
    dataset.file_meta = meta


def _decompress(dataset: Dataset, syntax: str, rows: int, columns: int, samples: int, allocated: int) -> NDArray[Any]:
    if syntax not in _PACKED:
        raise Excluded(Reason.TRANSFER_SYNTAX)
    try:
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        if syntax == _RLE:
            return _run_lengths(frame, rows, columns, samples, allocated // 8)
        if (coded_size(frame) or (rows, columns)) != (rows, columns):
            raise Excluded(Reason.UNREADABLE)  # before a decoder takes memory for a size that only its stream claims
        if (frame[:2] == b"\xff\xd8" or syntax in _HTJ2K) and b"\xff\xd9" not in frame[-64:]:
            raise Excluded(Reason.UNREADABLE)  # no end (ISO 10918-1 B.2, 15444-1 A.4.4): the rest would be made up
        return _decode(frame, syntax, samples)
    except (RuntimeError, ValueError):  # what pydicom and imagecodecs raise for damage
        raise Excluded(Reason.UNREADABLE) from None


def _decode(frame: bytes, syntax: str, samples: int) -> NDArray[Any]:
    if syntax in _JPEG_LOSSLESS and samples == 1:
        return imagecodecs.ljpeg_decode(frame)
    if syntax in _JPEG_LS:
        return imagecodecs.jpegls_decode(frame)
    if syntax in _HTJ2K:
        return imagecodecs.htj2k_decode(frame)
    if syntax in _JPEG_2000:
        return imagecodecs.jpeg2k_decode(frame)
    return imagecodecs.jpeg_decode(frame)


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 code stream says it holds; None where it does not say."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # SIZ (ISO 15444-1 A.5.1), perhaps inside the boxes of a file
    if start >= 0 and len(frame) >= start + 24:
        width, height, left, top = struct.unpack_from(">4I", frame, start + 8)
        return height - top, width - left
    at = 2
    while frame[:2] == b"\xff\xd8" and len(frame) >= at + 9 and frame[at] == 0xFF:  # ISO 10918-1 B.1.1.4
        kind = frame[at + 1]
        if kind == 0xF7 or (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)):  # a frame header, B.2.2
            height, width = struct.unpack_from(">2H", frame, at + 5)
            return height, width
        at += 1 if kind == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _run_lengths(frame: bytes, rows: int, columns: int, samples: int, width: int) -> NDArray[Any]:
    """RLE Lossless (PS3.5 Annex G): one PackBits segment for each byte of each sample, most significant first."""
    header = np.frombuffer(frame[:64], "<u4")
    count = int(header[0]) if len(header) == 16 else 0
    if count != samples * width:
        raise Excluded(Reason.UNREADABLE)
    offsets = [*(int(offset) for offset in header[1 : count + 1]), len(frame)]
    planes = np.empty((samples, width, rows * columns), np.uint8)
    for index in range(count):
        data = imagecodecs.packbits_decode(frame[offsets[index] : offsets[index + 1]])
        if len(data) < rows * columns:
            raise Excluded(Reason.UNREADABLE)
        planes[index // width, width - 1 - index % width] = np.frombuffer(data, np.uint8, rows * columns)
    values = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(f"<u{width}").reshape(samples, rows, columns)
    return values[0] if samples == 1 else values.transpose(1, 2, 0)


def _clear_high_bits(values: NDArray[Any], stored: int, high: int, *, signed: bool) -> NDArray[Any]:
    """Only the bits from High Bit down belong to the value; overlays and vendors use the others (PS3.5 8.1.1)."""
    width = values.dtype.itemsize * 8
    unsigned, integer = np.dtype(f"u{values.dtype.itemsize}"), np.dtype(f"i{values.dtype.itemsize}")
    left, right = width - 1 - high, width - stored
    if left < 0 or right < 0:
        raise Excluded(Reason.PIXEL_FORMAT)
    bits = values.view(unsigned) if values.dtype.isnative else values.astype(unsigned)
    if left == 0 and right == 0:
        return bits.view(integer) if signed else bits
    shifted = bits << np.array(left, unsigned)
    found: NDArray[Any] = (
        (shifted.view(integer) >> np.array(right, integer)) if signed else shifted >> np.array(right, unsigned)
    )
    return found
