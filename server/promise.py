"""What a run has promised to hospitals, in words and a number, for its report."""

from __future__ import annotations

from typing import Any

from cxrbase_model.plan import Plan
from cxrbase_model.protection import HospitalPrivacy
from server.spent import epsilon

Record = dict[str, Any]


def promise(plan: Plan, records: list[Record]) -> dict[str, Any] | None:
    """Epsilon after the newest round that trained, for each hospital too, and what it means; None where nothing is promised.

    `epsilon` is None where it is infinite; `server_epsilon` is the one against the server itself, None where nothing is promised to it.
    """
    privacy = plan.aggregation.privacy
    trained = [record for record in records if "privacy" in record]
    if privacy is None or not trained:
        return None
    last = trained[-1]
    told = last["privacy"]
    return {
        "epsilon": told["epsilon"],
        "delta": told["delta"],
        "round": last["round"],
        "hospitals": told["hospitals"],
        "server_epsilon": _against_server(plan, privacy, told),
        "seeded": any(record["privacy"]["seeded"] for record in trained),
        "text": headline(told, last["round"]),
        "statements": list(_statements(plan, privacy, trained)),
    }


def headline(told: Record, number: int) -> str:
    """The one line that says it."""
    if told["epsilon"] is None:
        return f"hospital-level epsilon: none, since no noise is added (after round {number})"
    return f"hospital-level epsilon = {told['epsilon']:.3g} at delta = {told['delta']:g} after round {number}"


def _statements(plan: Plan, privacy: HospitalPrivacy, trained: list[Record]) -> list[str]:
    told = trained[-1]["privacy"]
    if told["epsilon"] is None:
        return ["Updates are clipped, without noise: nothing is promised."]
    found = [
        "Against whoever sees the global models, all of them, and whatever else they know: had the updates of any one hospital been zero, "
        f"no outcome would be more than e^{told['epsilon']:.3g} times as likely or unlikely, but for a chance of {told['delta']:g}.",
        "Not covered: who took part in which round; losses, scores and counts that hospitals tell beside their updates, which are in this "
        "report; a patient of whom several hospitals have pictures.",
        _server_words(plan, privacy, told),
    ]
    if any(record["privacy"]["seeded"] for record in trained):
        found.append(
            "The noise of this simulation was seeded: whoever knows the seed can take it off, and nothing is promised against them."
        )
    return found


def _server_words(plan: Plan, privacy: HospitalPrivacy, told: Record) -> str:
    if privacy.noise == "server":
        secured = plan.aggregation.secure is not None
        sees = "each round's sum" if secured else "every update"
        return f"The server sees {sees} without noise and adds it: nothing is promised against the server itself."
    makers = privacy.makers(plan.federation.quorum)
    colluders = f"It holds while {makers} hospitals of each round, the one that is protected among them, add their share and do not tell it."
    if plan.aggregation.secure is not None:
        return f"Hospitals add the noise and the server sees no update: the same is promised against the server. {colluders}"
    alone = _against_server(plan, privacy, told)
    return f"Hospitals add the noise, a share each; the server sees updates with one share, and against it epsilon is {alone:.3g}. {colluders}"


def _against_server(plan: Plan, privacy: HospitalPrivacy, told: Record) -> float | None:
    """Epsilon against the server: what one share alone promises where it sees each update, of as many sums."""
    if privacy.noise == "server" or told["epsilon"] is None:
        return None
    if plan.aggregation.secure is not None:
        return float(told["epsilon"])
    return epsilon([privacy.share(plan.federation.quorum)] * int(told["sums"]), privacy.delta)
