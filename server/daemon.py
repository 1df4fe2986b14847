"""The operator's daemon: starts Flower's SuperLink, lets enrolled hospitals in, submits the rounds, and sees to both until the plan is done.

Whatever is killed, it goes on at the first round that is not committed: everything that matters is in the run directory, and the
same command starts it all again. The SuperLink and the rounds (Flower's ServerApp, which the SuperLink starts) are processes of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cxrbase_model.bundle import bundle_digest, release_bundle
from cxrbase_model.files import locked
from cxrbase_model.plan import Plan, read_plan, timeline
from cxrbase_model.processes import Backoff, Program
from cxrbase_model.settings import SettingsError
from cxrbase_model.transport import CHUNK_BYTES
from server.authority import Authority
from server.consortium import Consortium, read_consortium
from server.control import ControlError, control, flower_key
from server.enrolment import enrolled
from server.home import Home
from server.live import read_status
from server.store import RunStore, StoreError

_TICK = 0.5  # seconds between looks at everything
_TO_APPEAR = 90.0  # seconds within which the rounds begin after they were submitted
_TO_ANSWER = 60.0  # seconds within which a started SuperLink answers
_GRACE = 10.0  # seconds in which a program may end by itself

Say = Callable[[str], None]


class Rounds:
    """The process that runs the rounds, seen from outside: by the lock it holds and the status it writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._submitted = float("-inf")
        self._earlier = self._process()

    def submitted(self) -> None:
        """Note that they were just submitted."""
        self._submitted, self._earlier = time.monotonic(), self._process()

    def go_on(self) -> bool:
        """Whether they are running, or may still begin."""
        if self._process() == self._earlier:
            return time.monotonic() - self._submitted < _TO_APPEAR
        return self._held()

    def outcome(self) -> tuple[str, str]:
        """How they ended: done, stopped, failed or (they did not say) died, with the operator's sentence."""
        status = read_status(self._folder) or {}
        state = status.get("state")
        return (state, status.get("detail", "")) if state in ("done", "stopped", "failed") else ("died", "")

    def end(self) -> None:
        """End them where the SuperLink that has started them is gone."""
        limit = time.monotonic() + _GRACE
        while self._held() and time.monotonic() < limit:
            time.sleep(0.1)
        process = self._process()
        if process is not None and self._held():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process[0], signal.SIGKILL)

    def _held(self) -> bool:
        with locked(self._folder / "run.lock") as free:
            return not free

    def _process(self) -> tuple[int, str] | None:
        """Its number, and a name of its own: in a container that was started again the number is often the one of before."""
        status = read_status(self._folder) or {}
        process = status.get("process")
        return (process, str(status.get("session"))) if isinstance(process, int) else None


