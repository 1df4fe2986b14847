"""Many short texts searched in large files at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

SHORTEST = 6  # bytes of a text that can be searched

_PREFIX = 3
_CHUNK = 4 << 20


class Needles:
    """A set of byte strings, each of at least SHORTEST bytes, to be found in haystacks of any size.

    A table of all three-byte beginnings, 16 MiB, sorts out nearly all places of a haystack; what is left is looked up.
    """

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._by_start: dict[bytes, list[bytes]] = {}
        self._begins = np.zeros(1 << 24, bool)
        self.longest = SHORTEST
        for text in set(texts):
            if len(text) < SHORTEST:
                raise ValueError(f"texts: expected at least {SHORTEST} bytes each, found one of {len(text)}")
            self._by_start.setdefault(text[:SHORTEST], []).append(text)
            self._begins[int.from_bytes(text[:_PREFIX], "big")] = True
            self.longest = max(self.longest, len(text))

    def find(self, chunks: Iterable[bytes]) -> set[bytes]:
        """Those of the texts that occur in the chunks put together."""
        found: set[bytes] = set()
        tail = b""
        for chunk in chunks:
            data = tail + chunk
            found.update(self._find(data))
            tail = data[-(self.longest - 1) :]
        return found

    def _find(self, data: bytes) -> Iterator[bytes]:
        values = np.frombuffer(data, np.uint8)
        if len(values) < SHORTEST:
            return
        starts = values[:-2].astype(np.uint32) << 16 | values[1:-1].astype(np.uint32) << 8 | values[2:]
        for place in np.flatnonzero(self._begins[starts]).tolist():
            for text in self._by_start.get(data[place : place + SHORTEST], ()):
                if data.startswith(text, place):
                    yield text


def chunks(file: object) -> Iterator[bytes]:
    """An open binary file in pieces of a few MiB."""
    while block := file.read(_CHUNK):  # type: ignore[attr-defined]  # any binary file
        yield block
