"""The PACS of these tests, our settings for it, and what they ask of it."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from client.archive.identity import Secret
from client.archive.pacs.settings import DicomwebArchive, DimseArchive, Tls
from client.archive.pacs.source import PacsSource
from tests.client.archive.pacs.faulty import Proxy
from tests.client.archive.pacs.orthanc import (
    PASSWORD,
    USER,
    Content,
    Pacs,
    TlsPacs,
    fill,
    make_certificates,
    run_orthanc,
)

# What the fixtures of the same names give.
Web = Callable[..., DicomwebArchive]
Dimse = Callable[..., DimseArchive]
OpenPacs = Callable[..., PacsSource]
Fetched = Callable[[PacsSource], list[str]]
Proxies = Callable[..., Proxy]


@pytest.fixture
def content() -> Content:
    """See `Content`."""
    return Content()


@pytest.fixture(scope="session")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """An Orthanc with CONTENT; skips where Orthanc is not installed."""
    with contextmanager(run_orthanc)(tmp_path_factory.mktemp("orthanc"), {}) as running:
        fill(running)
        yield running


@pytest.fixture(scope="session")
def tls_pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsPacs]:
    """An Orthanc with CONTENT that is hard to get at: its DIMSE wants TLS, and answers end after four results."""
    folder = tmp_path_factory.mktemp("orthanc-tls")
    ca = make_certificates(folder)
    settings = {
        "LimitFindResults": 4,
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(folder / "server.pem"),
        "DicomTlsPrivateKey": str(folder / "server.key"),
        "DicomTlsTrustedCertificates": str(ca),
        "DicomTlsRemoteCertificateRequired": True,
    }
    with contextmanager(run_orthanc)(folder, settings) as running:
        fill(running)
        yield TlsPacs(running, folder, Tls(ca=ca, certificate=folder / "client.pem", key=folder / "client.key"))


@pytest.fixture
def web(pacs: Pacs, tmp_path: Path) -> Web:
    """Settings of the PACS over DICOMweb: `web(since=..., ...)`."""
    (tmp_path / "password").write_text(PASSWORD + "\n")

    def make(**settings: Any) -> DicomwebArchive:
        defaults: dict[str, Any] = {
            "url": pacs.web,
            "user": USER,
            "password": tmp_path / "password",
            "pause": 0.01,
            "timeout": 10,
        }
        return DicomwebArchive(**(defaults | settings))

    return make


@pytest.fixture
def dimse(pacs: Pacs) -> Dimse:
    """Settings of the PACS over DIMSE: `dimse(retrieve="move", ...)`; 2019 and 2020 unless told otherwise."""

    def make(**settings: Any) -> DimseArchive:
        defaults: dict[str, Any] = {
            "host": "localhost",
            "port": pacs.port,
            "remote_ae": "ANSWERS",
            "own_port": pacs.deliver,
            "own_address": "127.0.0.1",
            "pause": 0.01,
            "timeout": 10,
            "most_results": 4,
            "since": "2019-01-01",
            "until": "2020-12-31",
        }
        return DimseArchive(**(defaults | settings))

    return make


@pytest.fixture
def open_pacs(tmp_path: Path) -> Iterator[OpenPacs]:
    """Opens a source with a private folder in the test's folder; what it opened is closed at the end."""
    sources = []

    def make(archive: DicomwebArchive | DimseArchive, limit: int = 1 << 24) -> PacsSource:
        sources.append(PacsSource(archive, tmp_path / "private", Secret(b"\x07" * 32), limit))
        return sources[-1]

    yield make
    for source in sources:
        source.close()


@pytest.fixture
def fetched(content: Content) -> Fetched:
    """Lists and fetches everything, takes it out of the spool, and gives the sorted SOP Instance UIDs in the files."""

    def run(source: PacsSource) -> list[str]:
        uids = []
        for item in source.fetch(list(source.items())):
            uids.append(content.uid_of(item))
            source.done([item])
        return sorted(uids)

    return run


@pytest.fixture
def proxy(pacs: Pacs) -> Iterator[Proxies]:
    """Starts a proxy before the PACS: `proxy()`, with TLS `proxy(context)`."""
    proxies = []

    def make(context: ssl.SSLContext | None = None) -> Proxy:
        proxies.append(Proxy(pacs.web, context))
        return proxies[-1]

    yield make
    for each in proxies:
        each.close()


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    """Opening a source silences libraries for the whole process; the next test gets them as they were."""
    loggers = [
        logging.getLogger(name)
        for name in ("pynetdicom", "dicomweb_client", "retrying", "urllib3", "requests", "pydicom")
    ]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