class Daemon:
    """Runs a consortium's plan until `ending` is set; `say` is given a sentence for each thing that happens."""

    def __init__(self, file: Path, consortium: Consortium, plan: Plan, say: Say, ending: threading.Event) -> None:
        self._file, self._consortium, self._say = file, consortium, say
        self._plan = plan
        self._home = Home(consortium.home)
        self._bundle = release_bundle()
        self._ending = ending
        self._superlink: Program | None = None
        self._links, self._sessions = Backoff(), Backoff()
        self._rounds = Rounds(consortium.run)
        self._begun = 0  # the round that the rounds were last submitted at
        self._keys: dict[str, bytes] | None = None  # as the SuperLink was last told

    def run(self) -> tuple[str, str]:
        """Run until the plan is done, the run has failed for good, or somebody ends it; gives how (as `Rounds`) and a sentence."""
        self._prepare()
        if self._next_round() > len(timeline(self._plan)):
            return "done", ""  # started again after its end, by a reboot or a container's restart
        try:
            return self._supervise()
        finally:
            if self._superlink is not None:
                self._superlink.end(_GRACE)
            self._rounds.end()

    def _prepare(self) -> None:
        run = self._consortium.run
        if (run / "run.json").exists():
            RunStore.check(run, self._plan)
        else:
            RunStore.create(run, self._plan)
        self._home.make()
        self._home.use(self._bundle, bundle_digest(self._bundle), self._plan.digest)

    def _supervise(self) -> tuple[str, str]:
        running = False
        while not self._ending.wait(_TICK):
            if not self._link_up():
                running = False
                continue
            try:
                self._tell_keys()
                if running and self._rounds.go_on():
                    continue
                if running:
                    state, detail = self._rounds.outcome()
                    if state != "died":
                        return state, detail
                    self._say("the rounds have died; they go on from the last committed one")
                    self._wait(self._sessions)
                self._submit()
                running = True
            except ControlError as error:
                self._say(str(error))
                self._wait(self._sessions)
        return "stopped", "interrupted"

    def _link_up(self) -> bool:
        """Whether the SuperLink runs; it is started where it does not."""
        if self._superlink is not None and self._superlink.status() is None:
            return True
        if self._superlink is not None:
            self._say(f"the SuperLink has ended ({_why(self._superlink)}); it is started again")
            self._superlink.end(0)
            self._rounds.end()
            self._superlink = None
            self._wait(self._links)
        self._links.begin()
        self._keys = None
        command = [sys.executable, "-m", "server.superlink", str(self._file), str(os.getpid())]
        self._superlink = Program(command, self._home.logs / "superlink.log", environment(self._home))
        return self._answers()

    def _answers(self) -> bool:
        limit = time.monotonic() + _TO_ANSWER
        while self._superlink is not None and self._superlink.status() is None and time.monotonic() < limit:
            with contextlib.suppress(ControlError), control(self._consortium) as link:
                link.keys()
                self._say(f"the SuperLink listens at {self._consortium.bind} port {self._consortium.port}")
                return True
            if self._ending.wait(_TICK):
                return False
        return False

    def _tell_keys(self) -> None:
        """Bring the SuperLink's list of keys in line with the enrolled ones."""
        wanted = self.wanted_keys()
        if wanted == self._keys:
            return
        with control(self._consortium) as link:
            known = link.keys()
            keys = {flower_key(key): name for name, key in wanted.items()}
            stay = {key for key, entry in known.items() if keys.get(key) == entry.name}
            for key in known.keys() - stay:
                link.keep_out(known[key].node)
                self._say(f"{known[key].name}: its key is not let in any more")
            for key in keys.keys() - stay:
                self._let_in(link.let_in, keys[key], key)
        self._keys = wanted

    def wanted_keys(self) -> dict[str, bytes]:
        """The enrolled keys of the hospitals that the settings name now: some may have joined since the start."""
        with contextlib.suppress(
            SettingsError
        ):  # the file is just being written; the hospitals of before count meanwhile
            self._consortium = dataclasses.replace(self._consortium, hospitals=read_consortium(self._file).hospitals)
        return enrolled(self._consortium)

    def _let_in(self, register: Callable[[str, bytes], None], name: str, key: bytes) -> None:
        import httpx  # with Flower, which the other commands need not wait for

        try:
            register(name, key)
            self._say(f"{name}: its key is let in")
        except httpx.HTTPStatusError:
            self._say(
                f"{name}: its key was let in before, under this name or another, and cannot come back; the hospital makes a new one with join --replace"
            )

    def _wait(self, backoff: Backoff) -> None:
        """Wait before the next try; what gets on, however often it dies, is not held up more and more."""
        if self.got_on():
            backoff.succeed()
        self._ending.wait(backoff.pause())

    def got_on(self) -> bool:
        """Whether a round has been committed since the rounds were last submitted."""
        return self._next_round() > self._begun

    def _next_round(self) -> int:
        """The first round that is not committed."""
        return RunStore(self._consortium.run, self._plan).next_round

    def _submit(self) -> None:
        self._sessions.begin()
        self._begun = self._next_round()
        settings = {
            "run-directory": str(self._consortium.run),
            "expected-hospitals": len(enrolled(self._consortium)),
        }
        with control(self._consortium) as link:
            self._rounds.submitted()
            link.start(self._bundle, settings)
        self._say("the rounds are submitted")


def start(file: Path, consortium: Consortium, say: Say, ending: threading.Event) -> tuple[str, str]:
    """Run a consortium's plan until it ends; SettingsError or StoreError where it cannot begin. SIGTERM and SIGINT set `ending`."""
    if consortium.plan is None:
        raise StoreError(f"{file}: plan: is required to start (the training plan)")
    if not Authority(consortium.home).exists():
        raise StoreError(f"{file}: nothing is provisioned yet; run cxrbase-server provision first")
    plan = read_plan(consortium.plan)
    Home(consortium.home).make()
    with locked(Home(consortium.home).lock) as alone:
        if not alone:
            raise StoreError(f"{file}: is started already, on this machine")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ending.set())
        return Daemon(file.resolve(), consortium, plan, say, ending).run()


def environment(home: Home) -> dict[str, str]:
    """What the SuperLink's processes see of the environment: where programs are, and Flower's own switches."""
    programs = Path(sys.executable).parent
    kept = {name: os.environ[name] for name in ("LANG", "TZ", "HOME", "TMPDIR") if name in os.environ}
    return (
        kept
        | {
            "PATH": f"{programs}{os.pathsep}{os.defpath}",
            "FLWR_HOME": str(home.flower),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1",  # between looks for a run to start; each costs the SuperLink 10 ms
            "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(CHUNK_BYTES),
            "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS": "1",  # of each reply; each is in memory four times, and two replies come at a time
            "PYTHONUNBUFFERED": "1",
            "MALLOC_MMAP_THRESHOLD_": "1048576",  # what large tensors leave free goes back at once: a model less in the peak of the ServerApp
            "MALLOC_ARENA_MAX": "2",  # for many threads together; else what they free stays with the process
        }
    )


def _why(program: Program) -> str:
    status = program.status() or 0
    if status < 0:
        return signal.Signals(-status).name
    told = next((line for line in reversed(program.last_lines) if "rror" in line), "")
    return f"exit status {status}{': ' + told[:200] if told else ''}"
