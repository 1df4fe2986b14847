"""Many texts are found in large files at once, as a plain search would find them."""

from __future__ import annotations

import numpy as np
import pytest

from client.archive.needles import Needles


def test_what_is_found_is_what_a_plain_search_finds() -> None:
    rng = np.random.default_rng(0)
    hay = rng.integers(48, 51, 20_000, np.uint8).tobytes()
    texts = {rng.integers(48, 51, rng.integers(6, 12), np.uint8).tobytes() for _ in range(300)}
    texts |= {hay[100:160], hay[-6:], hay[:6]}
    plain = {text for text in texts if text in hay}
    assert 3 < len(plain) < len(texts)
    assert Needles(texts).find([hay]) == plain
    for size in (1, 7, 64, 999):
        assert Needles(texts).find(hay[start : start + size] for start in range(0, len(hay), size)) == plain


def test_nothing_is_found_in_nothing() -> None:
    assert Needles([b"abcdef"]).find([]) == set()
    assert Needles([]).find([b"abcdef"]) == set()


def test_a_text_too_short_to_be_searched_is_refused() -> None:
    with pytest.raises(ValueError, match="texts: expected at least 6 bytes each, found one of 5"):
        Needles([b"abcde"])
