"""Hospitals describe themselves once, before they are asked to train: a run knows what there is to learn from, and from whom."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from flwr.app import Message

from cxrbase_model.messages import Code, Task, WireError, reply_from_message
from server.admission import Rejected, admit_description, check_reply
from server.exchange import Exchange, Node
from server.live import Live
from server.records import entry
from server.roster import Roster


class Newcomers:
    """Asks those who are new, by the task `describe`, and fills the roster with what they say.

    findings: the plan's, which a description counts. patience: seconds between two times that those who have refused are asked again; 0 for never.
    """

    def __init__(
        self, exchange: Exchange, live: Live, roster: Roster, task: Task, findings: Sequence[str], patience: float
    ) -> None:  # fmt: skip
        self._exchange, self._live, self._roster = exchange, live, roster
        self._task, self._findings, self._patience = task, findings, patience
        self._asked_refused = time.monotonic()

    def describe(self, deadline: float) -> None:
        """Ask those who are new what they can contribute, and now and then those who have refused."""
        if self._patience and time.monotonic() - self._asked_refused >= self._patience:
            self._roster.ask_refused_again()
            self._asked_refused = time.monotonic()
        nodes = self._exchange.nodes()
        self._live.look(nodes.values(), ())
        new = [number for number in nodes if number not in self._roster.asked]
        for number, message in self._exchange.ask(dict.fromkeys(new, self._task), deadline, absence=0.0):
            self._roster.asked.add(number)
            self._take(nodes, number, message)
        self._live.know(self._roster.names())

    def _take(self, nodes: Mapping[int, Node], number: int, message: Message) -> None:
        site = nodes[number].name
        taken = {name for name, other in self._roster.sites.items() if other in nodes and other != number}
        try:
            reply = reply_from_message(message)
            site = site or reply.site
            if reply.code is None and reply.site != site:
                raise Rejected(Code.IDENTITY)
            check_reply(reply, self._task, taken)
            description = admit_description(reply, self._findings)
        except (WireError, Rejected) as error:
            self._roster.refuse(number, entry(site or f"node {number}", "refused", error.code))
            return
        line = entry(reply.site, "admitted", None, reply, description=description)
        self._roster.admit(number, line, list(description["kinds"]))
