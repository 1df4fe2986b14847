"""The round loop: choose hospitals, ask them, fold their replies in as they come, commit, report.

Everything that outlives a round is in the run directory, so the loop starts at the first round that is not committed,
whatever ended the last session.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from flwr.app import Message

from cxrbase_model.codec import pack
from cxrbase_model.messages import MEANING, Code, Reply, Task, WireError, reply_from_message
from cxrbase_model.plan import EvaluateStage, Plan, Round, plan_to_text, timeline
from cxrbase_model.state import State, add, digest
from server.admission import Rejected, admit_update, check_reply
from server.aggregate import WeightedMean
from server.cohort import choose
from server.exchange import Exchange
from server.initial import initial_state
from server.store import SCHEMA, RunStore

Record = dict[str, Any]
Observer = Callable[[Record], None]


class RunFailed(RuntimeError):
    """The run cannot go on; the message says why and what to do. Everything committed is kept."""


@dataclass
class Roster:
    """Which hospital is behind which node, as each described itself in this session."""

    sites: dict[str, int] = field(default_factory=dict)  # name to node id
    kinds: dict[str, list[str]] = field(default_factory=dict)  # name to the task kinds it can take part in
    entries: dict[str, Record] = field(default_factory=dict)  # name to its line in the record
    asked: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    def ask_refused_again(self) -> None:
        """Let the hospitals that refused be asked anew: they may have mended what was wrong."""
        self.asked -= self.refused
        self.refused.clear()

    def is_complete(self, expected: int | None, quorum: int) -> bool:
        """Whether all that are expected have answered, be it by a refusal, or enough have joined where none are."""
        if expected is None:
            return len(self.sites) >= quorum
        return len(self.sites) + len(self.refused) >= expected

    def able(self, kind: str, nodes: Iterable[int]) -> list[str]:
        """The connected hospitals that can take part in a task of that kind, sorted."""
        present = set(nodes)
        return sorted(name for name, node in self.sites.items() if node in present and kind in self.kinds[name])


class RoundLoop:
    """Runs a plan to its end over an `Exchange`.

    `expected` is how many hospitals there are, if that is known: the first round waits until as many have answered.
    """

    def __init__(
        self, exchange: Exchange, store: RunStore, *, expected: int | None = None, observers: Iterable[Observer] = ()
    ) -> None:
        self._exchange = exchange
        self._store = store
        self._plan: Plan = store.plan
        self._text = plan_to_text(store.plan)
        self._run = store.plan.digest[:16]
        self._expected = expected
        self._observers = list(observers)
        self._roster = Roster()
        self._state: tuple[int, State] | None = None  # the newest weights, so that they are not read back each round

    def run(self) -> None:
        """Run every round that is not committed yet; RunFailed or Stopped where that is not possible."""
        self._gather()
        for item in timeline(self._plan):
            if item.number >= self._store.next_round:
                self._run_round(item)

    def _gather(self) -> None:
        """Wait for the hospitals to appear and describe themselves; commit that as round 0 in the first session."""
        started = time.monotonic()
        for _ in self._exchange.pauses(self._plan.federation.join_deadline):
            self._describe_newcomers(self._plan.federation.join_deadline)
            if self._roster.is_complete(self._expected, self._plan.federation.quorum):
                break
        if len(self._roster.sites) < self._plan.federation.quorum:
            raise RunFailed(
                f"{len(self._roster.sites)} hospitals joined within {time.monotonic() - started:.0f} s, "
                f"the quorum is {self._plan.federation.quorum}{_told(self._roster.entries.values())}"
            )
        if self._store.next_round == 0:
            record = self._record(0, "describe", "describe", 1, 1, 1, started, list(self._roster.entries.values()))
            self._commit(record, None, ends_stage=False)

    def _describe_newcomers(self, deadline: float) -> None:
        nodes = [node for node in self._exchange.nodes() if node not in self._roster.asked]
        task = Task("describe", self._run, 0, "describe", 1, "", self._text, self._plan.digest)
        self._roster.asked.update(nodes)
        for node, message in self._exchange.ask(dict.fromkeys(nodes, task), deadline):
            try:
                reply = reply_from_message(message)
                check_reply(reply, task, self._roster.sites.keys())
            except (WireError, Rejected) as error:
                name = f"node {node}" if isinstance(error, WireError) else reply.site
                self._roster.entries.setdefault(name, _entry(name, "refused", error.code))
                self._roster.refused.add(node)
                continue
            description = reply.description or {}
            self._roster.sites[reply.site] = node
            self._roster.kinds[reply.site] = list(description.get("kinds", ()))
            self._roster.entries[reply.site] = _entry(reply.site, "admitted", None, reply, description=description)

    def _run_round(self, item: Round) -> None:
        for attempt in range(1, self._plan.federation.repeats + 2):
            self._roster.ask_refused_again()
            self._describe_newcomers(self._plan.federation.deadline)
            if self._attempt(item, attempt):
                return
        raise RunFailed(
            f"round {item.number} ({item.stage.name}) had no quorum of {self._plan.federation.quorum} in "
            f"{self._plan.federation.repeats + 1} attempts{_told(self._last_entries)}; resume when the hospitals are back"
        )

    def _attempt(self, item: Round, attempt: int) -> bool:
        """One attempt at a round; whether it reached the quorum and was committed."""
        started = time.monotonic()
        state = self._state_before(item)
        federation = self._plan.federation
        able = self._roster.able(item.stage.kind, self._exchange.nodes())
        cohort = choose(able, federation.fraction, federation.quorum, self._plan.seed, item.number)
        task = Task(
            item.stage.kind, self._run, item.number, item.stage.name, item.stage_round, item.model_of,
            self._text, self._plan.digest, digest(state), pack(state),
        )  # fmt: skip
        mean = WeightedMean(state)
        entries: dict[str, Record] = {}
        names = {self._roster.sites[name]: name for name in cohort}
        for node, message in self._exchange.ask(dict.fromkeys(names, task), federation.deadline):
            entries[names[node]] = self._take(names[node], message, task, state, mean, entries.keys())
        for name in cohort:
            entries.setdefault(name, _entry(name, "silent", Code.NO_REPLY) | {"bytes_sent": len(task.state)})
        self._last_entries = [entries[name] for name in sorted(entries)]
        if sum(entry["status"] == "admitted" for entry in entries.values()) < federation.quorum:
            return False
        self._finish(item, attempt, started, state, mean)
        return True

    def _take(
        self, name: str, message: Message, task: Task, state: State, mean: WeightedMean, answered: Iterable[str]
    ) -> Record:
        """Fold one reply into the mean, or say why not; returns the hospital's line in the record."""
        reply: Reply | None = None
        try:
            reply = reply_from_message(message)
            if reply.site != name:
                raise Rejected(Code.MALFORMED)
            check_reply(reply, task, set(answered))
            size = None
            if task.kind != "evaluate":
                admitted = admit_update(reply, state, self._plan.federation.max_update_norm)
                weight = admitted.examples if self._plan.federation.weighting == "examples" else 1
                if not mean.fits(admitted.update, weight):
                    raise Rejected(Code.NORM)
                mean.fold(admitted.update, weight)
                size = float(f"{admitted.norm:.6g}")
            entry = _entry(name, "admitted", None, reply, update_norm=size)
            if reply.evaluation is not None:
                entry["evaluations"] = {task.model: reply.evaluation}
        except (WireError, Rejected) as error:
            refused = reply is not None and reply.code is not None
            entry = _entry(name, "refused" if refused else "rejected", error.code, reply)
        return entry | {"bytes_sent": len(task.state)}

    def _finish(self, item: Round, attempt: int, started: float, state: State, mean: WeightedMean) -> None:
        after = None
        if not isinstance(item.stage, EvaluateStage):
            after = add(state, mean.result())
            self._state = (item.number, after)
        record = self._record(
            item.number, item.stage.name, item.stage.kind, item.stage_round, item.stage_rounds, attempt, started,
            self._last_entries,
        )  # fmt: skip
        record["model"] = item.model_of
        record["state_digest"] = digest(after if after is not None else state)
        self._commit(record, after, ends_stage=after is not None and item.stage_round == item.stage_rounds)

    def _state_before(self, item: Round) -> State:
        if isinstance(item.stage, EvaluateStage):
            return self._store.stage_state(item.model_of)
        if item.stage_round == 1:
            return initial_state(self._plan, item.stage, self._store)
        if self._state is not None and self._state[0] == item.number - 1:
            return self._state[1]
        return self._store.state(item.number - 1)

    def _commit(self, record: Record, state: State | None, *, ends_stage: bool) -> None:
        self._store.commit(record, state, ends_stage=ends_stage)
        for observer in self._observers:
            observer(record)

    def _record(
        self, number: int, stage: str, kind: str, stage_round: int, stage_rounds: int, attempt: int, started: float,
        entries: list[Record],
    ) -> Record:  # fmt: skip
        admitted = [entry for entry in entries if entry["status"] == "admitted"]
        return {
            "schema": SCHEMA,
            "round": number,
            "stage": stage,
            "kind": kind,
            "stage_round": stage_round,
            "stage_rounds": stage_rounds,
            "attempt": attempt,
            "seconds": round(time.monotonic() - started, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "bytes_sent": sum(entry["bytes_sent"] for entry in entries),
            "bytes_received": sum(entry["bytes_received"] for entry in entries),
            "loss": _weighted([(entry["loss"], entry["examples"]) for entry in admitted]),
            "metrics": _mean_metrics(admitted),
            "rejected": [{"site": e["site"], "code": e["code"]} for e in entries if e["status"] != "admitted"],
            "hospitals": sorted(entries, key=lambda entry: str(entry["site"])),
        }


def _entry(site: str, status: str, code: Code | None, reply: Reply | None = None, **more: Any) -> Record:
    """One hospital's line in a round's record."""
    entry: Record = {"site": site, "status": status, "code": code.value if code else None}
    entry |= {
        "examples": 0,
        "steps": 0,
        "loss": None,
        "seconds": 0.0,
        "metrics": {},
        "bytes_sent": 0,
        "bytes_received": 0,
    }
    if reply is not None:
        entry |= {"examples": reply.examples, "steps": reply.steps, "loss": reply.loss, "seconds": reply.seconds}
        entry |= {"metrics": reply.metrics, "bytes_received": len(reply.update)}
    return entry | more


def _weighted(pairs: list[tuple[float | None, int]]) -> float | None:
    known = [(value, weight) for value, weight in pairs if value is not None and weight > 0]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _mean_metrics(entries: list[Record]) -> dict[str, float]:
    """The unweighted mean over hospitals of each metric, so that a large hospital does not hide a small one."""
    names = sorted({name for entry in entries for name in entry["metrics"]})
    values = {name: [entry["metrics"][name] for entry in entries if name in entry["metrics"]] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def _told(entries: Iterable[Record]) -> str:
    """What the hospitals that did not take part answered, for an operator."""
    told = [f"{e['site']}: {e['code']} ({MEANING[Code(e['code'])]})" for e in entries if e["status"] != "admitted"]
    return f" ({'; '.join(told)})" if told else ""
