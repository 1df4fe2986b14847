"""One attempt at a secured round: the server learns the sum of the updates and no single one (Bonawitz et al. 2017, CCS).

    training      -> adverts                 each hospital's keys for this attempt; its update stays there
    secure-shares -> parcels                 shares of its secrets, sealed for the others
    secure-masked -> vectors                 masked updates, added up as they come
    secure-confirm -> consents               signatures of who has survived, where hospitals have keys to sign with
    secure-unmask -> opened shares           which take the survivors' own masks off the sum, and those that the others have left on it

A hospital that is not there for a step is left out from then on; the round goes on while enough are. In memory is one sum, whatever
the number of hospitals.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from flwr.app import Message
from torch import Tensor

from cxrbase_model.messages import Code, Reply, Task, WireError, reply_from_message
from cxrbase_model.plan import Plan
from cxrbase_model.secure.letters import (
    CONFIRM,
    MASKED,
    SHARES,
    UNMASK,
    LetterError,
    Opened,
    Roster,
    Survivors,
    consent_from_bytes,
    context_of,
    least,
    needed,
    opened_from_bytes,
    parcels_from_bytes,
    parcels_to_bytes,
    roster_to_bytes,
    session_of,
    survivors_to_bytes,
)
from cxrbase_model.secure.ring import RingError, Vector, rings_of
from cxrbase_model.state import State, size
from server.admission import Rejected, check_reply
from server.adverts import Adverts
from server.broadcast import Broadcast
from server.exchange import Exchange
from server.protection import Protection
from server.records import Record
from server.unmask import remember, secrets_of, take_off, unmasked_for

_DOUBT = "; the sum of the updates cannot be right: one hospital or more did not add what it should, and nobody can see which"


class SecureRound:
    """One attempt at the round of a broadcast training task. `state` has the names and shapes of the weights; `folder` is the run directory.

    `intake` takes the replies to the training; then `finish` does the rest, and `result` has the aggregated update: the mean, or what
    `protection` makes of the sum under aggregation.privacy.
    """

    def __init__(
        self, exchange: Exchange, plan: Plan, broadcast: Broadcast, state: Mapping[str, Tensor], folder: Path,
        protection: Protection | None = None,
    ) -> None:  # fmt: skip
        if plan.aggregation.secure is None:
            raise ValueError("aggregation.secure: expected it to be set, found none")
        self.intake = Adverts(plan, broadcast)
        self.told: Record = {}  # for the round's record, after `finish`
        self.doubt = ""  # what an operator is told where there were enough hospitals and still no mean
        self._exchange, self._plan, self._secure, self._task, self._state = (
            exchange, plan, plan.aggregation.secure, broadcast.asked, state,
        )  # fmt: skip
        self._rings, self._folder, self._protection = rings_of(plan, broadcast.asked.clip), folder, protection
        self._sum: State | None = None
        self._short = 0.0
        self._nodes: dict[str, int] = {}

    def finish(self, nodes: Mapping[str, int]) -> bool:
        """Go through the steps with the hospitals that have trained; whether the mean was learned. `nodes`: their numbers by name."""
        self._nodes = dict(nodes)
        roster = self.intake.roster
        threshold, quorum = needed(self._secure.threshold, len(roster)), self._plan.federation.quorum
        fewest = least(self._secure.threshold, len(roster), quorum)
        if (bound := unmasked_for(self._folder, self._task.round)) is not None:
            fewest = max(fewest, len(bound))
        self.told = {"members": len(roster), "needed": fewest}
        if not fewest <= len(roster) <= self._secure.hospitals:
            return False
        parcels = self._share(roster, fewest)
        if len(parcels) < fewest:
            return False
        total, survivors = self._add_up(parcels, fewest)
        self.told |= {"shared": len(parcels), "survivors": len(survivors)}
        if len(survivors) < fewest or not self._unmask(total, roster, set(parcels), survivors, threshold):
            return False
        return self._open(total, len(survivors))

    def result(self) -> State:
        """The aggregated update, float32; ValueError before `finish` has learned it. To be asked for once."""
        if self._sum is None:
            raise ValueError("mean of no updates")
        if self._protection is None:
            return self._sum
        self._protection.count(self._short, noised=not self._protection.clips)
        return self._protection.released(self._sum)

    def _share(self, roster: Roster, fewest: int) -> dict[str, dict[str, bytes]]:
        """The parcels of each hospital that has answered, by whom they are for."""
        found: dict[str, dict[str, bytes]] = {}
        letter = roster_to_bytes(roster)
        for name, answer in self._ask(SHARES, dict.fromkeys(roster, letter), fewest):
            try:
                parcels = parcels_from_bytes(answer)
            except LetterError:
                parcels = {}
            if parcels.keys() == roster.keys() - {name}:
                found[name] = parcels
            else:
                self._leave_out(name, "rejected", Code.MALFORMED)
        return found

    def _add_up(self, parcels: Mapping[str, Mapping[str, bytes]], fewest: int) -> tuple[Vector, set[str]]:
        """The sum of the masked updates, and whose they are."""
        letters = {
            name: parcels_to_bytes({other: parcels[other][name] for other in parcels if other != name})
            for name in parcels
        }
        count = size(self._state)
        total, survivors = self._rings.zeros(count), set()
        for name, answer in self._ask(MASKED, letters, fewest):
            try:
                total.add(self._rings.vector(answer, count))
            except RingError:
                self._leave_out(name, "rejected", Code.MALFORMED)
                continue
            survivors.add(name)
        return total, survivors

    def _unmask(self, total: Vector, roster: Roster, members: set[str], survivors: set[str], threshold: int) -> bool:
        """Take all masks off the sum in place; whether enough shares came for that. Asks for as long as a training may take."""
        remember(self._folder, self._task.round, survivors)
        dropped, opened = members - survivors, dict[str, Opened]()
        letter = self._confirmed(roster, survivors, threshold)
        for name, answer in self._ask(UNMASK, dict.fromkeys(survivors, letter), threshold, keep=True):
            try:
                shares = opened_from_bytes(answer)
            except LetterError:
                continue
            if shares.seeds.keys() != survivors or shares.keys.keys() != dropped:
                continue
            opened[name] = shares
            secrets = secrets_of(roster, survivors, dropped, opened, threshold)
            if secrets is not None:
                context = context_of(self._task.plan_digest, self._task.stage, self._task.round)
                take_off(total, roster, session_of(context, roster), survivors, secrets)
                return True
        return False

    def _confirmed(self, roster: Roster, survivors: set[str], threshold: int) -> bytes:
        """The letter that names the survivors, with as many signatures as hospitals want that know each other's keys."""
        named = Survivors(frozenset(survivors))
        if not all(advert.signature for advert in roster.values()):
            return survivors_to_bytes(named)
        letter = dict.fromkeys(survivors, survivors_to_bytes(named))
        for name, answer in self._ask(CONFIRM, letter, threshold, keep=True):
            with contextlib.suppress(LetterError):
                named.signatures[name] = consent_from_bytes(answer)
            if len(named.signatures) > threshold:  # one more, since nobody needs its own
                break
        return survivors_to_bytes(named)

    def _open(self, total: Vector, survivors: int) -> bool:
        """The mean of the sum without masks; false where no such updates have it."""
        share, loss, self._short = self._rings.totals(total)
        rounding = survivors / self._rings.tail.scale
        if self._plan.federation.weighting == "uniform" and abs(share - survivors) <= rounding:
            share = float(survivors)
        elif self._plan.federation.weighting == "uniform" or not 0 < share <= survivors + rounding:
            self.doubt = _DOUBT
            return False
        try:
            self._sum = self._rings.mean(total, self._state, share, share if self._protection is None else 1.0)
        except RingError:
            self.doubt = _DOUBT
            return False
        self.told |= {"loss": float(f"{loss:.6g}"), "weight": float(f"{share:.6g}")}
        return True

    def _ask(
        self, kind: str, letters: Mapping[str, bytes], enough: int, *, keep: bool = False
    ) -> Iterator[tuple[str, bytes]]:
        """Send a step's letters and yield each hospital's answer; those that give none are left out of the round, unless `keep`."""
        tasks = {self._nodes[name]: replace(self._task, kind=kind, state=letter) for name, letter in letters.items()}
        names = {self._nodes[name]: name for name in letters}
        for name, letter in letters.items():
            self.intake.entries[name]["bytes_sent"] += len(letter)
        federation, deadline, answered = self._plan.federation, self._secure.deadline, set[str]()
        if keep:  # nothing is lost yet for those who wait
            deadline = max(deadline, federation.deadline)
        asked = self._exchange.ask(
            tasks, deadline, min(deadline, federation.absence), enough=lambda: len(answered) >= enough
        )
        for node, message in asked:
            name = names[node]
            answer = self._answer(name, tasks[node], message, keep)
            if answer is not None:
                answered.add(name)
                self.intake.entries[name]["bytes_received"] += len(answer)
                yield name, answer
        for name in letters:
            if not keep and name not in answered and self.intake.entries[name]["status"] == "admitted":
                self._leave_out(name, "silent", Code.NO_REPLY)

    def _answer(self, name: str, task: Task, message: Message, keep: bool) -> bytes | None:
        reply: Reply | None = None
        try:
            reply = reply_from_message(message)
            if reply.code is None and reply.site != name:
                raise Rejected(Code.IDENTITY)
            check_reply(reply, task, set())
        except (WireError, Rejected) as error:
            if not keep:
                refused = reply is not None and reply.code is not None
                self._leave_out(name, "refused" if refused else "rejected", error.code)
            return None
        return reply.update

    def _leave_out(self, name: str, status: str, code: Code) -> None:
        self.intake.entries[name] |= {"status": status, "code": code.value}
