"""A PACS over DIMSE (PS3.7): C-FIND to search, C-GET or C-MOVE to retrieve, in the study root model (PS3.4 C.6.2)."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pydicom import Dataset
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pynetdicom import _config, evt
from pynetdicom.association import Association

from client.archive.pacs.association import FIND, GET, MOVE, associate, check_services, tls_contexts
from client.archive.pacs.deliveries import Expected, Receiver
from client.archive.pacs.link import Failure, Keep, PacsError, Retry, Series, Study, is_uid, quieten
from client.archive.pacs.settings import DimseArchive, read_accessions
from client.archive.pacs.windows import Answer, Search, TooManyResultsError, Window

Result = TypeVar("Result")
Keys = dict[int, str]  # tag to value: the identifier of a request
Answers = Iterator[tuple[Dataset, Dataset | None]]  # status and identifier

_SETTLE = 5.0  # seconds that the last pictures of a finished move may take

_LEVEL, _STUDY, _SERIES, _INSTANCE = 0x00080052, 0x0020000D, 0x0020000E, 0x00080018
_DATE, _TIME, _ACCESSION, _MODALITIES, _COUNT = 0x00080020, 0x00080030, 0x00080050, 0x00080061, 0x00201208
_MODALITY, _BODY_PART = 0x00080060, 0x00180015

_PENDING, _OUT_OF_RESOURCES, _UNKNOWN_DESTINATION = (0xFF00, 0xFF01), (0xA700, 0xA701, 0xA702), 0xA801  # PS3.4 C.4
_CUT = (
    *_OUT_OF_RESOURCES,
    0xFE00,
)  # how servers end a search with too many results, the latter without being asked to cancel


class DimseServer:
    """The PACS and, for C-MOVE, our own storage service."""

    def __init__(self, archive: DimseArchive, retry: Retry) -> None:
        quieten()
        _config.LOG_HANDLER_LEVEL = "none"  # pynetdicom would write each message out, only to have it dropped
        _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
        self._archive, self._retry = archive, retry
        self._accessions = read_accessions(archive.accessions) if archive.accessions else []
        self._calling: ssl.SSLContext | None = None
        called: ssl.SSLContext | None = None
        if archive.tls:
            self._calling, called = tls_contexts(archive.tls)
        self._receiver = Receiver(archive, called) if archive.retrieve == "move" else None

    def link(self) -> DimseLink:
        """A new connection."""
        return DimseLink(self._archive, self._retry, self._accessions, self._calling, self._receiver)

    def close(self) -> None:
        """Stop listening for deliveries."""
        if self._receiver:
            self._receiver.close()


class DimseLink:
    """One association, made when it is needed and again when it broke; see `link.Link`."""

    def __init__(
        self,
        archive: DimseArchive,
        retry: Retry,
        accessions: Sequence[str],
        tls: ssl.SSLContext | None,
        receiver: Receiver | None,
    ) -> None:
        self._archive, self._retry, self._accessions, self._tls, self._receiver = (
            archive,
            retry,
            accessions,
            tls,
            receiver,
        )
        self._association: Association | None = None
        self._expected = Expected((), lambda uid, data: None)

    def check(self) -> None:
        """See `Link.check`."""
        check_services(self._archive, self._associated())

    def studies(self) -> Iterator[Study]:
        """See `Link.studies`; studies without a date are found by accession number only."""
        if self._accessions:
            dates = Window(*self._archive.days()).dates() if self._archive.dated() else ""
            for accession in self._accessions:
                yield from self._studies({_ACCESSION: accession, _DATE: dates}, whole=True).studies
            return
        most = self._archive.most_results
        for modality in self._archive.modalities:
            try:
                yield from Search(self._asker(modality), most, by_minute=True).between(*self._archive.days())
            except TooManyResultsError:
                raise PacsError(
                    Failure.NONSENSE,
                    f"archive.most_results: one minute has {most} studies or more, or the PACS ignores times; "
                    "if it does not cut off long answers, set it to more than the studies of a busy day",
                ) from None

    def series(self, study: str) -> list[Series]:
        """See `Link.series`."""
        keys = {_LEVEL: "SERIES", _STUDY: study, _SERIES: "", _MODALITY: "", _BODY_PART: ""}
        found = self._find(keys, _SERIES)
        return [Series(_text(each, _SERIES), _text(each, _MODALITY), _text(each, _BODY_PART)) for each in found]

    def instances(self, study: str, series: str) -> list[str]:
        """See `Link.instances`."""
        keys = {_LEVEL: "IMAGE", _STUDY: study, _SERIES: series, _INSTANCE: ""}
        return [_text(each, _INSTANCE) for each in self._find(keys, _INSTANCE)]

    def retrieve(
        self, study: str, series: str, instances: Sequence[str], whole: bool, keep: Keep
    ) -> dict[str, Failure]:
        """See `Link.retrieve`; a whole series is asked for in one request, what then is missing picture by picture."""
        missing = set(instances)
        if whole and len(instances) > 1:
            expected = Expected(instances, keep)
            _failure(lambda: self._transfer({_LEVEL: "SERIES", _STUDY: study, _SERIES: series}, expected))
            missing = expected.missing
        failures = {}
        for uid in sorted(missing):
            keys = {_LEVEL: "IMAGE", _STUDY: study, _SERIES: series, _INSTANCE: uid}
            failure = _failure(lambda: self._retry(lambda: self._transfer(keys, Expected([uid], keep))))  # noqa: B023
            if failure:
                failures[uid] = failure
        return failures

    def close(self) -> None:
        """See `Link.close`."""
        if self._association and self._association.is_established:
            self._association.release()
        self._association = None

    def _asker(self, modality: str) -> Callable[[Window], Answer]:
        return lambda window: self._studies(
            {_DATE: window.dates(), _TIME: window.times(), _MODALITIES: modality}, whole=False
        )

    def _studies(self, keys: Keys, whole: bool) -> Answer:
        found, cut = self._found({_LEVEL: "STUDY", _STUDY: "", _COUNT: ""} | keys, _STUDY, whole)
        counts = [_text(each, _COUNT) for each in found]
        studies = [
            Study(_text(each, _STUDY), int(count) if count.isdecimal() else None)
            for each, count in zip(found, counts, strict=True)
        ]
        return Answer(studies, cut)

    def _find(self, keys: Keys, wanted: int) -> list[Dataset]:
        return self._found(keys, wanted, whole=True)[0]

    def _found(self, keys: Keys, wanted: int, whole: bool) -> tuple[list[Dataset], bool]:
        """Answers to a C-FIND (PS3.4 C.4.1) with a UID at tag `wanted`; whether they were cut off, unless `whole`."""

        def find() -> tuple[list[Dataset], bool]:
            status, answers = self._answers(self._associated().send_c_find, _query(keys), FIND)
            cut = not whole and _code(status) in _CUT
            if not cut:
                self._check(status)
            return answers, cut

        answers, cut = self._retry(find)
        return [answer for answer in answers if is_uid(_text(answer, wanted))], cut

    def _transfer(self, keys: Keys, expected: Expected) -> None:
        """Retrieve once; PacsError where not all has come, OSError where it could not be kept."""
        status = self._move(keys, expected) if self._receiver else self._get(keys, expected)
        if expected.error:
            raise expected.error
        if expected.missing:
            self._check(status)
            raise PacsError(Failure.INCOMPLETE)

    def _get(self, keys: Keys, expected: Expected) -> Dataset:
        """Retrieve over our own association (PS3.4 C.4.3)."""
        association = self._associated()
        self._expected = expected
        return self._answers(association.send_c_get, _query(keys), GET)[0]

    def _move(self, keys: Keys, expected: Expected) -> Dataset:
        """Have the PACS deliver to our storage service (PS3.4 C.4.2)."""
        receiver, own = self._receiver, self._archive.own_ae
        if receiver is None:
            raise AssertionError("only called with a receiver")
        association = self._associated()
        wanted, before = len(expected.missing), len(receiver.refused)
        with receiver.expecting(expected):
            status = self._answers(association.send_c_move, _query(keys), own, MOVE)[0]
            if _succeeded(status):
                receiver.wait(expected, _SETTLE)
        if _code(status) == _UNKNOWN_DESTINATION:
            text = f"archive.own_ae: the PACS cannot deliver to {own}; register it there with our address and port"
            raise PacsError(Failure.DESTINATION, text)
        if len(expected.missing) == wanted and len(receiver.refused) > before:
            titles = ", ".join(sorted(set(receiver.refused[before:])))
            text = f"archive.senders: {titles} wanted to deliver and is not listed; add it if it is your PACS"
            raise PacsError(Failure.DESTINATION, text)
        return status

    def _answers(self, send: Callable[..., Answers], *arguments: Any) -> tuple[Dataset, list[Dataset]]:
        """The final status of a request, empty where there was none, and the identifiers that came before."""
        status, found = Dataset(), []
        try:
            for status, answer in send(*arguments):
                if _code(status) in _PENDING and answer is not None:
                    found.append(answer)
        except (
            RuntimeError,
            ValueError,
            AttributeError,
            OSError,
        ):  # the association ended just now, or speaks nonsense
            self._drop()
            raise PacsError(Failure.BROKEN) from None
        return status, found

    def _check(self, status: Dataset) -> None:
        """Raise for a final status that is no success."""
        code = _code(status)
        if code is None:  # pynetdicom's sign for no answer: aborted, cut off or late
            self._drop()
            raise self._broken_off()
        if not _succeeded(status):
            failure = Failure.BUSY if code in _OUT_OF_RESOURCES else Failure.UNABLE
            raise PacsError(failure, f"archive: {failure.description} (DIMSE status 0x{code:04X})")

    def _broken_off(self) -> PacsError:
        """Some servers accept an association of any title and abort at the first request of one they do not know."""
        own = self._archive.own_ae
        return PacsError(
            Failure.BROKEN, f"archive: {Failure.BROKEN.description}; is archive.own_ae {own} registered at the PACS?"
        )

    def _associated(self) -> Association:
        """The association, made if there is none."""
        if self._association is None or not self._association.is_established:
            self._association = associate(self._archive, self._tls, self._store)
        return self._association

    def _store(self, event: evt.Event) -> int:
        return self._expected.store(event)

    def _drop(self) -> None:
        if self._association and self._association.is_established:
            self._association.abort()
        self._association = None


def _failure(action: Callable[[], None]) -> Failure | None:
    """Why an action failed; fatal failures are raised."""
    try:
        action()
    except PacsError as error:
        if error.failure.fatal:
            raise
        return error.failure
    return None


def _query(keys: Keys) -> Dataset:
    """The identifier of a request; values are not validated, since pydicom quotes odd ones in warnings."""
    query = Dataset()
    for tag, value in keys.items():
        query.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE))
    return query


def _text(answer: Dataset, tag: int) -> str:
    """An element of an answer as text. Raw bytes are not converted: pydicom quotes odd ones in warnings and errors."""
    element = answer.get_item(tag) if tag in answer else None
    value = element.value if element is not None else None
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
    return text.strip(" \0")


def _code(status: Dataset) -> int | None:
    return int(status.Status) if "Status" in status else None


def _succeeded(status: Dataset) -> bool:
    """Whether a final status is success or a warning, such as 0xB000 for failed sub-operations."""
    code = _code(status)
    return code is not None and (code == 0 or code >> 12 == 0xB)
