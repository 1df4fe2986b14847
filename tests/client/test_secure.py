"""A hospital's update leaves under masks alone, its keys are used once, and it opens shares for one set of survivors."""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.app import answer
from client.cli import main
from client.held import Held, forget_held
from client.policy import Refused
from client.secure import SecureOutbox, hold
from cxrbase_model.messages import Code
from cxrbase_model.plan import Plan, plan_to_text
from cxrbase_model.secure.keys import add_mask, new_private, own_mask, pair_mask
from cxrbase_model.secure.letters import (
    MASKED,
    SHARES,
    UNMASK,
    Advert,
    LetterError,
    advert_from_bytes,
    opened_to_bytes,
    parcels_to_bytes,
    roster_to_bytes,
)
from cxrbase_model.secure.ring import Vector, rings_of
from cxrbase_model.secure.shares import combine
from cxrbase_model.settings import read, to_mapping
from server.unmask import secrets_of, take_off
from tests.client.secured import Consortium, consortium, constant, named, secure_plan

VALUES = {"a": 0.25, "b": -0.5, "c": 0.125, "d": 0.75}


@pytest.fixture
def four(tmp_path: Path) -> Consortium:
    """Four hospitals that have trained and shared."""
    made = consortium(tmp_path)
    made.train({name: constant(value) for name, value in VALUES.items()})
    made.share()
    return made


def total(four: Consortium, survivors: str, senders: str = "") -> Vector:
    rings = rings_of(four.plan, None)
    found = rings.zeros(1000)
    for name in survivors:
        found.add(rings.vector(four.masked(name, senders), 1000))
    return found


def test_the_masks_cancel_in_the_sum_and_the_shares_take_off_the_rest(four: Consortium) -> None:
    rings, found = rings_of(four.plan, None), total(four, "abc")
    assert abs(rings.body.decode(found.body)).mean() > 1, "still masked"
    opened = {name: four.opened(name, "abc") for name in "abc"}
    secrets = secrets_of(four.roster, "abc", "d", opened, 3)
    assert secrets is not None
    take_off(found, four.roster, four.session, "abc", secrets)
    share, loss, _ = rings.totals(found)
    assert share == pytest.approx(3)
    assert loss == pytest.approx(0.5)
    mean = rings.mean(found, constant(0), 3.0, 3.0)["w"]
    assert torch.allclose(mean, torch.tensor((0.25 - 0.5 + 0.125) / 3), atol=1 / rings.body.scale)


def test_shares_fewer_than_the_threshold_open_nothing(four: Consortium) -> None:
    total(four, "abcd")
    opened = {name: four.opened(name, "abcd") for name in "abc"}
    assert secrets_of(four.roster, "abcd", "", opened, 3) is not None
    del opened["a"]
    assert secrets_of(four.roster, "abcd", "", opened, 3) is None


@pytest.mark.parametrize("bits", [16, 32])
def test_with_one_colluder_fewer_than_the_threshold_a_masked_update_is_like_random_bits(
    tmp_path: Path, bits: int
) -> None:
    """Five hospitals, three needed: the server and two hospitals take off all that they know of another's update of zeros."""
    size = 200_000
    five = consortium(tmp_path, "abcde", secure_plan(bits=bits))
    five.train({name: constant(0, size) for name in "abcde"})
    five.share()
    rings, colluders = rings_of(five.plan, None), "de"
    vector = rings.vector(bytearray(five.masked("a")), size)
    for name in "bcde":
        five.masked(name)
    held = {name: Held(five.sites[name], five.task).session() for name in "abcde"}
    secrets = {name: session for name, session in held.items() if session is not None}
    for name in colluders:
        key, sign = pair_mask(bytes.fromhex(secrets[name].mask), five.roster["a"].mask, five.session, "a", name)
        add_mask(vector.parts(), key, -sign)
    shares = {place: bytes.fromhex(secrets[name].shares["a"])[:32] for place, name in ((3, "d"), (4, "e"))}
    with pytest.raises(ValueError, match="expected at least 3, found 2"):
        combine(shares, 3)
    assert _looks_random(vector.body)

    shares[1] = bytes.fromhex(secrets["b"].shares["a"])[:32]
    add_mask(vector.parts(), own_mask(combine(shares, 3), five.session), -1)
    assert _looks_random(vector.body), "the masks shared with honest hospitals are still on"
    for name in "bc":
        key, sign = pair_mask(bytes.fromhex(secrets[name].mask), five.roster["a"].mask, five.session, "a", name)
        add_mask(vector.parts(), key, -sign)
    assert not vector.body.any()
    assert not _looks_random(vector.body), "the test tells"


