"""Asking hospitals and taking their replies one at a time as they come, over Flower's Grid.

A hospital whose process died or whose line was cut is asked again when it is back: Flower loses the message that was under way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from flwr.app import Message
from flwr.serverapp import Grid

from cxrbase_model.messages import Task, task_to_message
from server.answered import Fetch, answered

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 0.15  # seconds; each look costs the SuperLink 10 ms, so under a tenth of a core
_SHARE = 1 / 32  # of the time waited so far
_MOST_PULLS = 2  # replies that are fetched at the same time, and so are in memory
_SLOW = 60.0  # seconds after which a fetch counts no more among these, for whoever sends slowly is not to keep out the others...
_MOST_SLOW = 2  # ...and so many do not count at most, for each is in memory
_PULL = 0.05  # seconds that a reply may take to be fetched before others are looked at
_LOOK_EVERY = 2.0  # seconds between looks at who is there
_TRIES = 3  # how often a hospital is asked for the same thing


class Stopped(Exception):
    """The operator asked the run to stop; everything up to the last committed round is on disk."""


@dataclass(frozen=True)
class Node:
    """A connected hospital's node. `name` is the one its key is enrolled under, empty where keys are not asked for (simulation).

    started: when its process signed on, empty if not known. heard: seconds since 1970 of its last sign of life, 0 if not known.
    """

    number: int
    name: str = ""
    started: str = ""
    heard: float = 0.0


class _Pull:
    """One reply being fetched, by a thread of its own: one whose upload is slow, or has broken off, holds up nobody.

    Flower waits for the rest of such an upload, for three minutes after its last part.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._call = fetch
        self.started = time.monotonic()
        self._replies: list[Message] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._fetch, name="pull", daemon=True)
        self._thread.start()

    def take(self) -> list[Message] | None:
        """What has come, an empty list if there is no reply yet, None while one is on its way."""
        self._thread.join(_PULL)
        if self._thread.is_alive():
            return None
        if self._error is not None:
            raise self._error
        return self._replies

    def _fetch(self) -> None:
        try:
            self._replies = self._call()
        except Exception as error:  # noqa: BLE001  # raised again where it is waited for
            self._error = error


@dataclass
class _Request:
    """What a node was asked; `message` is None until it is sent, `gone` since when the node is not there.

    fetch: what fetches its reply, once there is one and until that has begun; then `pull`.
    """

    task: Task
    message: str | None = None
    started: str = ""
    tries: int = 0
    gone: float | None = None
    fetch: Fetch | None = None
    pull: _Pull | None = None

    def replies(self) -> list[Message] | None:
        """What has come, an empty list if there is no reply yet, None while one is on its way."""
        if self.pull is None:
            if self.fetch is None:
                return []
            self.pull, self.fetch = _Pull(self.fetch), None
        pull, self.pull = self.pull, None
        found = pull.take()
        if found is None:
            self.pull = pull
        return found

    @property
    def spent(self) -> bool:
        """Whether it has been asked as often as it may be and will not answer any more."""
        return self.message is None and self.tries >= _TRIES


