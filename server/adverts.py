"""The first step of a secured round: each hospital's keys, in place of an update."""

from __future__ import annotations

from cxrbase_model.messages import Code, Reply
from cxrbase_model.plan import Plan
from cxrbase_model.secure.letters import Advert, LetterError, Roster, advert_from_bytes
from server.admission import Rejected
from server.broadcast import Broadcast
from server.intake import Intake
from server.records import Record


class Adverts(Intake):
    """The replies to the training task of one attempt: of each hospital its keys, in place of an update."""

    def __init__(self, plan: Plan, broadcast: Broadcast) -> None:  # what folds updates is not needed
        self.entries: dict[str, Record] = {}
        self.roster: Roster = {}
        self._plan, self._task, self._bytes_sent = plan, broadcast.asked, broadcast.bytes_sent

    def _fold(self, name: str, reply: Reply, joined: Record) -> None:
        try:
            advert = advert_from_bytes(reply.update)
        except LetterError:
            raise Rejected(Code.MALFORMED) from None
        taken = {key for other in self.roster.values() for key in _keys(other)}
        if taken & _keys(advert) or len(_keys(advert)) != 2:
            raise Rejected(Code.SECURE)
        self.roster[name] = advert


def _keys(advert: Advert) -> set[bytes]:
    return {advert.seal, advert.mask}
