"""The round loop: choose hospitals, ask them, fold their replies in as they come, commit, report.

Everything that outlives a round is in the run directory, so the loop starts at the first round that is not committed,
whatever ended the last session.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing

from cxrbase_model.aggregation import AngleMean
from cxrbase_model.messages import Task
from cxrbase_model.plan import EvaluateStage, Plan, Round, plan_to_text, timeline
from cxrbase_model.state import State, digest
from server.broadcast import Broadcast, Broadcasts
from server.cohort import choose
from server.exchange import Exchange, Stopped
from server.intake import Intake
from server.live import Live
from server.newcomers import Newcomers
from server.protection import Protection, RunPrivacy
from server.records import Record, joined, record, told, usual_norm
from server.roster import Roster
from server.rules.gathering import Gathering, gathering
from server.secure_round import SecureRound
from server.store import RunStore
from server.unmask import unmasked_for
from server.variates import taken_in
from server.weights import GlobalModel

Observer = Callable[[Record], None]

_LOOK_EVERY = 2.0  # seconds between looks at who is there while the run is held
_DESCRIPTION = 120.0  # seconds that a newcomer may take to describe itself while the others wait for the next round


class RunFailed(RuntimeError):
    """The run cannot go on; the message says why and what to do. Everything committed is kept."""


class RoundLoop:
    """Runs a plan to its end over an `Exchange`.

    `expected` is how many hospitals there are, if that is known: the first session waits until as many have answered. Later ones
    wait for those of the last round. `live` is told what goes on, and asked whether to hold or to end. `patience` is how many
    seconds lie between two times that hospitals that have refused are asked again; 0 for hospitals that will not change. `noise_seed`
    is for simulations: privacy noise that can be repeated, and taken off again.
    """

    def __init__(
        self,
        exchange: Exchange,
        store: RunStore,
        live: Live,
        *,
        expected: int | None = None,
        patience: float = 0.0,
        observers: Iterable[Observer] = (),
        noise_seed: int | None = None,
    ) -> None:
        self._exchange = exchange
        self._store = store
        self._live = live
        self._plan: Plan = store.plan
        self._text = plan_to_text(store.plan)
        self._run = store.plan.digest[:16]
        self._expected, self._patience = expected, patience
        self._observers = list(observers)
        self._roster = Roster()
        task = Task("describe", self._run, 0, "describe", 1, "", self._text, self._plan.digest)
        self._newcomers = Newcomers(exchange, live, self._roster, task, self._plan.data.findings, patience)
        self._model = GlobalModel(store)
        self._doubt = ""
        self._privacy = RunPrivacy(store, noise_seed)
        self._broadcasts = Broadcasts(store.folder, store.plan.transport)

    def run(self) -> None:
        """Run every round that is not committed yet; RunFailed or Stopped where that is not possible."""
        with closing(self._broadcasts):
            self._gather()
            for item in timeline(self._plan)[self._store.next_round - 1 :]:
                self._hold()
                self._run_round(item)

    def _hold(self) -> None:
        """Wait while the operator wants the run to hold; Stopped where it is to end."""
        if self._live.paused() and not self._live.stopping():
            self._live.tell("paused", "resume with cxrbase-server resume")
            looked = time.monotonic()
            for _ in self._exchange.pauses(float("inf")):
                if not self._live.paused() or self._live.stopping():
                    break
                if time.monotonic() - looked >= _LOOK_EVERY:
                    looked = time.monotonic()
                    self._live.look(self._exchange.nodes().values(), ())
        self._end_where_asked()

    def _end_where_asked(self) -> None:
        if self._live.stopping():
            raise Stopped

    def _gather(self) -> None:
        """Wait for the hospitals to appear and describe themselves; commit that as round 0 in the first session."""
        federation, started = self._plan.federation, time.monotonic()
        missed = self._of_the_last_round()
        self._live.tell("gathering")
        for _ in self._exchange.pauses(federation.join_deadline):
            self._end_where_asked()
            self._newcomers.describe(federation.join_deadline)
            enough = len(self._roster.sites) >= federation.quorum
            if missed and enough and time.monotonic() - started >= federation.absence:
                break
            if self._is_complete(missed) and (enough or not self._patience):
                break
            self._live.tell("gathering", self._gathered())
        if len(self._roster.sites) < federation.quorum:
            raise RunFailed(
                f"{len(self._roster.sites)} hospitals joined within {time.monotonic() - started:.0f} s, "
                f"the quorum is {federation.quorum}{told(self._roster.entries.values())}"
            )
        if self._store.next_round == 0:
            entries = list(self._roster.entries.values())
            self._commit(record(0, "describe", "describe", 1, 1, 1, started, entries), None, ends_stage=False)

    def _gathered(self) -> str:
        """Who is there so far, for an operator."""
        there = ", ".join(sorted(self._roster.sites)) or "nobody yet"
        return f"{there}; the quorum is {self._plan.federation.quorum}{told(self._roster.entries.values())}"

    def _of_the_last_round(self) -> set[str]:
        """The hospitals that the newest committed round admitted: after an interruption they are waited for."""
        records = self._store.records()
        lines = records[-1]["hospitals"] if records else []
        return {line["site"] for line in lines if line["status"] == "admitted"}

    def _is_complete(self, missed: set[str]) -> bool:
        if missed:
            return missed <= self._roster.sites.keys()
        return self._roster.is_complete(self._expected, self._plan.federation.quorum)

    def _run_round(self, item: Round) -> None:
        for attempt in range(1, self._plan.federation.repeats + 2):
            self._await_quorum(item)
            self._live.begin(item.number, item.stage.name, attempt)
            if self._attempt(item, attempt):
                return
            if self._patience and attempt <= self._plan.federation.repeats:
                list(self._exchange.pauses(self._patience))
        raise RunFailed(
            f"round {item.number} ({item.stage.name}) had no quorum of {self._plan.federation.quorum} in "
            f"{self._plan.federation.repeats + 1} attempts{told(self._last_entries)}{self._doubt}; resume when the hospitals are back"
        )

    def _await_quorum(self, item: Round) -> None:
        """Wait until enough hospitals are there to begin a round; without patience, begin with those that are."""
        federation = self._plan.federation
        self._roster.ask_refused_again()
        for _ in self._exchange.pauses(federation.join_deadline):
            self._end_where_asked()
            self._newcomers.describe(min(federation.deadline, _DESCRIPTION))
            able = self._roster.able(item.stage.kind, self._exchange.nodes())
            if len(able) >= federation.quorum or not self._patience:
                return
            self._live.tell(
                "gathering", f"round {item.number} needs {federation.quorum} hospitals, {len(able)} are there"
            )
        raise RunFailed(
            f"round {item.number} ({item.stage.name}): {len(able)} hospitals were there within {federation.join_deadline:.0f} s, "
            f"the quorum is {federation.quorum}{told(self._roster.entries.values())}; resume when the hospitals are back"
        )

    def _attempt(self, item: Round, attempt: int, outgrown: float | None = None) -> bool:
        """One attempt at a round; whether it reached the quorum and was committed.

        outgrown: the usual norm in place of the last rounds', where most hospitals have been asked already and were above that one's limit.
        """
        started = time.monotonic()
        before = self._model.before(item)
        federation = self._plan.federation
        able = self._roster.able(item.stage.kind, self._exchange.nodes())
        cohort = choose(able, federation.fraction, federation.quorum, self._plan.seed, item.number)
        if (bound := unmasked_for(self._store.folder, item.number)) is not None:
            cohort = sorted(bound & set(able))
        protection = self._privacy.of(item, attempt, cohort)
        whole = before | self._model.variates(item)
        task = Task(
            item.stage.kind, self._run, item.number, item.stage.name, item.stage_round, item.model_of,
            self._text, self._plan.digest, clip=protection.clip if protection else None,
        )  # fmt: skip
        broadcast = self._broadcasts.next(task, whole, cohort)
        if self._plan.aggregation.secure is not None and not isinstance(item.stage, EvaluateStage):
            return self._secured(item, attempt, started, before, broadcast, cohort, protection)
        usual = outgrown or usual_norm(self._store.records(), item.stage.name)
        rule, hold = self._plan.aggregation.rule, federation.compares
        # The others look at names and shapes alone, and rounding all weights for these takes time.
        start = broadcast.state if isinstance(rule, AngleMean) else whole
        with gathering(rule, start, self._store.folder, usual, protection, hold=hold) as gathered:
            # The names and shapes of `whole` are those that hospitals start from.
            intake = Intake(self._plan, task, whole, gathered, usual, broadcast.bytes_sent)
            self._ask(cohort, broadcast, intake)
            self._last_entries = [intake.entries[name] for name in sorted(intake.entries)]
            grown = intake.outgrown(len(able)) if outgrown is None else None
            if grown is None and intake.admitted >= federation.quorum:
                self._finish(item, attempt, started, before, gathered, protection)
                return True
        return grown is not None and self._attempt(item, attempt, grown)  # their outboxes answer, without training

    def _secured(
        self, item: Round, attempt: int, started: float, before: State, broadcast: Broadcast, cohort: list[str],
        protection: Protection | None,
    ) -> bool:  # fmt: skip
        """As `_attempt`, of a training round whose updates stay hidden."""
        secure = SecureRound(self._exchange, self._plan, broadcast, before, self._store.folder, protection)
        self._ask(cohort, broadcast, secure.intake)
        known = secure.finish(self._roster.sites)
        self._doubt = secure.doubt
        self._last_entries = [secure.intake.entries[name] for name in sorted(secure.intake.entries)]
        if known:
            self._finish(item, attempt, started, before, secure, protection, secure.told)
        return known

    def _ask(self, cohort: list[str], broadcast: Broadcast, intake: Intake) -> None:
        """Send the task to the cohort and take in what comes back."""
        federation = self._plan.federation
        names = {self._roster.sites[name]: name for name in cohort}
        if self._plan.aggregation.scaffold or not self._plan.transport.up.is_exact:
            broadcast.control_rounds = taken_in(self._store.records(), broadcast.asked.stage)
        asked = self._exchange.ask(
            {number: broadcast.task(name) for number, name in names.items()}, federation.deadline, federation.absence,
            enough=lambda: intake.admitted >= federation.quorum,
            instead=lambda number, message: broadcast.instead(names[number], message),
        )  # fmt: skip
        for node, message in asked:
            intake.take(names[node], message, self._roster.entries[names[node]])
        intake.note_silent(cohort)
        intake.compare()
        self._broadcasts.held_by(name for name, line in intake.entries.items() if line["status"] == "admitted")

    def _finish(
        self,
        item: Round,
        attempt: int,
        started: float,
        state: State,
        gathered: Gathering | SecureRound,
        protection: Protection | None,
        secure: Record | None = None,
    ) -> None:
        after, memory, variates = None, None, None
        if not isinstance(item.stage, EvaluateStage):
            after, memory, variates = self._model.advance(item, state, gathered.result(), self._last_entries)
        done = record(
            item.number, item.stage.name, item.stage.kind, item.stage_round, item.stage_rounds, attempt, started,
            self._last_entries,
        )  # fmt: skip
        if secure is not None:
            done |= {"loss": secure["loss"], "secure": secure}
        done["model"] = item.model_of
        if late := joined(self._store.records(), self._roster.entries.values()):
            done["joined"] = late
        if protection is not None:
            done["privacy"] = protection.told()
        if variates is not None:
            done["variates"] = variates
        done["state_digest"] = digest(after if after is not None else state)
        self._commit(done, after, memory, ends_stage=after is not None and item.stage_round == item.stage_rounds)

    def _commit(self, done: Record, state: State | None, memory: State | None = None, *, ends_stage: bool) -> None:
        self._store.commit(done, state, ends_stage=ends_stage, memory=memory)
        for observer in self._observers:
            observer(done)
