"""What one connection to a PACS can do, whichever protocol it speaks, and how its failures are told.

Identifiers of patients and pictures are in every request, every answer and so in the logs and exceptions of the
libraries that carry them. Nothing of these is passed on: `quieten` silences the libraries, and a failure is a code with
a text of our own.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

Result = TypeVar("Result")
Keep = Callable[[str, bytes], None]  # takes a SOP Instance UID and the bytes of its DICOM file

LONGEST_PAUSE = 60.0  # seconds

_LIBRARIES = ("pynetdicom", "dicomweb_client", "retrying", "urllib3", "requests", "pydicom")
_UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z.]{0,63}")  # PS3.5 9.1 but for letters, which some archives have


class Failure(StrEnum):
    """Why a request has failed, as it is counted and shown to the hospital."""

    def __new__(cls, value: str, description: str) -> Failure:
        """A code and, for people, what it means."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.description = description
        return member

    description: str

    UNREACHABLE = "unreachable", "there is no connection to the PACS"
    REFUSED = "refused", "the PACS refuses us: credentials, AE titles or rights"
    DESTINATION = (
        "destination",
        "the PACS does not deliver to us: it does not know our AE title, or another AE delivers",
    )
    BROKEN = "broken", "the connection broke off"
    TIMEOUT = "timeout", "no answer in time"
    BUSY = "busy", "the PACS is overloaded or out of resources"
    UNABLE = "unable", "the PACS cannot process the request"
    NOT_FOUND = "not-found", "the PACS no longer has it, or never had"
    INCOMPLETE = "incomplete", "the PACS sent fewer pictures than it has listed"
    NONSENSE = "nonsense", "the answer is not what the standard asks for"

    @property
    def passing(self) -> bool:
        """Whether the same request may work a little later."""
        return self in (self.UNREACHABLE, self.BROKEN, self.TIMEOUT, self.BUSY)

    @property
    def fatal(self) -> bool:
        """Whether no other request will work either."""
        return self in (self.UNREACHABLE, self.DESTINATION)


class PacsError(Exception):
    """A request to the PACS has failed; the text names no patient, study or picture."""

    def __init__(self, failure: Failure, text: str = "") -> None:
        super().__init__(text or f"archive: {failure.description}")
        self.failure, self.specific = failure, bool(text)


@dataclass(frozen=True)
class Study:
    """A study as found: Study Instance UID and, where the PACS tells, its number of pictures."""

    uid: str
    instances: int | None = None


@dataclass(frozen=True)
class Series:
    """A series as found; `modality` and `body_part` are empty where the PACS does not tell."""

    uid: str
    modality: str
    body_part: str


class Link(Protocol):
    """One connection, for one thread at a time. Methods retry, raise PacsError, and may be called again after that."""

    def check(self) -> None:
        """Ask once whether the PACS answers and lets us in; the error's text says which setting to look at."""
        ...

    def studies(self) -> Iterator[Study]:
        """The studies the settings ask for, each at least once."""
        ...

    def series(self, study: str) -> list[Series]:
        """Every series of a study."""
        ...

    def instances(self, study: str, series: str) -> list[str]:
        """The SOP Instance UIDs of a series."""
        ...

    def retrieve(
        self, study: str, series: str, instances: Sequence[str], whole: bool, keep: Keep
    ) -> dict[str, Failure]:
        """Give these pictures to `keep`, and tell why any did not come; whole: they are all that the series has.

        Raises PacsError for fatal failures only, and the OSError of `keep`.
        """
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class Server(Protocol):
    """A PACS as the settings describe it."""

    def link(self) -> Link:
        """A new connection, opened when it is first used."""
        ...

    def close(self) -> None:
        """Stop what serves all connections."""
        ...


@dataclass(frozen=True)
class Retry:
    """Sends a request up to `tries` times while failures are passing, after `pause` seconds and then twice as long.

    Pauses vary by half at random, so that several threads or hospitals do not press a recovering PACS in step; `stop`
    ends them.
    """

    tries: int
    pause: float
    stop: threading.Event

    def __call__(self, action: Callable[[], Result]) -> Result:
        """The result of `action`, or its last PacsError."""
        for turn in range(1, self.tries):
            try:
                return action()
            except PacsError as error:
                if not error.failure.passing or self.stop.is_set():
                    raise
            self.stop.wait(min(LONGEST_PAUSE, self.pause * 2 ** (turn - 1)) * random.uniform(0.5, 1.5))
        return action()


def is_uid(text: str) -> bool:
    """Whether a text can be a UID and nothing else, such as a path, a wild card or a list."""
    return _UID.fullmatch(text) is not None


def quieten() -> None:
    """Keep the libraries from telling identifiers, whatever the root logger's level and handlers, in this process."""
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False  # also stops what children log whose own level was set
        logger.setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=rf"({'|'.join(_LIBRARIES)})\b")
