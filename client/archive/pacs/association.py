"""Making an association with a PACS (PS3.8), with TLS if asked, and telling why there is none."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

from pydicom.uid import UID
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from client.archive.pacs.link import Failure, PacsError
from client.archive.pacs.settings import DimseArchive, Tls
from cxrbase_model.settings import SettingsError

FIND, MOVE, GET = (UID(f"1.2.840.10008.5.1.4.1.2.2.{number}") for number in (1, 2, 3))  # study root, PS3.4 C.6.2.3
_VERIFICATION = UID("1.2.840.10008.1.1")

# Storage classes of radiographs (PS3.4 B.5), and of secondary captures, as which some archives hold digitised films.
STORAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray, for processing
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
)
# PS3.5 annex A: what is stored compressed comes as it is.
TRANSFER_SYNTAXES = (
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "1.2.840.10008.1.2",  # Implicit VR Little Endian
    "1.2.840.10008.1.2.2",  # Explicit VR Big Endian
    "1.2.840.10008.1.2.1.99",  # Deflated
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.50",  # JPEG baseline
    "1.2.840.10008.1.2.4.51",  # JPEG extended
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.70",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.201",  # HTJ2K lossless
    "1.2.840.10008.1.2.4.202",  # HTJ2K lossless, RPCL
    "1.2.840.10008.1.2.4.203",  # HTJ2K
)

LONGEST_PDU = 1 << 17  # bytes, PS3.8 D.1

_CONNECT = 5.0  # seconds; a PACS in the same house answers in milliseconds
_REJECTIONS = {  # diagnostics of an A-ASSOCIATE-RJ by the service user, PS3.8 9.3.4
    3: "archive.own_ae: the PACS does not accept our AE title {own}; register it there",
    7: "archive.remote_ae: the PACS is not called {remote}",
}


def connection_handlers(timeout: float) -> list[evt.EventHandlerType]:
    """Event handlers that every association needs; timeout: seconds.

    pynetdicom reads a message without a limit of time once it has begun, so the connection gets one here.

    A DIMSE message goes out in two parts, and Nagle's algorithm keeps the second back until the first is acknowledged,
    which the receiving system delays by 40 ms: on either side, for each message. So ours are sent at once, and those of
    the PACS acknowledged at once.

    pynetdicom leaves a socket open whose other end was closed first, so each is closed here as well.

    And it loses answers, see `Checkpoint`.
    """

    def on_open(event: evt.Event) -> None:
        connection = event.assoc.dul.socket.socket  # type: ignore[union-attr]  # open connections have a socket
        connection.settimeout(timeout)  # type: ignore[union-attr]
        event.assoc._reactor_checkpoint = Checkpoint(event.assoc)
        event.assoc.bind(evt.EVT_CONN_CLOSE, lambda _: connection.close())  # type: ignore[union-attr]
        _be_prompt(event)

    return [(evt.EVT_CONN_OPEN, on_open), (evt.EVT_DATA_SENT, _be_prompt)]


class Checkpoint(threading.Event):
    """Where an association's own thread, the reactor, waits while another one sends a request and reads the answers.

    In pynetdicom 3.0 the reactor says that it is paused before it waits, also where nobody asked it to and the wait ends
    at once. Who asks just then takes it for paused while it goes on and takes an answer from the queue, which is lost:
    a picture that is not listed, or the end of a request that never comes (pydicom/pynetdicom issue 875; seen once in
    a dozen listings on a busy machine). Here whoever calls `clear` goes on when the reactor does wait, or has ended.
    """

    def __init__(self, reactor: threading.Thread) -> None:
        super().__init__()
        self.set()
        self._reactor, self._parked, self._passing = reactor, threading.Event(), threading.Lock()

    def clear(self) -> None:
        """Stop the reactor, and come back when it stands still."""
        with self._passing:
            super().clear()
        if threading.current_thread() is not self._reactor:
            while self._reactor.is_alive() and not self._parked.wait(0.01):
                continue

    def wait(self, timeout: float | None = None) -> bool:
        """What the reactor does in each of its turns; `timeout` is what `threading.Event` wants and is not used."""
        self._parked.set()
        while True:
            super().wait()
            with self._passing:
                if self.is_set():
                    self._parked.clear()
                    return True


def _be_prompt(event: evt.Event) -> None:
    transport = event.assoc.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_QUICKACK"):  # Linux; the system takes it back by itself, so it is set again and again
            transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def associate(archive: DimseArchive, tls: ssl.SSLContext | None, on_store: Callable[[evt.Event], int]) -> Association:
    """A new association for C-FIND and what `archive.retrieve` says; `on_store` answers what C-GET brings.

    Raises PacsError whose text names the setting to look at.
    """
    entity = AE(archive.own_ae)
    entity.connection_timeout = entity.acse_timeout = min(_CONNECT, archive.timeout)
    entity.dimse_timeout = archive.timeout
    entity.network_timeout = None  # the PACS may end an idle association, we do not
    contexts = [build_context(_VERIFICATION), build_context(FIND)]
    roles: list[Any] = []  # pynetdicom: list of any kind of negotiation item, and lists are invariant
    if archive.retrieve == "move":
        contexts.append(build_context(MOVE))
    else:  # a context for each pair, so that the PACS sends everything as it is stored
        contexts += [build_context(GET)]
        contexts += [build_context(storage, syntax) for storage in STORAGE_CLASSES for syntax in TRANSFER_SYNTAXES]
        roles = [build_role(storage, scp_role=True) for storage in STORAGE_CLASSES]
    try:
        association = entity.associate(
            archive.host, archive.port, contexts=contexts, ae_title=archive.remote_ae, max_pdu=LONGEST_PDU, ext_neg=roles,
            evt_handlers=[(evt.EVT_C_STORE, on_store), *connection_handlers(archive.timeout)], tls_args=(tls, archive.host) if tls else None,
        )  # fmt: skip
    except (OSError, ValueError):
        raise PacsError(
            Failure.UNREACHABLE, f"archive.host: {archive.host} is not known or cannot be reached"
        ) from None
    if not association.is_established:
        if association.is_alive():  # pynetdicom comes back before it has looked at a rejection that it was sent
            association.join(entity.acse_timeout)
        transport = association.dul.socket
        if transport is not None and transport.socket is not None:
            transport.socket.close()  # pynetdicom leaves it open
        raise _refusal(archive, association)
    return association


def check_services(archive: DimseArchive, association: Association) -> None:
    """PacsError where the PACS does not offer what `archive.retrieve` needs."""
    accepted = {context.abstract_syntax for context in association.accepted_contexts}
    syntax, name = (MOVE, "C-MOVE") if archive.retrieve == "move" else (GET, "C-GET")
    if FIND not in accepted:
        raise PacsError(Failure.REFUSED, "archive: the PACS does not offer us C-FIND in the study root model")
    if syntax not in accepted:
        raise PacsError(
            Failure.REFUSED,
            f"archive.retrieve: the PACS does not offer us {name} in the study root model; try the other",
        )
    if archive.retrieve == "get" and not accepted & set(STORAGE_CLASSES):
        raise PacsError(
            Failure.REFUSED, "archive.retrieve: the PACS takes get requests but sends no radiographs by it; try move"
        )


def tls_contexts(tls: Tls) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS as who calls and as who is called; both show our certificate and want the other's (PS3.15 B.12)."""
    try:
        calling = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(tls.ca))
        called = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls.ca))
        for context in (calling, called):
            context.load_cert_chain(str(tls.certificate), str(tls.key))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
    except OSError:  # ssl.SSLError is one
        raise SettingsError(
            "archive.tls: ca, certificate and key must be readable PEM files, the key without a password"
        ) from None
    calling.check_hostname = tls.check_host
    called.verify_mode = ssl.CERT_REQUIRED
    return calling, called


def delivery_contexts() -> list[PresentationContext]:
    """What our own storage service takes."""
    storage = [build_context(abstract, list(TRANSFER_SYNTAXES)) for abstract in STORAGE_CLASSES]
    return [*storage, build_context(_VERIFICATION)]


def _refusal(archive: DimseArchive, association: Association) -> PacsError:
    where = f"{archive.host} port {archive.port}"
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        reason = answer.diagnostic or 0 if answer.result_source == 1 else 0
        text = _REJECTIONS.get(reason, "archive: the PACS rejects the association")
        passing = answer.result == 2  # PS3.8 9.3.4: rejected-transient, such as too many associations
        told = f"{text.format(own=archive.own_ae, remote=archive.remote_ae)} ({where})"
        return PacsError(Failure.BUSY if passing else Failure.REFUSED, told)
    hint = ", and does it speak DICOM without TLS?"
    if archive.tls:
        hint = "; with TLS, do both sides trust each other's certificate?"
    return PacsError(Failure.UNREACHABLE, f"archive.port: no DICOM answer from {where}; is the PACS running{hint}")
