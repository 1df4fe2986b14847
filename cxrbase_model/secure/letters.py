"""The typed letters of secure aggregation, which travel where weights and updates do; each is bounded in length and checked whole.

adverts (hospital to server, with the end of its training)    public keys of one session
roster  (server to hospitals, task secure-shares)             the adverts of all who trained
parcels (hospital to server, and on with secure-masked)       for each other hospital, shares sealed for it alone
vector  (hospital to server, answer to secure-masked)         the masked update, raw: `ring.Vector`
survivors (server to hospitals, task secure-confirm)          whose masked updates have come
consent (hospital to server)                                  its signature of the survivors
survivors (server to hospitals, task secure-unmask)           the same, with the signatures, so that all open shares for one set
opened  (hospital to server)                                  shares of the survivors' seeds and of the others' mask keys
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

SHARES, MASKED, CONFIRM, UNMASK = "secure-shares", "secure-masked", "secure-confirm", "secure-unmask"  # kinds of tasks
STEPS = (SHARES, MASKED, CONFIRM, UNMASK)
MOST_BYTES = 1 << 20  # of a letter; the roster of 200 hospitals has 0.1 of it
SHARE = 32  # bytes of a share of a seed or key

_KEY, _PARCEL, _MOST_SIGNATURE = 32, 2 * SHARE + 28, 160
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class LetterError(ValueError):
    """The bytes are not a letter of the kind that was expected."""


@dataclass(frozen=True)
class Advert:
    """The public half of a hospital's session: keys to seal to it and to make masks with it, 32 bytes each; the SHA-256 of its
    seed; and a signature (ECDSA) of all that by its enrolled key, empty where it has none.
    """

    seal: bytes
    mask: bytes
    seed: bytes
    signature: bytes = b""

    def signed_text(self, site: str, context: bytes) -> bytes:
        """What the signature is of: this hospital's keys in the round that `context` names."""
        return b"\x1f".join([b"cxrbase advert", context, site.encode(), self.seal, self.mask, self.seed])


Roster = dict[str, Advert]


