"""From an encoded picture to stored values: every transfer syntax that meets chest radiography (PS3.5 Annex A).

Decoders: imagecodecs (BSD) for JPEG and lossless JPEG (libjpeg-turbo), JPEG-LS (CharLS), HTJ2K (OpenJPH), JPEG 2000 (OpenJPEG) and
RLE; Pillow (MIT-CMU) for JPEG 2000 at a fraction of its resolution. What a picture says of its size is believed in neither place:
the header's description and the codestream's must agree and fit the memory before a decoder sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array

from client.archive.codestream import read_jpeg, read_jpeg_2000
from client.archive.reasons import Excluded, Reason

Stored = NDArray[Any]
Words = NDArray[np.uint8] | NDArray[np.uint16]

MOST_PIXELS = 100_000_000  # a detector of 43 x 43 cm with pixels of 0.05 mm has 74 million
_WORKING_COPIES = 10  # bytes of working memory for each stored value: JPEG 2000 decodes to 32-bit integers first

_UNCOMPRESSED = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"}
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_RLE = "1.2.840.10008.1.2.5"
_JPEG = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70)}
_JPEG_LS = {f"1.2.840.10008.1.2.4.{n}" for n in (80, 81)}
_JPEG_2000 = {f"1.2.840.10008.1.2.4.{n}" for n in (90, 91)}
_HTJ2K = {f"1.2.840.10008.1.2.4.{n}" for n in (201, 202, 203)}

# what decoders and parsers raise on damaged data; imagecodecs' own errors are RuntimeErrors
_DAMAGED = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OSError,
    OverflowError,
    SyntaxError,
)


@dataclass(frozen=True)
class Description:
    """The Image Pixel Module (PS3.3 C.7.6.3): shape and bits of the stored values, and the transfer syntax."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str
    syntax: str

    @property
    def size(self) -> int:
        """Number of stored values."""
        return self.rows * self.columns * self.samples

    @property
    def word(self) -> np.dtype[Any]:
        """The unsigned integer that holds one stored value."""
        return np.dtype(f"u{self.allocated // 8}")


@dataclass(frozen=True)
class Grey:
    """A single-sample picture: `words` [H, W], uint8 or uint16, and the stored value that each possible word stands for."""

    words: Words
    values: NDArray[np.float64]  # [256] or [65536]


def describe(dataset: Dataset, most_bytes: int) -> Description:
    """The description of the pixels; Excluded where it is absurd, unsupported, or asks for more working memory than `most_bytes`."""
    try:
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        samples, allocated = int(dataset.get("SamplesPerPixel") or 1), int(dataset.BitsAllocated)
        stored = int(dataset.get("BitsStored") or allocated)
        high = int(dataset["HighBit"].value) if dataset.get("HighBit") is not None else stored - 1
        signed = int(dataset.get("PixelRepresentation") or 0) == 1
        frames = int(dataset.get("NumberOfFrames") or 1)
    except _DAMAGED:
        raise Excluded(Reason.UNREADABLE) from None
    if rows < 1 or columns < 1:
        raise Excluded(Reason.UNREADABLE)
    if frames > 1:
        raise Excluded(Reason.MULTI_FRAME)
    if allocated not in (8, 16, 32) or samples not in (1, 3):
        raise Excluded(Reason.PIXEL_FORMAT)
    if not 0 < stored <= allocated or not stored - 1 <= high < allocated:
        raise Excluded(Reason.PIXEL_FORMAT)
    if rows * columns > MOST_PIXELS or rows * columns * samples * (allocated // 8 + _WORKING_COPIES) > most_bytes:
        raise Excluded(Reason.TOO_LARGE)
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    return Description(rows, columns, samples, allocated, stored, high, signed, photometric, _syntax(dataset))


def grey_values(dataset: Dataset, about: Description, halvings: int = 0) -> Grey:
    """The picture and what its words stand for: bits above High Bit cleared, signs extended (PS3.5 8.1.1).

    halvings: how often the size may be halved where that saves time, which JPEG 2000 can; the result is then a low-pass version of
    ceil(size / 2^n) for some n up to `halvings`.
    """
    words, bits, signed = _decoded(dataset, about, halvings)
    if words.dtype.itemsize > 2:
        return _coarse(_values_of(words, about.high, about.stored, about.signed))
    possible = np.arange(256 if words.dtype == np.uint8 else 65536).astype(words.dtype)
    high, stored = (bits - 1, bits) if bits else (about.high, about.stored)
    high = min(high, 8 * words.dtype.itemsize - 1)
    return Grey(words, _values_of(possible, high, min(stored, high + 1), signed).astype(np.float64))


def colour_values(dataset: Dataset, about: Description) -> NDArray[np.uint8]:
    """A picture of three samples as uint8 [H, W, 3], in the colour space of the photometric interpretation or, decompressed, RGB."""
    if about.syntax in _UNCOMPRESSED:
        _check_length(dataset, about)
        values = _guarded(lambda: pixel_array(dataset, raw=True))
    else:
        values, _, _ = _decoded(dataset, about, 0)
    if values.shape != (about.rows, about.columns, 3):
        raise Excluded(Reason.UNREADABLE)
    return np.asarray(values >> max(0, about.stored - 8), np.uint8)


def _syntax(dataset: Dataset) -> str:
    """The transfer syntax; a file without its meta group says by its own encoding what it is (PS3.10 7.5)."""
    meta = getattr(dataset, "file_meta", None)
    told = str(meta.get("TransferSyntaxUID", "")) if meta is not None else ""
    if told:
        return told
    implicit, little = dataset.original_encoding
    return "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else _BIG_ENDIAN


def _decoded(dataset: Dataset, about: Description, halvings: int) -> tuple[Any, int, bool]:
    """Words [H, W] or [H, W, 3]; the bits of each where the codestream knows better than the header, else 0; whether signed."""
    if about.syntax in _UNCOMPRESSED:
        return _uncompressed(dataset, about), 0, about.signed
    frame = _guarded(lambda: bytes(get_frame(dataset.PixelData, 0, number_of_frames=1)))
    if about.syntax == _RLE:
        return _guarded(lambda: _run_lengths(frame, about)), 0, about.signed
    if about.syntax in _JPEG_2000 | _HTJ2K:
        stream = _guarded(lambda: read_jpeg_2000(frame))
        decode = _jpeg_2000 if about.syntax in _JPEG_2000 else _htj2k
        words, signed = _matching(decode, frame, about, stream, min(halvings, stream.halvings))
        return words, stream.bits, signed and about.signed
    if about.syntax in _JPEG | _JPEG_LS:
        stream = _guarded(lambda: read_jpeg(frame))
        if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):  # libjpeg would fill what is missing with grey
            raise Excluded(Reason.UNREADABLE)
        decode = _jpeg if about.syntax in _JPEG else _jpeg_ls
        words, _ = _matching(decode, frame, about, stream, 0)
        return words, 0, about.signed
    raise Excluded(Reason.TRANSFER_SYNTAX)
