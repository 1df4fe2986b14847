"""docs/reliability.md, written by the run that it reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sim.faults import Outcome
from sim.soak import Soaked

_HEAD = """# Reliability

Written by `cxrbase-sim faults` and `cxrbase-sim soak`, which do all of this to a consortium of real processes on one machine: Flower's
SuperLink and SuperNodes under our daemons, TLS, keys, a line of its own for each hospital that can be cut, stalled and slowed.
"""

_TAIL = """## What has a test of its own

| fault | what happens | test |
|---|---|---|
| the operator's disk is full | the rounds die at the commit and are started again until there is room; no round is lost, same bits | `tests/network/test_machines.py` |
| a hospital's disk is full | its daemon leaves before it is (`daemon.least_free`), the others go on, it comes back by itself | the same |
| a hospital's clock is off by a day | it is told so, with the difference; Flower would refuse its signatures without a word | the same |
| one key in two daemons | the second is told, the first is not disturbed, same bits | the same |
| a reply comes twice, or belongs to a past round, or is in another's name | it counts once, or not at all (`ROUND`, `IDENTITY`) | `tests/network/test_rogue.py` |
| unknown, revoked, missing key; other authority; expired certificate; plain text; changed code | nobody gets in, nothing runs, both sides say why | `tests/network/test_turned_away.py`, `test_membership.py` |
| the demo's whole plan over the network | every state of every round has the digest that the simulation gives | `tests/network/test_demo.py` |

## What costs time

- **A ClientApp that is killed** is noticed by Flower's SuperNode when its task has not been heard of for a minute; then it is asked again.
- **A hospital that leaves in the middle of a round** is waited for: `federation.absence` seconds once the quorum is there (default 900), or the deadline.
- **A SuperNode that was killed** signs off what it could not sign off itself when it is back, or its key would be held for a minute (Flower issue 4844).
"""


def faults_section(outcomes: Sequence[Outcome], *, same: bool, sessions: int, seconds: float, cores: int) -> str:
    """The table of faults as Markdown; `sessions` is how often the rounds were begun anew, the first time included."""
    lines = [
        "## One fault in each round",
        "",
        f"Three hospitals, {len(outcomes)} rounds, {seconds / 60:.0f} minutes on {cores} cores, beside other work. Rounds lost: {_lost(outcomes)}. The rounds were begun anew "
        f"{sessions - 1} times, each time at the first one that was not committed; a hospital that had answered it already sent the same answer again. "
        f"The final model is {'the same, to the bit, as' if same else '**not** the same as'} the one that these hospitals reach "
        "without a network or a fault.",
        "",
        "A fault strikes in the phase named; *until committed* counts from there to the commit of the round, which takes about "
        f"{_usual(outcomes):.0f} s where nothing has to be waited for. *Left out* are hospitals whose update is not in the round.",
        "",
        "| round | fault | phase | until committed | attempts | left out |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {o.round} | {o.what} | {o.phase} | {o.seconds:.0f} s | {o.attempts} | {', '.join(o.missing) or 'nobody'} |"
        for o in outcomes
    ]
    return "\n".join(lines) + "\n"


def soak_section(soaked: Soaked) -> str:
    """The soak as Markdown."""
    grown = {name: size for name in sorted(soaked.memory) if (size := soaked.growth(name)) is not None}
    lines = [
        "## A soak",
        "",
        f"Nine hospitals (eight, one of which is gone for good after a third of the rounds, and one that joins after a half), {soaked.rounds} rounds, "
        f"{len(soaked.events)} events, {soaked.seconds / 60:.0f} minutes. All {len(soaked.attempts)} rounds were committed, "
        f"{sum(attempt > 1 for attempt in soaked.attempts)} of them at a second attempt. {_back(soaked)}",
        "",
        "| hospital | what happened (after round) | rounds it is in |",
        "|---|---|---|",
    ]
    for name in sorted({*soaked.admitted, *(event.hospital for event in soaked.events)}):
        told = (
            "; ".join(f"{event.what} ({event.round})" for event in soaked.events if event.hospital == name) or "nothing"
        )
        lines.append(f"| {name} | {told} | {len(soaked.admitted.get(name, []))} of {soaked.rounds} |")
    lines += [
        "",
        "Memory of the processes that lived long enough to tell, from their first warm rounds to the last ones:",
        "",
    ]
    lines += ["| process | MB then | grown by |", "|---|---|---|"]
    for name, size in grown.items():
        first = next(value for _, value in sorted(soaked.memory[name].items()))
        lines.append(f"| {name.rpartition(' (')[0]} | {first:.0f} | {size:+.1f} MB |")
    return "\n".join(lines) + "\n"


def _back(soaked: Soaked) -> str:
    out = soaked.locked_out()
    return f"**Locked out: {', '.join(out)}.**" if out else "Everybody who came back took part again."


def write_report(target: Path, results: Path) -> None:
    """Write the document from the sections that lie in `results`."""
    sections = [
        path.read_text(encoding="utf-8") for name in ("faults.md", "soak.md") if (path := results / name).exists()
    ]
    target.write_text("\n".join([_HEAD, *sections, _TAIL]), encoding="utf-8")


def keep(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write outcomes as JSON lines."""
    path.write_text("".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes), encoding="utf-8")


def _lost(outcomes: Sequence[Outcome]) -> int:
    """Rounds up to the last one that have no outcome."""
    return max(outcome.round for outcome in outcomes) - len(outcomes)


def _usual(outcomes: Sequence[Outcome]) -> float:
    times = sorted(outcome.seconds for outcome in outcomes)
    return times[len(times) // 4]
