"""`cxrbase-client start`: keeps this hospital in touch with its consortium for ever, and says why where it cannot.

    allowed now, and room on the disk? -> the way to the server is looked at -> SuperNode and executor -> watched -> again

Only outgoing connections are made. What the daemon does and why is in `private/status.json` and `private/logs/`.
"""

from __future__ import annotations

import logging
import logging.handlers
import shutil
import signal
import time
from pathlib import Path

from client.connection import Finding, Probe, Problem, probe
from client.membership import Membership
from client.node.health import Health
from client.node.journal import Journal
from client.node.node import LOGS, Node
from client.node.status import DAEMON_LOCK, State
from client.site import Site
from cxrbase_model.files import locked, private_folder
from cxrbase_model.processes import Backoff
from cxrbase_model.settings import SettingsError

_TICK = 0.5  # seconds between two looks at everything
_PATIENCE = 5.0  # seconds without a connection until it is looked into
_LOOK_AGAIN = 60.0  # seconds between two looks into the same outage
_UNHEARD = (Problem.DNS, Problem.UNREACHABLE, Problem.TLS)  # nobody has said no

log = logging.getLogger("cxrbase.daemon")


class AlreadyRunning(Exception):
    """Another daemon runs on the same private folder."""


def run_daemon(site: Site, site_file: Path, member: Membership) -> None:
    """Run until SIGTERM or SIGINT. AlreadyRunning; SettingsError where the health service's address is in use."""
    private_folder(site.private)
    for _ in range(20):  # `cxrbase-client status` holds the lock for a moment
        with locked(site.private / DAEMON_LOCK) as free:
            if free:
                _log_to(site)
                Daemon(site, site_file, member).run()
                return
        time.sleep(0.1)
    raise AlreadyRunning


class Daemon:
    """The loop over everything that can keep a hospital from taking part."""

    def __init__(self, site: Site, site_file: Path, member: Membership) -> None:
        self._site, self._member = site, member
        self._health = Health(site.daemon.health)
        self._node = Node(site, site_file, member)
        self._journal = Journal(site.private, member.kit.consortium)
        self._backoff = Backoff(longest=60.0, stable=20.0)
        self._next_try = 0.0  # on the monotonic clock
        self._away_since: float | None = None
        self._looked = -_LOOK_AGAIN

    def run(self) -> None:
        """Go on until SIGTERM or SIGINT, then end everything in order."""
        for number in (signal.SIGTERM, signal.SIGINT):  # which a shell may have told its background jobs to ignore
            signal.signal(number, signal.default_int_handler)
        try:
            while True:
                self._step()
                self._node.listen(_TICK)
        except KeyboardInterrupt:
            log.info("asked to end")
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            self._node.stop()
            self._journal.enter(State.STOPPED)
            self._health.close()

    def _step(self) -> None:
        if pause := self._pause():
            self._rest(pause)
        elif self._node.ended:
            self._explain()
        elif self._node.running:
            self._watch()
        elif time.monotonic() >= self._next_try:
            self._connect()
        self._health.set(serving=self._node.connected)
        self._journal.count()

    def _pause(self) -> State | None:
        """Why nothing may run now, if so."""
        now = time.localtime()
        if not self._site.policy.open_at(now.tm_hour, now.tm_min):
            return State.PAUSED_HOURS
        if shutil.disk_usage(self._site.private).free < self._site.daemon.least_free * 1e9:
            return State.PAUSED_DISK
        return None

    def _rest(self, state: State) -> None:
        """Stop once no task is in progress; begin at once when the pause is over."""
        if self._node.running and not self._node.ended and self._node.busy:
            self._watch()
            return
        self._node.stop()
        self._next_try = 0.0
        if state is State.PAUSED_DISK and self._journal.state is not state:
            remedy = f"make room: daemon.least_free wants {self._site.daemon.least_free:g} GB"
            self._journal.problem("the disk of the private folder is nearly full", remedy)
        self._journal.enter(state)

    def _connect(self) -> None:
        """Look at the way to the server, and start where nothing is in it."""
        self._backoff.begin()
        found = self._probe()
        if found.fatal is not None:
            self._retry(found.fatal)
            return
        for finding in found.findings:
            self._journal.problem(finding.text, finding.remedy)
        try:
            self._node.start()
        except OSError as error:
            self._retry(_local(f"the SuperNode cannot be started: {error}", "see the daemon's log; is the disk full?"))
            return
        self._away_since = None
        self._journal.enter(State.CONNECTING)

    def _watch(self) -> None:
        """Follow the connection; where it is away for long, find out why. The SuperNode goes on trying by itself."""
        if self._node.connected:
            self._away_since = None
            self._journal.enter(State.CONNECTED)
            return
        self._journal.enter(State.CONNECTING)
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._away_since > _PATIENCE and now - self._looked > _LOOK_AGAIN:
            self._looked = now
            found = self._probe()
            if found.fatal is not None:
                self._journal.problem(found.fatal.text, found.fatal.remedy)

    def _explain(self) -> None:
        """Say why the SuperNode has ended by itself, and when it is tried again."""
        words = self._node.last_words
        self._node.bury()
        if self._node.in_use:
            remedy = (
                "if another daemon uses this hospital's key, stop it; after a crash, or when the key has just been enrolled, "
                "the server lets it in within 60 s"
            )
            finding: Finding | None = Finding(
                Problem.KEY, "the server says that this hospital is online already", remedy
            )
        else:
            finding = self._probe().fatal
        self._retry(
            finding or _local(f"the SuperNode has ended: {words}", f"see {self._site.private / LOGS / 'supernode.log'}")
        )

    def _retry(self, finding: Finding) -> None:
        pause = self._backoff.pause()
        self._next_try = time.monotonic() + pause
        unheard = finding.problem is None or finding.problem in _UNHEARD
        self._journal.enter(State.CONNECTING if unheard else State.REFUSED, next_try=time.time() + pause)
        self._journal.problem(finding.text, finding.remedy)

    def _probe(self) -> Probe:
        try:
            return probe(self._member)
        except SettingsError as error:  # the key's file has become unreadable
            return Probe((_local(str(error), "see the message"),))


def _local(text: str, remedy: str) -> Finding:
    return Finding(None, text, remedy)


def _log_to(site: Site) -> None:
    """The daemon's own words: to its log and to standard output, which systemd keeps too."""
    settings = site.daemon
    file = logging.handlers.RotatingFileHandler(
        private_folder(site.private / LOGS) / "daemon.log",
        maxBytes=settings.log_size * 1_000_000, backupCount=settings.log_files, encoding="utf-8",
    )  # fmt: skip
    for handler in (file, logging.StreamHandler()):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
