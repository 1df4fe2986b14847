"""The replies to one attempt at a round, each admitted and taken in as it comes, or left out with a code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import Message
from torch import Tensor

from cxrbase_model.messages import Code, Reply, Task, WireError, reply_from_message
from cxrbase_model.plan import Plan
from server.admission import Rejected, admit_evaluation, admit_update, check_reply, claimable, reached_by_most, unlike
from server.records import Record, entry
from server.rules.direction import directions
from server.rules.gathering import Gathering
from server.rules.held import Held


class Intake:
    """The replies of one attempt. `state` has the names and shapes of the weights, `usual` the median norm of the stage's last rounds.

    bytes_sent: of weights, to each hospital by name.
    """

    def __init__(
        self, plan: Plan, task: Task, state: Mapping[str, Tensor], gathered: Gathering, usual: float | None,
        bytes_sent: Mapping[str, int],
    ) -> None:  # fmt: skip
        self.entries: dict[str, Record] = {}  # name to the hospital's line in the record
        self._plan, self._task, self._state, self._gathered = plan, task, state, gathered
        self._bytes_sent = bytes_sent
        self._outlying = None
        if usual is not None and plan.federation.outlier is not None:
            self._outlying = plan.federation.outlier * usual

    @property
    def admitted(self) -> int:
        """How many replies were taken in."""
        return sum(line["status"] == "admitted" for line in self.entries.values())

    def take(self, name: str, message: Message, joined: Record) -> None:
        """Take in a hospital's reply, or note why not; `joined` is its line of round 0, with what it described."""
        reply: Reply | None = None
        try:
            reply = reply_from_message(message)
            if reply.code is None and reply.site != name:
                raise Rejected(Code.IDENTITY)
            check_reply(reply, self._task, set(self.entries))
            if self._task.kind == "evaluate":
                evaluation = admit_evaluation(reply, self._plan.data.findings)
                line = entry(name, "admitted", None, reply, update_norm=None)
                line["evaluations"] = {self._task.model: evaluation}
            else:
                line = entry(name, "admitted", None, reply, update_norm=self._fold(name, reply, joined))
            if reply.control_round:
                line["control_round"] = reply.control_round
        except (WireError, Rejected) as error:
            refused = reply is not None and reply.code is not None
            line = entry(name, "refused" if refused else "rejected", error.code, reply)
            if isinstance(error, Rejected) and error.norm is not None:
                line["update_norm"] = _told(error.norm)
        self.entries[name] = line | {"bytes_sent": self._bytes_sent.get(name, 0)}

    def note_silent(self, cohort: Iterable[str]) -> None:
        """Note those of the cohort that have not answered."""
        for name in cohort:
            line = entry(name, "silent", Code.NO_REPLY) | {"bytes_sent": self._bytes_sent.get(name, 0)}
            self.entries.setdefault(name, line)

    def compare(self) -> None:
        """Leave out whose update is too long, too short or too opposed beside the others of the round; to be called when all have come."""
        federation = self._plan.federation
        if not federation.compares or not isinstance(held := self._gathered, Held):  # a secured round gathers nothing
            return
        norms = {name: norm for name, norm in self._norms().items() if self.entries[name]["status"] == "admitted"}
        self._leave_out(held, unlike(norms, federation.longest, federation.shortest))
        if federation.cosine is not None:
            cosines = directions(held.spool)
            self._leave_out(held, {name: Code.OPPOSED for name, at in cosines.items() if at < federation.cosine})

    def outgrown(self, hospitals: int) -> float | None:
        """The norm that most of the `hospitals` that could be asked reach, where that is more than `federation.outlier` allows; else None.

        Then what has grown are honest updates, say with the learning rate, and the last rounds say nothing of this one any more. A
        minority cannot bring it about, nor choose the norm (`reached_by_most`).
        """
        reached = reached_by_most(self._norms().values(), hospitals)
        return reached if self._outlying is not None and reached > self._outlying else None

    def _norms(self) -> dict[str, float]:
        """The norms that are known: of updates that were admitted, and of those that were left out for them."""
        known = {name: line.get("update_norm") for name, line in self.entries.items()}
        return {name: norm for name, norm in known.items() if norm is not None}

    def _leave_out(self, held: Held, found: Mapping[str, Code]) -> None:
        for name, code in found.items():
            held.leave_out(name)
            self.entries[name] |= {"status": "rejected", "code": code.value}

    def _fold(self, name: str, reply: Reply, joined: Record) -> float | None:
        """Admit an update and take it in; returns its norm, Rejected with a code where it is left out."""
        federation, stage = self._plan.federation, self._plan.stage(self._task.stage)
        admitted = admit_update(
            reply, self._state, federation.max_update_norm, self._plan.transport.up,
            outlying=self._outlying,
            most_examples=claimable(joined.get("description", {}), stage, federation.claimed_examples),
            is_local=self._plan.aggregation.is_local,
        )  # fmt: skip
        weight = admitted.examples if federation.weighting == "examples" else 1
        if not self._gathered.fits(admitted.update, weight):
            raise Rejected(Code.NORM)
        self._gathered.fold(name, admitted.update, weight)
        return _told(admitted.norm)


def _told(norm: float) -> float:
    """As it is written down."""
    return float(f"{norm:.6g}")
