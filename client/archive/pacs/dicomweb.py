"""A PACS over DICOMweb (PS3.18): QIDO-RS through dicomweb-client, WADO-RS as plain HTTP.

dicomweb-client's retrieval parses each data set before it gives it. Bytes of an archive may be hostile, so here they
are only split from their multipart envelope (PS3.18 8.6.1.2.1) and left for a worker process with limits to parse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from email.message import Message
from pathlib import Path
from typing import Any, TypeVar

import requests
from dicomweb_client.api import DICOMwebClient
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3.exceptions import NewConnectionError

from client.archive.pacs.link import Failure, Keep, PacsError, Retry, Series, Study, is_uid, quieten
from client.archive.pacs.settings import DicomwebArchive, read_accessions
from client.archive.pacs.windows import Answer, Search, Window
from cxrbase_model.settings import SettingsError

Result = TypeVar("Result")
Found = dict[str, Any]  # one match in the DICOM JSON model (PS3.18 F.2)

_CONNECT = 5.0  # seconds; a PACS in the same house answers in milliseconds
_CHUNK = 1 << 18
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'  # as stored, PS3.18 8.7.3.3.2
_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_MODALITY, _BODY_PART, _INSTANCES = "00080060", "00180015", "00201208"


class DicomwebServer:
    """A DICOMweb service; pictures are read up to `limit` bytes and one more, by which one too large is known later."""

    def __init__(self, archive: DicomwebArchive, limit: int, retry: Retry) -> None:
        quieten()
        self._archive, self._limit, self._retry = archive, limit, retry
        self._accessions = read_accessions(archive.accessions) if archive.accessions else []
        _auth(archive)  # its errors come now
        for name in ("ca", "certificate", "key"):
            path = getattr(archive, name)
            if path is not None and not path.is_file():
                raise SettingsError(f"archive.{name}: {path} is not there, expected a PEM file")

    def link(self) -> DicomwebLink:
        """A new connection."""
        return DicomwebLink(self._archive, self._limit, self._retry, self._accessions)

    def close(self) -> None:
        """Nothing is left to stop."""


class DicomwebLink:
    """One HTTP session; see `link.Link`."""

    def __init__(self, archive: DicomwebArchive, limit: int, retry: Retry, accessions: Sequence[str]) -> None:
        self._archive, self._limit, self._retry, self._accessions = archive, limit, retry, accessions
        self._url = archive.url.rstrip("/")
        self._timeout = (min(_CONNECT, archive.timeout), archive.timeout)
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy or netrc of the environment is not for patients' data
        self._session.headers.update(archive.headers)
        self._session.auth = _auth(archive)
        if archive.ca:
            self._session.verify = str(archive.ca)
        if archive.certificate and archive.key:
            self._session.cert = (str(archive.certificate), str(archive.key))
        self._client = DICOMwebClient(self._url, session=self._session, permissive_uid=True, timeout=self._timeout)
        self._client.set_http_retry_params(retry=False)  # one place retries for both protocols

    def check(self) -> None:
        """See `Link.check`."""
        try:
            _told(lambda: self._client.search_for_studies(limit=1))
        except PacsError as error:
            hint = str(error) if error.specific else _HINTS.get(error.failure, str(error))
            raise PacsError(error.failure, f"{hint} ({self._url})") from None

    def studies(self) -> Iterator[Study]:
        """See `Link.studies`. By days, since long answers may be cut off; once without, for studies without a date."""
        dates = Window(*self._archive.days()).dates() if self._archive.dated() else ""
        for accession in self._accessions:
            yield from self._studies(AccessionNumber=accession, StudyDate=dates)
        for modality in self._archive.modalities if not self._accessions else ():
            most = min(self._archive.most_results, self._archive.page)
            yield from Search(self._asker(modality), most, by_minute=False).between(*self._archive.days())
            if not self._archive.dated():
                yield from self._studies(ModalitiesInStudy=modality)

    def _asker(self, modality: str) -> Callable[[Window], Answer]:
        return lambda window: Answer(list(self._studies(ModalitiesInStudy=modality, StudyDate=window.dates())))

    def _studies(self, **filters: str) -> Iterator[Study]:
        given = {name: value for name, value in filters.items() if value}
        for found in self._pages(_STUDY, self._client.search_for_studies, search_filters=given):
            count = _text(found, _INSTANCES)
            yield Study(_text(found, _STUDY), int(count) if count.isdecimal() else None)

    def series(self, study: str) -> list[Series]:
        """See `Link.series`."""
        pages = self._pages(
            _SERIES, self._client.search_for_series, study_instance_uid=study, fields=["BodyPartExamined"]
        )
        return [Series(_text(found, _SERIES), _text(found, _MODALITY), _text(found, _BODY_PART)) for found in pages]

    def instances(self, study: str, series: str) -> list[str]:
        """See `Link.instances`."""
        search = self._client.search_for_instances
        pages = self._pages(_INSTANCE, search, study_instance_uid=study, series_instance_uid=series)
        return [_text(found, _INSTANCE) for found in pages]

    def retrieve(
        self, study: str, series: str, instances: Sequence[str], whole: bool, keep: Keep
    ) -> dict[str, Failure]:
        """See `Link.retrieve`; one request a picture, so that an answer never has to hold more than one."""
        failures = {}
        for instance in instances:
            url = f"{self._url}/studies/{study}/series/{series}/instances/{instance}"
            try:
                data = self._asked(lambda: self._get(url))  # noqa: B023
            except PacsError as error:
                if error.failure.fatal:
                    raise
                failures[instance] = error.failure
            else:
                keep(instance, data)
        return failures

    def close(self) -> None:
        """See `Link.close`."""
        self._session.close()

    def _pages(self, key: str, search: Callable[..., list[Found]], **arguments: Any) -> Iterator[Found]:
        """Every match, page by page until an empty one: pages may be shorter than asked for (PS3.18 8.3.4.4)."""
        seen: set[str] = set()
        offset = 0

        def ask() -> list[Found]:
            return search(limit=self._archive.page, offset=offset, **arguments)

        while page := self._asked_if_any(ask):
            offset += len(page)
            fresh = [found for found in page if is_uid(_text(found, key)) and _text(found, key) not in seen]
            if not fresh and len(page) >= self._archive.page:
                raise PacsError(
                    Failure.NONSENSE,
                    "archive.page: the server gives the same page again; set it above its number of results",
                )
            if not fresh:
                return
            seen.update(_text(found, key) for found in fresh)
            yield from fresh

    def _get(self, url: str) -> bytes:
        """One DICOM file; at most one byte more than the limit."""
        with contextlib.closing(
            self._session.get(url, headers={"Accept": _ACCEPT}, stream=True, timeout=self._timeout)
        ) as response:
            response.raise_for_status()
            body, whole = bytearray(), True
            for chunk in response.iter_content(_CHUNK):
                body += chunk
                if len(body) > self._limit + _CHUNK:  # a chunk is ample room for the envelope
                    whole = False
                    break
            return _first_part(response.headers.get("Content-Type", ""), bytes(body), whole)[: self._limit + 1]

    def _asked_if_any(self, request: Callable[[], list[Found]]) -> list[Found]:
        try:
            return self._asked(request)
        except PacsError as error:
            if error.failure != Failure.NOT_FOUND:  # with which some servers say that there is no (further) match
                raise
            return []

    def _asked(self, request: Callable[[], Result]) -> Result:
        return self._retry(lambda: _told(request))


_HINTS = {
    Failure.UNREACHABLE: "archive.url: nothing answers at this host and port; is it right and the PACS running?",
    Failure.BROKEN: "archive.url: what answers at this host and port does not speak HTTP as expected; http or https?",
    Failure.REFUSED: "archive: the server refuses us; see archive.token, user and password, certificate and ca",
    Failure.NOT_FOUND: "archive.url: there is a server, but no DICOMweb at this path",
    Failure.NONSENSE: "archive.url: there is a server, but what answers at this path is not DICOMweb",
}


class _Bearer(AuthBase):
    """A token out of a file that something else may renew at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header."""
        request.headers["Authorization"] = f"Bearer {_secret('token', self._path)}"
        return request


def _auth(archive: DicomwebArchive) -> AuthBase | None:
    if archive.token:
        _secret("token", archive.token)
        return _Bearer(archive.token)
    if archive.password:
        return HTTPBasicAuth(archive.user.encode(), _secret("password", archive.password).encode())
    return None


def _secret(name: str, path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"archive.{name}: {path} cannot be read") from None
    if not text or not text.isprintable():
        raise SettingsError(f"archive.{name}: {path} must hold one line of text")
    return text


def _told(request: Callable[[], Result]) -> Result:
    """The result of a request, its failures as PacsError; their own texts hold the address and so the identifiers."""
    try:
        return request()
    except SettingsError:  # the token's file
        raise
    except requests.HTTPError as error:
        raise PacsError(_http_failure(0 if error.response is None else error.response.status_code)) from None
    except requests.exceptions.SSLError:
        raise PacsError(
            Failure.REFUSED, "archive.ca: the server's certificate is not trusted, or it does not trust ours"
        ) from None
    except requests.Timeout as error:
        failure = Failure.UNREACHABLE if isinstance(error, requests.ConnectTimeout) else Failure.TIMEOUT
        raise PacsError(failure) from None
    except requests.ConnectionError as error:
        raise PacsError(Failure.BROKEN if _was_connected(error) else Failure.UNREACHABLE) from None
    except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError):
        raise PacsError(Failure.BROKEN) from None
    except (requests.RequestException, ValueError, TypeError, KeyError, AttributeError):
        raise PacsError(Failure.NONSENSE) from None  # ValueError and so on: not the JSON that DICOMweb answers with
    except OSError:  # requests reads the certificates when it connects
        raise PacsError(Failure.REFUSED, "archive.ca: ca, certificate or key is not a readable PEM file") from None


def _http_failure(status: int) -> Failure:
    if status in (401, 403, 407):
        return Failure.REFUSED
    if status in (404, 410):
        return Failure.NOT_FOUND
    if status == 408:
        return Failure.TIMEOUT
    return Failure.BUSY if status in (429, 502, 503, 504) else Failure.UNABLE


def _was_connected(error: requests.ConnectionError) -> bool:
    """Whether a connection was made and then broke; requests has one class for both."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return not isinstance(reason, NewConnectionError)


def _text(found: Found, tag: str) -> str:
    """The first value of an element, as text; empty where there is none."""
    element = found.get(tag) if isinstance(found, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]).strip() if isinstance(values, list) and values and values[0] is not None else ""


def _first_part(content_type: str, body: bytes, whole: bool) -> bytes:
    """The first part of a multipart/related body (RFC 2387, RFC 2046 5.1.1), or a body that is itself a DICOM file."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if header.get_content_type() == "application/dicom":  # against the standard, but met
        return body
    if header.get_content_type() != "multipart/related" or not boundary:
        raise PacsError(Failure.NONSENSE)
    mark = b"--" + boundary.encode()
    begin = body.find(mark)
    content = body.find(b"\r\n\r\n", begin)
    if begin < 0 or content < 0:
        raise PacsError(Failure.NONSENSE)
    end = body.rfind(b"\r\n" + mark, content)
    if end < 0 and whole:
        raise PacsError(Failure.BROKEN)
    return body[content + 4 : end if end >= 0 else None]
