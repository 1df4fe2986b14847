"""Taking in what a PACS sends: pictures that were asked for, from AE titles that are listed, and nothing else.

A C-GET sends over the association that asked; for a C-MOVE the PACS calls our own storage service (PS3.4 C.4.2, annex
B).
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterable, Iterator

from pynetdicom import AE, evt

from client.archive.pacs.association import LONGEST_PDU, connection_handlers, delivery_contexts
from client.archive.pacs.link import Keep
from client.archive.pacs.settings import DimseArchive
from client.archive.sources import SourceLost

SUCCESS, OUT_OF_RESOURCES, NOT_AUTHORISED = 0x0000, 0xA700, 0x0124  # C-STORE statuses, PS3.4 B.2.3 and PS3.7 9.1.1.1.9

_POLL = 0.02  # seconds


class Expected:
    """Pictures asked for, by SOP Instance UID, and where they go."""

    def __init__(self, instances: Iterable[str], keep: Keep) -> None:
        self.missing = set(instances)
        self.keep = keep
        self.error: OSError | None = None

    def store(self, event: evt.Event) -> int:
        """Answer a C-STORE request."""
        uid = _uid(event)
        if uid not in self.missing:
            return NOT_AUTHORISED
        try:
            self.keep(uid, event.encoded_dataset())
        except OSError as error:  # a full disk; told to who asked for the picture, in its own thread
            self.error = error
            return OUT_OF_RESOURCES
        self.missing.discard(uid)
        return SUCCESS


class Receiver:
    """Our storage service, at our AE title and port; within `expecting` it takes what is expected."""

    def __init__(self, archive: DimseArchive, tls: ssl.SSLContext | None) -> None:
        self.refused: list[str] = []  # AE titles that called and are not listed
        self._lock = threading.Lock()
        self._expected: list[Expected] = []
        entity = AE(archive.own_ae)
        entity.require_called_aet = True
        entity.require_calling_aet = list(archive.allowed_senders())
        entity.dimse_timeout = entity.network_timeout = archive.timeout
        entity.maximum_pdu_size = LONGEST_PDU
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_REJECTED, self._note),
            *connection_handlers(archive.timeout),
        ]
        address = (archive.own_address, archive.own_port)
        try:
            self._server = entity.start_server(
                address, block=False, ssl_context=tls, evt_handlers=handlers, contexts=delivery_contexts()
            )
        except OSError as error:
            raise SourceLost(
                f"archive.own_port: cannot listen on {address[0]} port {address[1]} ({error.strerror}); "
                "is it taken, or reserved for root?"
            ) from None

    @contextlib.contextmanager
    def expecting(self, expected: Expected) -> Iterator[None]:
        """Take these pictures while the block runs."""
        with self._lock:
            self._expected.append(expected)
        try:
            yield
        finally:
            with self._lock:
                self._expected.remove(expected)

    def wait(self, expected: Expected, seconds: float) -> None:
        """Wait until all has come: a PACS may say that it is done while the last picture is still on its way."""
        clock = threading.Event()
        for _ in range(round(seconds / _POLL)):
            if not expected.missing or expected.error:
                return
            clock.wait(_POLL)

    def close(self) -> None:
        """Stop listening."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()

    def _store(self, event: evt.Event) -> int:
        uid = _uid(event)
        with self._lock:
            expected = next((each for each in self._expected if uid in each.missing), None)
        return expected.store(event) if expected else NOT_AUTHORISED

    def _note(self, event: evt.Event) -> None:
        self.refused.append(str(event.assoc.requestor.ae_title).strip())


def _uid(event: evt.Event) -> str:
    return str(getattr(event.request, "AffectedSOPInstanceUID", None) or "")
