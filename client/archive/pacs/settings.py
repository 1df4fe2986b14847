"""How a PACS is asked for radiographs: the settings of `archive.kind: dicomweb` and `archive.kind: dimse` in SITE.yaml.

Both ask for studies first, by date and modality or by a list of accession numbers, then for the series of each study,
which are chosen by modality and body part, then for the pictures of these series.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from cxrbase_model.settings import SettingsError, knob

Settings = TypeVar("Settings")
Day = datetime.date | str  # YAML reads 2019-05-01 as a date and "2019-05-01" as text

_FIRST_DAY = datetime.date(1980, 1, 1)  # before digital radiography
_ACCESSION = re.compile(r"[!-~](?:[ -~]{0,62}[!-~])?")
_WILD = frozenset("*?\\")  # PS3.4 C.2.2.2: wild cards and the separator of several values
_HEADINGS = frozenset({"accession", "accessionnumber", "accessionno", "accnum"})


@dataclass(frozen=True)
class PacsArchive:
    """What both kinds of access have in common: which pictures, and how hard the PACS may be pressed."""

    since: Day = knob("", why="first study date, YYYY-MM-DD; empty: from the beginning")
    until: Day = knob("", why="last study date, YYYY-MM-DD; empty: until now")
    modalities: tuple[str, ...] = knob(("CR", "DX", "DR"), why="(0008,0060) Modality of the series to take")
    body_parts: tuple[str, ...] = knob(
        ("CHEST", "THORAX", "TORAX", "LUNG"),
        why="words in (0018,0015) Body Part Examined of series to take, besides those without; an empty list takes all",
    )
    accessions: Path | None = knob(
        None, why="file with one accession number a line (or first in a CSV): only these studies"
    )
    most_results: int = knob(
        100,
        low=1,
        high=100_000,
        why="results of one search from which it is split by date; has to be below any limit the PACS cuts answers at",
    )
    connections: int = knob(2, low=1, high=16, why="connections at the same time; what the PACS's administrator allows")
    timeout: int = knob(60, unit="seconds", low=1, high=3600, why="longest wait for an answer")
    tries: int = knob(5, low=1, high=20, why="how often a request is sent before it has failed")
    pause: float = knob(
        1.0, unit="seconds", low=0.0, high=600.0, why="wait before the second try; doubled at each further one"
    )
    patient: str = knob(
        "id", choices=("id", "study"), why="what tells patients apart: (0010,0020) Patient ID, or the study"
    )

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            object.__setattr__(self, name, _day(name, getattr(self, name)))
        if self.since and self.until and str(self.since) > str(self.until):
            raise SettingsError(f"until: {self.until} is before since, {self.since}")
        for index, word in enumerate(self.modalities):
            if not re.fullmatch(r"[A-Z0-9]{2,16}", word):
                raise SettingsError(f"modalities[{index}]: expected a code such as CR or DX, found {word!r}")
        if not self.modalities:
            raise SettingsError("modalities: expected at least one, such as CR or DX, found an empty list")

    def days(self) -> tuple[datetime.date, datetime.date]:
        """First and last study date, with tomorrow for an open end, since the PACS's clock may be ahead."""
        tomorrow = datetime.date.today() + datetime.timedelta(days=1)
        first = datetime.date.fromisoformat(str(self.since)) if self.since else _FIRST_DAY
        return first, datetime.date.fromisoformat(str(self.until)) if self.until else tomorrow

    def dated(self) -> bool:
        """Whether study dates matter."""
        return bool(self.since or self.until)

    def takes(self, modality: str, body_part: str) -> bool:
        """Whether a series is to be taken, going by what the PACS says of it; empty where it says nothing."""
        if modality and modality not in self.modalities:
            return False
        part = body_part.upper()
        return not part or not self.body_parts or any(word.upper() in part for word in self.body_parts)


@dataclass(frozen=True)
class DicomwebArchive(PacsArchive):
    """A PACS with DICOMweb (PS3.18): QIDO-RS to search, WADO-RS to retrieve."""

    kind: str = knob("dicomweb", choices=("dicomweb",), why="names the type of archive")
    url: str = knob(why="address of the service, such as https://pacs.example.org/dicom-web")
    page: int = knob(100, low=1, high=100_000, why="results asked for at a time; a server may give fewer")
    headers: dict[str, str] = knob(
        factory=dict, why="HTTP headers the server wants; keep secrets in token or password instead"
    )
    token: Path | None = knob(None, why="file with a bearer token, read anew for each request")
    user: str = knob("", why="user name for HTTP Basic authentication")
    password: Path | None = knob(None, why="file with the password of that user")
    ca: Path | None = knob(None, why="certificate (PEM) of the authority that signed the server's")
    certificate: Path | None = knob(None, why="own certificate (PEM), where the server wants one")
    key: Path | None = knob(None, why="private key (PEM) of the own certificate")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_url(self.url)
        for name, text in self.headers.items():
            if not re.fullmatch(r"[A-Za-z0-9-]+", name) or not re.fullmatch(r"[ -~]*", text):
                raise SettingsError(f"headers.{name}: is not an HTTP header")
        if self.token and self.user:
            raise SettingsError("token: give a token or a user and password, not both")
        if bool(self.user) != (self.password is not None):
            raise SettingsError("password: user and password go together, one is missing")
        if (self.certificate is None) != (self.key is None):
            raise SettingsError("key: certificate and key go together, one is missing")