def needed(threshold: int, members: int) -> int:
    """Shares that open a secret among so many hospitals: the plan's threshold, and always more than half.

    With half, a server could tell one half that a hospital has dropped out and the other that it has not, and get all its masks.
    """
    return max(threshold, members // 2 + 1)


def least(threshold: int, members: int, quorum: int) -> int:
    """Fewest hospitals of so many that must still be there at each step."""
    return max(needed(threshold, members), quorum, 3)


def session_of(context: bytes, roster: Roster) -> bytes:
    """What names a session, 32 bytes: the round and all keys in it, so that nothing of one session counts in another."""
    return hashlib.sha256(context + roster_to_bytes(roster)).digest()


def context_of(plan_digest: str, stage: str, number: int) -> bytes:
    """What names a round of a plan, 32 bytes: whichever run it is of, since the same plan makes much the same updates again."""
    return hashlib.sha256("\x1f".join([plan_digest, stage, str(number)]).encode()).digest()


def advert_to_bytes(advert: Advert) -> bytes:
    """The letter of an advert."""
    return _letter(_advert(advert))


def advert_from_bytes(data: bytes) -> Advert:
    """The advert of a letter; LetterError where it is none."""
    return _as_advert(_content(data))


def roster_to_bytes(roster: Roster) -> bytes:
    """The letter of a roster; the same roster gives the same bytes."""
    return _letter({name: _advert(roster[name]) for name in sorted(roster)})


def roster_from_bytes(data: bytes) -> Roster:
    """The roster of a letter; LetterError where it is none, or two members have the same key."""
    roster = {_name(name): _as_advert(each) for name, each in _content(data).items()}
    keys = {key for each in roster.values() for key in (each.seal, each.mask)}
    if len(keys) != 2 * len(roster):
        raise LetterError("roster: expected different keys for each hospital and purpose")
    return roster


def parcels_to_bytes(parcels: Mapping[str, bytes]) -> bytes:
    """The letter of sealed parcels by who they are for, or from."""
    return _letter({name: parcels[name].hex() for name in sorted(parcels)})


def parcels_from_bytes(data: bytes) -> dict[str, bytes]:
    """The parcels of a letter; LetterError where it holds none."""
    return {_name(name): _bytes(each, _PARCEL) for name, each in _content(data).items()}


@dataclass(frozen=True)
class Survivors:
    """Those whose masked updates have come, and their signatures of that by name, none where hospitals have no keys to sign with."""

    names: frozenset[str]
    signatures: dict[str, bytes] = field(default_factory=dict)

    def signed_text(self, session: bytes) -> bytes:
        """What a signature is of: this set in that session."""
        return b"\x1f".join([b"cxrbase survivors", session, *(name.encode() for name in sorted(self.names))])


def survivors_to_bytes(survivors: Survivors) -> bytes:
    """The letter that names the survivors."""
    signatures = {name: each.hex() for name, each in survivors.signatures.items()}
    return _letter({"survivors": sorted(survivors.names), "signatures": signatures})


def survivors_from_bytes(data: bytes) -> Survivors:
    """The survivors of a letter; LetterError where it names none, or one twice."""
    content = _content(data, {"survivors", "signatures"})
    names, signatures = content["survivors"], content["signatures"]
    if not isinstance(names, list) or not names or len({_name(name) for name in names}) != len(names):
        raise LetterError("survivors: expected names of hospitals, each once")
    if not isinstance(signatures, dict):
        raise LetterError("survivors: expected signatures by name")
    return Survivors(frozenset(names), {_name(name): _bytes(each, None) for name, each in signatures.items()})


def consent_to_bytes(signature: bytes) -> bytes:
    """The letter of a hospital's signature of the survivors."""
    return _letter({"signature": signature.hex()})


def consent_from_bytes(data: bytes) -> bytes:
    """The signature of a letter; LetterError where it holds none."""
    return _bytes(_content(data, {"signature"})["signature"], None)


@dataclass(frozen=True)
class Opened:
    """One hospital's shares: of the seeds of those who survived, and of the mask keys of those who did not; by name."""

    seeds: dict[str, bytes]
    keys: dict[str, bytes]


def opened_to_bytes(opened: Opened) -> bytes:
    """The letter of opened shares."""
    return _letter({name: {site: each.hex() for site, each in part.items()} for name, part in vars(opened).items()})


def opened_from_bytes(data: bytes) -> Opened:
    """The opened shares of a letter; LetterError where it holds none, or both shares of one hospital."""
    content = _content(data, {"seeds", "keys"})
    parts: dict[str, dict[str, bytes]] = {}
    for part in ("seeds", "keys"):
        if not isinstance(content[part], dict):
            raise LetterError(f"opened: expected shares by name in {part}")
        parts[part] = {_name(name): _bytes(each, SHARE) for name, each in content[part].items()}
    if parts["seeds"].keys() & parts["keys"].keys():
        raise LetterError("opened: expected the seed or the key of a hospital, found both")
    return Opened(**parts)


def _letter(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _content(data: bytes, keys: Collection[str] | None = None) -> dict[str, Any]:
    """The JSON object of a letter, with exactly these keys where they are given."""
    if len(data) > MOST_BYTES:
        raise LetterError(f"letter: expected at most {MOST_BYTES} bytes, found {len(data)}")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise LetterError(f"letter: expected a JSON object, found {len(data)} bytes of something else") from None
    if not isinstance(content, dict) or (keys is not None and content.keys() != set(keys)):
        raise LetterError("letter: expected a JSON object of another kind")
    return content


def _advert(advert: Advert) -> dict[str, str]:
    return {name: value.hex() for name, value in vars(advert).items()}


def _as_advert(content: Any) -> Advert:
    if not isinstance(content, dict) or content.keys() != Advert.__dataclass_fields__.keys():
        raise LetterError(f"advert: expected the fields {', '.join(Advert.__dataclass_fields__)}")
    keys = {name: _bytes(content[name], _KEY) for name in ("seal", "mask", "seed")}
    return Advert(**keys, signature=_bytes(content["signature"], None))


def _bytes(text: Any, length: int | None) -> bytes:
    """The bytes of a hexadecimal text, of that length, or at most a signature's."""
    if not isinstance(text, str) or len(text) > 2 * (length or _MOST_SIGNATURE):
        raise LetterError("letter: expected a hexadecimal text of bounded length")
    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise LetterError("letter: expected a hexadecimal text") from None
    if length is not None and len(data) != length:
        raise LetterError(f"letter: expected {length} bytes, found {len(data)}")
    return data


def _name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise LetterError("letter: expected the name of a hospital: letters, digits, - and _")
    return name