class Exchange:
    """The server's side of the wire. `should_stop` is asked between polls; true ends the wait with Stopped.

    `on_wait` is called every two seconds of a wait with the nodes that are there and those that have not answered yet.
    """

    def __init__(
        self,
        grid: Grid,
        should_stop: Callable[[], bool] = lambda: False,
        on_wait: Callable[[list[Node], list[int]], None] = lambda nodes, waiting: None,
    ) -> None:
        self._grid = grid
        self._should_stop = should_stop
        self._on_wait = on_wait
        self._late: list[_Request] = []  # whose replies nobody waits for any more

    def nodes(self) -> dict[int, Node]:
        """The nodes that are connected now, by number."""
        found = {}
        for info in self._grid.get_nodes():
            heard = (
                info.online_until - 2 * info.heartbeat_interval if info.online_until else 0.0
            )  # Flower's patience is two
            found[info.node_id] = Node(info.node_id, info.name, info.last_activated_at, heard)
        return dict(sorted(found.items()))

    def pauses(self, deadline: float) -> Iterator[None]:
        """Yield until `deadline` seconds have passed, pausing longer and longer in between; Stopped when asked to stop.

        A reply is picked up after a thirty-second of the time that it has taken, and within 0.2 s.
        """
        started = time.monotonic()
        while True:
            yield
            if self._should_stop():
                raise Stopped
            waited = time.monotonic() - started
            if waited >= deadline:
                return
            pause = min(max(_SHARE * waited, _SHORTEST_PAUSE), _LONGEST_PAUSE)
            time.sleep(min(pause, deadline - waited))

    def ask(
        self,
        tasks: Mapping[int, Task],
        deadline: float,
        absence: float | None = None,
        enough: Callable[[], bool] = lambda: True,
        instead: Callable[[int, Message], Task | None] = lambda number, reply: None,
    ) -> Iterator[tuple[int, Message]]:
        """Send each node its task and yield (node number, reply) as they come, until all have or the deadline is over.

        Replies are handed out one at a time, and two at most are in memory, four where two are sent slowly, besides one that came late and
        is thrown away. A node that is gone is waited for up to the deadline, or `absence` seconds once `enough` says that the others
        suffice. `instead` may give another task for a reply, which the node is then sent at once; the reply is not handed out.
        """
        end = time.monotonic() + deadline
        open_requests = {number: _Request(task) for number, task in tasks.items()}
        try:
            yield from self._until(open_requests, deadline, end, absence, enough, instead)
        finally:
            self._late += [request for request in open_requests.values() if request.message]

    def _until(
        self,
        requests: dict[int, _Request],
        deadline: float,
        end: float,
        absence: float | None,
        enough: Callable[[], bool],
        instead: Callable[[int, Message], Task | None],
    ) -> Iterator[tuple[int, Message]]:
        looked = float("-inf")
        for _ in self.pauses(deadline):
            if time.monotonic() - looked >= _LOOK_EVERY:
                self._look(requests, end)
                looked = time.monotonic()
                for number in [number for number, request in requests.items() if request.spent]:
                    del requests[number]
            self._find(requests.values())
            for number, request in list(requests.items()):
                if request.pull is None and not _has_room(requests):
                    continue
                reply = self._reply(request)
                if reply is None:
                    continue
                if (task := instead(number, reply)) is not None:
                    requests[number] = _Request(task)
                    self._send(number, requests[number], request.started, end)
                    continue
                del requests[number]
                yield number, reply
            if not requests or (absence is not None and enough() and _all_gone(requests, absence)):
                return

    def _reply(self, request: _Request) -> Message | None:
        """A node's reply, if there is one; an error that another try may mend lets it be asked again."""
        for message in request.replies() or []:
            request.message = None
            if not message.has_error() or request.tries >= _TRIES:
                return message
        return None

    def _look(self, requests: dict[int, _Request], end: float) -> None:
        """See who is there, and ask those who have not been asked, or have lost what they were asked."""
        self._drop_late()
        nodes = self.nodes()
        self._on_wait(list(nodes.values()), sorted(requests))
        for number, request in requests.items():
            node = nodes.get(number)
            if node is None:
                request.gone = request.gone or time.monotonic()
                continue
            request.gone = None
            lost = request.message is not None and node.started != request.started
            if lost and request.message is not None:
                self._late.append(replace(request))
                request.message = request.fetch = request.pull = None
            if request.message is None and request.tries < _TRIES:
                self._send(number, request, node.started, end)

    def _send(self, number: int, request: _Request, started: str, end: float) -> None:
        request.started, request.tries = started, request.tries + 1
        ttl = max(end - time.monotonic(), 0) + 60
        for message in self._grid.push_messages([task_to_message(request.task, number, ttl=ttl)]):
            request.message = message or None

    def _find(self, requests: Iterable[_Request]) -> None:
        """See which of them have been answered, all with one question."""
        waiting = {
            request.message: request for request in requests if request.message and not (request.fetch or request.pull)
        }
        for message, fetch in answered(self._grid, [*waiting]).items():
            waiting[message].fetch = fetch

    def _drop_late(self) -> None:
        """Take and drop replies that came too late, so that they do not stay on the server's disk; one at a time, for it is in memory."""
        self._find(self._late)
        for request in list(self._late):
            try:
                replies = request.replies()
            except Exception:  # noqa: BLE001  # nobody waits for it
                self._late.remove(request)
                continue
            if request.pull is not None:
                return
            if replies:
                self._late.remove(request)


def _has_room(requests: Mapping[int, _Request]) -> bool:
    """Whether another reply may be fetched beside those that are."""
    now = time.monotonic()
    ages = [now - request.pull.started for request in requests.values() if request.pull is not None]
    return len(ages) - min(sum(age > _SLOW for age in ages), _MOST_SLOW) < _MOST_PULLS


def _all_gone(requests: Mapping[int, _Request], absence: float) -> bool:
    now = time.monotonic()
    return all(request.gone is not None and now - request.gone >= absence for request in requests.values())