@dataclass(frozen=True)
class Tls:
    """TLS with certificates on both sides (PS3.15 B.9-B.11); the same pair is shown when calling and when called."""

    ca: Path = knob(why="certificate (PEM) of the authority that signed the PACS's")
    certificate: Path = knob(why="own certificate (PEM)")
    key: Path = knob(why="private key (PEM) of the own certificate")
    check_host: bool = knob(True, why="whether archive.host must be named in the PACS's certificate")


@dataclass(frozen=True)
class DimseArchive(PacsArchive):
    """A PACS with DIMSE (PS3.7): C-FIND to search, C-GET or C-MOVE to retrieve (PS3.4 annex C)."""

    kind: str = knob("dimse", choices=("dimse",), why="names the type of archive")
    host: str = knob(why="name or address of the PACS")
    port: int = knob(low=1, high=65535, why="port of the PACS; often 104, 4242 or 11112")
    remote_ae: str = knob(why="AE title of the PACS")
    own_ae: str = knob("CXRBASE", why="own AE title, as registered at the PACS")
    retrieve: str = knob(
        "get", choices=("get", "move"), why="get: over our connection; move: the PACS calls back, where it has no get"
    )
    own_port: int = knob(
        11112, low=1, high=65535, why="port at which the PACS delivers after a move; register it at the PACS"
    )
    own_address: str = knob(
        "0.0.0.0", why="address to listen on for deliveries; 0.0.0.0 is every network of this machine"
    )
    senders: tuple[str, ...] = knob(
        (), why="AE titles that may deliver to us; empty: remote_ae alone. Often others than it answers on"
    )
    tls: Tls | None = knob(None, why="TLS in both directions; none: unencrypted")

    def __post_init__(self) -> None:
        super().__post_init__()
        titles = {"remote_ae": self.remote_ae, "own_ae": self.own_ae}
        titles |= {f"senders[{index}]": title for index, title in enumerate(self.senders)}
        for name, title in titles.items():
            if not re.fullmatch(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?", title):
                raise SettingsError(
                    f"{name}: expected an AE title, 1 to 16 ASCII characters without \\, found {title!r}"
                )
        if not re.fullmatch(r"[A-Za-z0-9.:_-]+", self.host):
            raise SettingsError(f"host: expected a host name or address, found {self.host!r}")

    def allowed_senders(self) -> tuple[str, ...]:
        """AE titles whose deliveries are taken."""
        return self.senders or (self.remote_ae,)


def resolved(settings: Settings, home: Path) -> Settings:
    """The same settings of a PACS, every relative path (also those of `tls`) below `home`."""
    changes: dict[str, object] = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]  # every caller passes a dataclass
        value = getattr(settings, field.name)
        if isinstance(value, Path):
            changes[field.name] = home / value
        elif dataclasses.is_dataclass(value):
            changes[field.name] = resolved(value, home)
    return dataclasses.replace(settings, **changes)  # type: ignore[type-var]


def read_accessions(path: Path) -> list[str]:
    """The accession numbers in a file, each once: one a line, or the first column of a CSV; a heading is skipped.

    SettingsError names the line of what is not an accession number (1 to 64 ASCII characters, no * ? \\); not the
    value.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            cells = [
                (line, row[0].strip()) for line, row in enumerate(csv.reader(file), start=1) if row and row[0].strip()
            ]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise SettingsError(
            f"archive.accessions: {path} cannot be read, expected a text file with one accession number a line"
        ) from None
    if cells and re.sub(r"[^a-z0-9]", "", cells[0][1].lower()) in _HEADINGS:
        cells = cells[1:]
    for line, cell in cells:
        if not _ACCESSION.fullmatch(cell) or _WILD & set(cell):
            raise SettingsError(
                f"archive.accessions: {path} line {line}: expected 1 to 64 ASCII characters without * ? \\"
            )
    if not cells:
        raise SettingsError(f"archive.accessions: {path} holds no accession numbers")
    return list(dict.fromkeys(cell for _, cell in cells))


def _day(name: str, value: Day) -> str:
    """A date as YYYY-MM-DD, or an empty text."""
    if isinstance(value, datetime.datetime):
        return value.date().isoformat()
    if isinstance(value, datetime.date):
        return value.isoformat()
    if not value:
        return ""
    try:
        return datetime.date.fromisoformat(value).isoformat()
    except ValueError:
        raise SettingsError(f"{name}: expected a date such as 2019-05-31, found {value!r}") from None


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        right = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and (parts.port or 1)
            and not (parts.query or parts.fragment)
        )
    except ValueError:
        raise SettingsError(
            f"url: expected an address such as https://pacs.example.org/dicom-web, found {url!r}"
        ) from None
    if not right:
        raise SettingsError(f"url: expected an address such as https://pacs.example.org/dicom-web, found {url!r}")
    if parts.username or parts.password:
        raise SettingsError("url: holds a user or password; give archive.user and archive.password instead")