def _looks_random(residues: np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]) -> bool:
    """Each bit is one half of the time, each pair of neighbours too, and bytes are spread by chi-square; wrong once in 10^8."""
    data = residues.view(np.uint8)
    bits = np.unpackbits(data.reshape(-1, residues.dtype.itemsize), axis=1)
    scores = (bits.mean(axis=0) - 0.5) * 2 * np.sqrt(len(bits))
    runs = ((bits[1:] ^ bits[:-1]).mean(axis=0) - 0.5) * 2 * np.sqrt(len(bits) - 1)
    expected = len(data) / 256
    chi = float(((np.bincount(data, minlength=256) - expected) ** 2).sum() / expected)
    spread = (chi - 255) / np.sqrt(2 * 255)
    return bool(abs(scores).max() < 7 and abs(runs).max() < 7 and abs(spread) < 8)


def test_an_attempt_asked_for_again_gives_the_same_letters(four: Consortium) -> None:
    again = four.done("a", SHARES, roster_to_bytes(four.roster))
    assert again == parcels_to_bytes(four.parcels["a"])
    assert four.masked("a") == four.masked("a")
    assert opened_to_bytes(four.opened("a", "abc")) == opened_to_bytes(four.opened("a", "abc"))


def test_keys_are_for_one_roster(four: Consortium) -> None:
    other = {name: four.roster[name] for name in "abc"}
    assert four.refused("a", SHARES, roster_to_bytes(other))


def test_a_roster_too_small_or_with_other_keys_is_refused(tmp_path: Path) -> None:
    made = consortium(tmp_path, "abcd", secure_plan(quorum=4))
    made.train({name: constant(0) for name in "abcd"})
    small = {name: made.roster[name] for name in "abc"}
    own = made.roster | {"a": replace(made.roster["a"], mask=new_private())}
    for roster in (small, own, {name: made.roster[name] for name in "bcd"}):
        assert made.refused("a", SHARES, roster_to_bytes(roster))
    assert made.refused("a", SHARES, b"{}")
    assert made.refused("a", SHARES, b"not a letter")
    many = made.roster | {f"x{number}": advert for number, advert in enumerate(_adverts(7))}
    assert made.refused("a", SHARES, roster_to_bytes(many)), "the ring has room for ten"


def _adverts(count: int) -> list[Advert]:
    return [Advert(new_private(), new_private(), new_private()) for _ in range(count)]


def test_a_tampered_parcel_is_refused_and_nothing_is_masked_for_it(four: Consortium) -> None:
    parcel = four.parcels["b"]["a"]
    four.parcels["b"]["a"] = parcel[:-1] + bytes([parcel[-1] ^ 1])
    assert four.refused("a", MASKED, four.parcels_for("a"))
    four.parcels["b"]["a"] = four.parcels["c"]["a"]
    assert four.refused("a", MASKED, four.parcels_for("a")), "another's parcel in its name"
    four.parcels["b"]["a"] = parcel
    assert len(four.masked("a")) == 12 + 4 * 1000


def test_an_update_is_masked_once(four: Consortium) -> None:
    four.masked("a", "abc")
    assert four.refused("a", MASKED, four.parcels_for("a", "abd"))
    assert four.refused("a", MASKED, four.parcels_for("a", "abcd"))
    assert four.masked("a", "abc")


def test_parcels_of_too_few_or_of_strangers_are_refused(four: Consortium) -> None:
    assert four.refused("a", MASKED, four.parcels_for("a", "ab"))
    strange = {name: four.parcels[name]["a"] for name in "bcd"}
    assert four.refused("a", MASKED, parcels_to_bytes(strange | {"x": strange["b"]}))
    assert four.refused("a", MASKED, parcels_to_bytes(strange | {"a": strange["b"]}))


