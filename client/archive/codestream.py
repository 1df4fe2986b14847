"""What a compressed picture says of itself, read before anything is decoded: a decoder allocates what this header asks for.

JPEG and JPEG-LS: the frame header (ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2). JPEG 2000 and HTJ2K: the SIZ and COD segments
(ISO/IEC 15444-1 A.5.1, A.6.1).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Codestream:
    """Rows, columns, samples a pixel, bits a sample, whether those are signed, and how often the size can be halved for free."""

    rows: int
    columns: int
    samples: int
    bits: int
    signed: bool = False
    halvings: int = 0


_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0-15 and JPEG-LS's SOF55; not DHT, JPG, DAC
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_START_2000 = b"\xff\x4f\xff\x51"  # SOC and SIZ, which is always next
_JP2_SEARCH = 1 << 16  # some writers put the JP2 file around the codestream, against PS3.5 A.4.4; its boxes are small
_MOST_SEGMENTS = 1000


def read_jpeg(data: bytes) -> Codestream:
    """The frame header of a JPEG or JPEG-LS picture; ValueError where there is none."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("JPEG: expected FFD8 at the start")
    place = 2
    for _ in range(_MOST_SEGMENTS):
        marker, place = _next_marker(data, place)
        if marker in _ALONE:
            continue
        length = _unpack(">H", data, place)[0]
        if marker in _FRAMES:
            bits, rows, columns, samples = _unpack(">BHHB", data, place + 2)
            return Codestream(rows, columns, samples, bits)
        if marker in (0xD9, 0xDA) or length < 2:
            break
        place += length
    raise ValueError("JPEG: expected a frame header before the scan")


def read_jpeg_2000(data: bytes) -> Codestream:
    """The SIZ and COD segments of a JPEG 2000 or HTJ2K picture; ValueError where they are missing or damaged."""
    start = data.find(_START_2000, 0, _JP2_SEARCH)
    if start < 0:
        raise ValueError("JPEG 2000: expected a codestream")
    place = start + 4
    length, _, right, bottom, left, top = _unpack(">HHIIII", data, place)
    samples, depth = _unpack(">HB", data, place + 36)
    if any(
        data[place + 38 + 3 * index : place + 41 + 3 * index] != bytes((depth, 1, 1))
        for index in range(min(samples, 4))
    ):
        raise ValueError("JPEG 2000: expected samples of one depth and size")
    halvings = _halvings(data, place + length)
    return Codestream(bottom - top, right - left, samples, (depth & 0x7F) + 1, depth > 0x7F, halvings)


def _halvings(data: bytes, place: int) -> int:
    """The decomposition levels of the COD segment of the main header; 0 where there is none, so that nothing is left out."""
    for _ in range(_MOST_SEGMENTS):
        marker, place = _next_marker(data, place)
        if marker == 0x90:  # SOT: the main header has ended
            break
        if marker == 0x52:
            return int(_unpack(">B", data, place + 7)[0])
        place += max(2, _unpack(">H", data, place)[0])
    return 0


def _next_marker(data: bytes, place: int) -> tuple[int, int]:
    """The marker at a place, after fill bytes, and the place behind it."""
    if data[place : place + 1] != b"\xff":
        raise ValueError("JPEG: expected a marker")
    while data[place : place + 1] == b"\xff":
        place += 1
    return _unpack(">B", data, place)[0], place + 1


def _unpack(form: str, data: bytes, place: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, data, place)
    except struct.error:
        raise ValueError("JPEG: the header is cut off") from None
