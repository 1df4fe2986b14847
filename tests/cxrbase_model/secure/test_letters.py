"""Letters come back as they were written; whatever else comes is refused."""

from __future__ import annotations

import json
import os
from itertools import product
from typing import Any

import pytest

from cxrbase_model.secure.letters import (
    MOST_BYTES,
    Advert,
    LetterError,
    Opened,
    Survivors,
    advert_from_bytes,
    advert_to_bytes,
    consent_from_bytes,
    consent_to_bytes,
    context_of,
    least,
    needed,
    opened_from_bytes,
    opened_to_bytes,
    parcels_from_bytes,
    parcels_to_bytes,
    roster_from_bytes,
    roster_to_bytes,
    session_of,
    survivors_from_bytes,
    survivors_to_bytes,
)


def advert(signature: bytes = b"") -> Advert:
    return Advert(os.urandom(32), os.urandom(32), os.urandom(32), signature)


def test_letters_come_back_as_they_were_written() -> None:
    roster = {name: advert(b"s" * 103) for name in ("b", "a", "lindenhof-2")}
    parcels = {"a": os.urandom(92), "b": os.urandom(92)}
    opened = Opened({"a": b"1" * 32}, {"b": b"2" * 32})
    assert advert_from_bytes(advert_to_bytes(roster["a"])) == roster["a"]
    assert roster_from_bytes(roster_to_bytes(roster)) == roster
    assert parcels_from_bytes(parcels_to_bytes(parcels)) == parcels
    survivors = Survivors(frozenset("ab"), {"a": b"s" * 103})
    assert survivors_from_bytes(survivors_to_bytes(survivors)) == survivors
    assert consent_from_bytes(consent_to_bytes(b"s" * 103)) == b"s" * 103
    assert opened_from_bytes(opened_to_bytes(opened)) == opened


def test_the_largest_roster_is_a_letter() -> None:
    assert len(roster_to_bytes({f"{number:064}": advert(b"s" * 104) for number in range(200)})) < MOST_BYTES


READERS = {
    "advert": advert_from_bytes, "roster": roster_from_bytes, "parcels": parcels_from_bytes,
    "survivors": survivors_from_bytes, "consent": consent_from_bytes, "opened": opened_from_bytes,
}  # fmt: skip
KEY, SHARE = "ab" * 32, "cd" * 32
FIELDS = {"seal": KEY, "mask": "ba" * 32, "seed": KEY, "signature": ""}
WRONG: list[tuple[str, Any]] = [
    *product(READERS, ([], 3, "text", None)),
    ("advert", {}), ("advert", FIELDS | {"more": ""}), ("advert", FIELDS | {"seal": "ab"}), ("advert", FIELDS | {"seal": "xy" * 32}),
    ("advert", FIELDS | {"seal": 5}), ("advert", FIELDS | {"signature": "ab" * 161}),
    ("roster", {"a": FIELDS, "b": FIELDS}), ("roster", {"../a": FIELDS}), ("roster", {"a": FIELDS | {"mask": KEY}}),
    ("parcels", {"a": "ab" * 91}), ("parcels", {"a": {}}), ("parcels", {"": "ab" * 92}),
    ("survivors", {"survivors": [], "signatures": {}}), ("survivors", {"survivors": ["a", "a"], "signatures": {}}), ("survivors", {"survivors": "a", "signatures": {}}),
    ("survivors", {"survivors": [["a"]], "signatures": {}}), ("survivors", {"others": ["a"]}),
    ("survivors", {"survivors": ["a"], "signatures": []}),
    ("survivors", {"survivors": ["a"], "signatures": {"a": "xy"}}), ("consent", {"signature": "ab" * 161}), ("consent", {"signature": 1}),
    ("opened", {"seeds": {"a": SHARE}, "keys": {"a": SHARE}}), ("opened", {"seeds": {"a": SHARE}}), ("opened", {"seeds": [], "keys": {}}),
    ("opened", {"seeds": {"a": "cd" * 31}, "keys": {}}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "content"), WRONG)
def test_what_is_no_letter_of_the_kind_is_refused(kind: str, content: Any) -> None:
    with pytest.raises(LetterError):
        READERS[kind](json.dumps(content).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b" " * (MOST_BYTES + 1)])
def test_bytes_that_are_no_letter_are_refused(data: bytes) -> None:
    for reader in READERS.values():
        with pytest.raises(LetterError):
            reader(data)


def test_one_hospital_has_either_share_opened_and_never_both() -> None:
    with pytest.raises(LetterError, match="the seed or the key of a hospital, found both"):
        opened_from_bytes(json.dumps({"seeds": {"a": SHARE}, "keys": {"a": SHARE}}).encode())


def test_more_than_half_of_a_round_are_needed_whatever_the_plan_says() -> None:
    assert [needed(2, members) for members in (3, 4, 5, 50)] == [2, 3, 3, 26]
    assert needed(7, 8) == 7
    assert least(2, 3, 3) == 3
    assert least(2, 10, 3) == 6


def test_a_session_is_of_one_roster_and_one_round() -> None:
    roster = {name: advert() for name in "abc"}
    contexts = {
        context_of("plan", "mae", 1),
        context_of("plan", "mae", 2),
        context_of("other", "mae", 1),
        context_of("plan", "m", 1),
    }
    assert len(contexts) == 4
    names = {session_of(context, roster) for context in contexts}
    names |= {session_of(context_of("plan", "mae", 1), roster | {"c": advert()})}
    assert len(names) == 5


def test_a_signature_of_survivors_is_of_the_set_and_the_session() -> None:
    texts = {
        Survivors(frozenset(names)).signed_text(session)
        for names in ("ab", "abc")
        for session in (b"x" * 32, b"y" * 32)
    }
    assert len(texts) == 4


def test_a_signature_is_of_the_keys_the_hospital_and_the_round() -> None:
    one = advert()
    assert len({one.signed_text(site, context) for site in ("a", "b") for context in (b"x", b"y")}) == 4
    assert advert().signed_text("a", b"x") != one.signed_text("a", b"x")