def test_the_steps_come_in_their_order(tmp_path: Path) -> None:
    made = consortium(tmp_path, "abc")
    assert made.refused("a", SHARES, b"{}"), "nothing was trained"
    made.train({name: constant(0) for name in "abc"})
    assert made.refused("a", MASKED, parcels_to_bytes({"b": bytes(92), "c": bytes(92)}))
    assert made.refused("a", UNMASK, named("abc"))
    made.share()
    assert made.refused("a", UNMASK, named("abc"))


@pytest.mark.parametrize("survivors", ["bcd", "ab", "abcx", "abc", ""])
def test_shares_are_opened_for_one_set_of_survivors(four: Consortium, survivors: str) -> None:
    total(four, "abcd")
    assert four.opened("a", "abd").keys.keys() == {"c"}
    assert four.refused("a", UNMASK, named(survivors) if survivors else b"{}")
    assert four.opened("a", "abd").seeds.keys() == {"a", "b", "d"}


def test_a_later_attempt_at_a_round_is_opened_for_the_same_survivors_alone(four: Consortium) -> None:
    total(four, "abcd")
    four.opened("a", "abc")
    four.train({name: constant(value) for name, value in VALUES.items()})
    four.share()
    total(four, "abcd")
    assert four.refused("a", UNMASK, named("abcd"))
    assert four.opened("a", "abc").keys.keys() == {"d"}
    assert four.opened("b", "abcd").seeds, "it has not opened the round before"
    other_run = replace(four.task, run="other", kind=UNMASK, state=named("abcd"))
    assert answer(other_run, four.sites["a"]).code is Code.SECURE


def test_another_round_has_survivors_of_its_own(four: Consortium) -> None:
    total(four, "abcd")
    four.opened("a", "abc")
    four.number = 2
    four.train({name: constant(value) for name, value in VALUES.items()})
    four.share()
    total(four, "abcd")
    assert four.opened("a", "abcd").seeds.keys() == set("abcd")


def test_a_step_of_another_round_or_other_weights_is_refused(four: Consortium) -> None:
    letter = roster_to_bytes(four.roster)
    changes: list[dict[str, Any]] = [{"round": 2}, {"state_digest": "others"}, {"run": "other"}, {"stage": "none"}]
    for change in changes:
        reply = answer(replace(four.task, kind=SHARES, state=letter, **change), four.sites["a"])
        assert reply.code is Code.SECURE


def test_a_training_asked_for_again_gets_the_same_keys_until_they_were_used_and_new_ones_then(tmp_path: Path) -> None:
    made = consortium(tmp_path, "abc")
    made.train({name: constant(VALUES[name]) for name in "abc"})
    answers = SecureOutbox(made.sites["a"], made.task, made.plan)
    assert answers.find() is None, "the fields of the answer are not known yet"
    _note(made)
    first = answers.find()
    assert first is not None
    assert first == answers.find()
    assert advert_from_bytes(first.update) == made.roster["a"]
    before = _held(made)
    made.share()
    second = answers.find()
    assert second is not None
    assert advert_from_bytes(second.update) != made.roster["a"]
    assert replace(second, update=first.update) == first
    assert _held(made) == before, "the update is the same"
    assert made.refused("a", MASKED, made.parcels_for("a")), "the keys of before are gone"


def _note(made: Consortium) -> None:
    from client.release import secured

    for name, site in made.sites.items():
        SecureOutbox(site, made.task, made.plan).keep(
            secured(name, made.task, b"", seconds=1.5, metrics={"validation_loss": 2.0})
        )


def _held(made: Consortium) -> bytes:
    (path,) = (made.sites["a"].private / "secure").glob("*/update.bin")
    return path.read_bytes()


def test_a_damaged_update_is_not_masked(four: Consortium) -> None:
    (path,) = (four.sites["a"].private / "secure").glob("*/update.bin")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert four.refused("a", MASKED, four.parcels_for("a"))


