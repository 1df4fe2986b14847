"""What the document of reliability claims follows from the run."""

from __future__ import annotations

from sim.reliability import soak_section
from sim.soak import HOSPITALS, NEWCOMER, Soaked, schedule

ROUNDS = 30


def soaked(newcomer: list[int]) -> Soaked:
    events = schedule(ROUNDS, 0)
    gone = next(event.hospital for event in events if event.what == "gone for good")
    admitted = {name: list(range(1, ROUNDS + 1)) for name in HOSPITALS if name != gone} | {NEWCOMER: newcomer}
    return Soaked(ROUNDS, 60.0, events, admitted, [1] * ROUNDS, {}, gone)


def test_a_hospital_that_was_locked_out_is_named() -> None:
    assert soaked([]).locked_out() == [NEWCOMER]
    assert f"**Locked out: {NEWCOMER}.**" in soak_section(soaked([]))
    assert "Everybody who came back took part again." in soak_section(soaked([29, 30]))
