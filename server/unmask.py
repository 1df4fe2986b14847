"""Taking the masks off a sum with the shares that survivors have opened, and the note of whom they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cxrbase_model.secure.keys import KeyProblem, add_mask, own_mask, pair_mask, public_of
from cxrbase_model.secure.letters import Advert, Opened, Roster
from cxrbase_model.secure.ring import Vector
from cxrbase_model.secure.shares import recover
from server.store import write_atomic

NOTE = "secure.json"  # in the run directory: which survivors a round was unmasked for


@dataclass(frozen=True)
class Secrets:
    """What is on a sum of masked updates: the seeds of the survivors' own masks, and the mask keys of those who have dropped out."""

    seeds: dict[str, bytes]
    keys: dict[str, bytes]


def secrets_of(
    roster: Roster, survivors: Iterable[str], dropped: Iterable[str], opened: Mapping[str, Opened], threshold: int
) -> Secrets | None:
    """The secrets of shares by who opened them; None where they are too few, or so many are wrong that none fit the adverts."""
    places = {name: place for place, name in enumerate(sorted(roster))}
    seeds = {places[giver]: each.seeds for giver, each in opened.items()}
    keys = {places[giver]: each.keys for giver, each in opened.items()}
    found = (
        _recovered(roster, survivors, seeds, threshold, _is_seed),
        _recovered(roster, dropped, keys, threshold, _is_key),
    )
    return None if found[0] is None or found[1] is None else Secrets(found[0], found[1])


def take_off(total: Vector, roster: Roster, session: bytes, survivors: Iterable[str], secrets: Secrets) -> None:
    """Take off the masks of secrets in place; `survivors` are those whose updates are in the sum."""
    for seed in secrets.seeds.values():
        add_mask(total.parts(), own_mask(seed, session), -1)
    for gone, private in secrets.keys.items():
        for survivor in survivors:
            try:
                key, sign = pair_mask(private, roster[survivor].mask, session, survivor, gone)
            except KeyProblem:  # neither could it have masked with the other's
                continue
            add_mask(total.parts(), key, -sign)


def _recovered(
    roster: Roster, names: Iterable[str], shares: Mapping[int, Mapping[str, bytes]], threshold: int,
    fits: Callable[[Advert, bytes], bool],
) -> dict[str, bytes] | None:  # fmt: skip
    found: dict[str, bytes] = {}
    for name in sorted(names):
        secret = recover({place: each[name] for place, each in shares.items()}, threshold, _test(fits, roster[name]))
        if secret is None:
            return None
        found[name] = secret
    return found


def _test(fits: Callable[[Advert, bytes], bool], advert: Advert) -> Callable[[bytes], bool]:
    return lambda secret: fits(advert, secret)


def _is_seed(advert: Advert, secret: bytes) -> bool:
    return hashlib.sha256(secret).digest() == advert.seed


def _is_key(advert: Advert, secret: bytes) -> bool:
    return public_of(secret) == advert.mask


def remember(folder: Path, number: int, survivors: set[str]) -> None:
    """Note in the run directory whom a round is unmasked for, before it is: another attempt at it may not be for fewer."""
    note = {"round": number, "survivors": sorted(survivors)}
    write_atomic(folder / NOTE, json.dumps(note).encode())


def unmasked_for(folder: Path, number: int) -> frozenset[str] | None:
    """The survivors that a round was unmasked for by an attempt that did not end in a commit, by the note in the run directory."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return frozenset(note["survivors"]) if note["round"] == number else None