def test_a_number_beyond_the_span_keeps_the_update_in_the_hospital(tmp_path: Path) -> None:
    made = consortium(tmp_path, "a")
    for number in (1.5, float("nan"), float("inf")):
        with pytest.raises(Refused) as refused:
            hold(made.task, made.sites["a"], made.plan, constant(number), examples=1, loss=0.0)
        assert refused.value.code is Code.SPAN
    assert Held(made.sites["a"], made.task).session() is None


def test_a_weight_counts_as_the_largest_at_most(tmp_path: Path) -> None:
    made = consortium(tmp_path, "ab", secure_plan(weighting="examples", examples=1000))
    rings = rings_of(made.plan, None)
    for examples, share in ((250, 0.25), (1000, 1.0), (5000, 1.0)):
        made.train({"a": constant(0.5)}, examples)
        vector = rings.vector(_held(made), 1000)
        assert rings.totals(vector)[0] == pytest.approx(share)
        assert rings.body.decode(vector.body) == pytest.approx(0.5 * share, abs=1 / rings.body.scale)


def test_what_is_held_is_the_owners_alone_and_goes_with_what_has_to_be_forgotten(four: Consortium) -> None:
    total(four, "abcd")
    four.opened("a", "abcd")
    site = four.sites["a"]
    files = [path for path in (site.private / "secure").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"update.bin", "session.json", "opened.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert not (site.private / "outbox").exists()
    forget_held(site.private)
    left = [path.name for path in (site.private / "secure").rglob("*")]
    assert left == ["opened.json"], "that a round was unmasked is not forgotten"


def test_a_damaged_note_of_what_was_unmasked_opens_nothing(four: Consortium) -> None:
    total(four, "abcd")
    (four.sites["a"].private / "secure" / "opened.json").write_text("{", encoding="utf-8")
    assert four.step("a", UNMASK, named("abcd")).code is Code.FAILED


def test_a_damaged_session_is_none(four: Consortium) -> None:
    (path,) = (four.sites["a"].private / "secure").glob("*/session.json")
    content = json.loads(path.read_bytes())
    for damaged in (
        "{",
        "[]",
        json.dumps(content | {"schema": 0}),
        json.dumps(content | {"more": 1}),
        json.dumps({"schema": 1}),
    ):
        path.write_text(damaged, encoding="utf-8")
        assert four.refused("a", MASKED, four.parcels_for("a"))


def test_a_step_of_a_plan_that_hides_nothing_is_refused(tmp_path: Path) -> None:
    made = consortium(tmp_path, "abc")
    made.train({name: constant(0) for name in "abc"})
    open_plan = read(Plan, to_mapping(made.plan) | {"aggregation": {}})
    task = replace(made.task, kind=SHARES, plan_text=plan_to_text(open_plan), plan_digest=open_plan.digest)
    assert answer(task, made.sites["a"]).code is Code.SECURE


def test_a_rehearsal_shows_that_keys_leave_and_leaves_no_update_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = consortium(tmp_path, "a")
    file = tmp_path / "plan.yaml"
    file.write_text(plan_to_text(made.plan), encoding="utf-8")
    assert main(["rehearse", str(tmp_path / "a" / "SITE.yaml"), "--plan", str(file)]) == 0
    told = capsys.readouterr().out
    assert "leaves under masks" in told
    assert "examples" not in told
    assert not list((made.sites["a"].private / "secure").iterdir())


def test_letters_in_the_wrong_places_are_no_letters() -> None:
    with pytest.raises(LetterError):
        advert_from_bytes(named("abc"))


def test_a_clock_that_was_ahead_once_does_not_cost_a_round_its_held_update(tmp_path: Path) -> None:
    made = consortium(tmp_path, "a")
    for stage in "bc":
        Held(made.sites["a"], replace(made.task, stage=stage)).begin(bytearray(b"old"), 1)
    for folder in (made.sites["a"].private / "secure").iterdir():
        os.utime(folder, (time.time() + 86_400,) * 2)
    held = Held(made.sites["a"], made.task)
    assert held.update(held.begin(bytearray(b"new"), 1)) == bytearray(b"new")
