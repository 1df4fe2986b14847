"""DIMSE, against a real Orthanc; one that wants TLS and cuts off long answers too."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID
from pynetdicom import AE, build_context
from pynetdicom.association import Association

from client.archive.pacs.association import STORAGE_CLASSES, TRANSFER_SYNTAXES, Checkpoint, connection_handlers
from client.archive.pacs.deliveries import NOT_AUTHORISED, Receiver
from client.archive.pacs.link import Failure
from client.archive.sources import SourceLost
from cxrbase_model.settings import SettingsError
from tests.client.archive.pacs.conftest import Dimse, Fetched, OpenPacs
from tests.client.archive.pacs.orthanc import Content, Pacs, TlsPacs


@pytest.mark.parametrize("retrieve", ["get", "move"])
def test_chest_radiographs_are_fetched_and_everything_else_is_left(
    retrieve: str, dimse: Dimse, open_pacs: OpenPacs, fetched: Fetched, content: Content
) -> None:
    source = open_pacs(dimse(retrieve=retrieve))
    assert fetched(source) == sorted(content.wanted())
    assert source.failures == {}


@pytest.mark.parametrize("retrieve", ["get", "move"])
def test_a_compressed_picture_comes_as_it_is_stored(retrieve: str, dimse: Dimse, open_pacs: OpenPacs) -> None:
    source = open_pacs(dimse(retrieve=retrieve, since="2019-08-15", until="2019-08-15"))
    (item,) = source.fetch(source.items())
    data = item.read(1 << 20)
    assert data[128:132] == b"DICM"
    assert b"1.2.840.10008.1.2.5\0" in data[:600], "RLE, in the file meta information"


def test_studies_are_chosen_by_date_modality_and_body_part(
    dimse: Dimse, open_pacs: OpenPacs, fetched: Fetched, content: Content
) -> None:
    assert fetched(open_pacs(dimse(since="2019-03-01", until="2019-08-14"))) == sorted(content.wanted(5, 6))
    assert fetched(open_pacs(dimse(modalities=("DX",)))) == sorted(content.wanted(3, 4))
    assert fetched(open_pacs(dimse(body_parts=("thorax",)))) == sorted(content.wanted(5, 6))


def test_a_list_of_accession_numbers_chooses_the_studies(
    dimse: Dimse, open_pacs: OpenPacs, fetched: Fetched, content: Content, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{content.accession(study)}\n" for study in (4, 8, 21, 999)))
    assert fetched(open_pacs(dimse(accessions=tmp_path / "list.txt"))) == sorted(content.wanted(4, 8))


def test_without_dates_the_search_covers_all_years(dimse: Dimse, open_pacs: OpenPacs, content: Content) -> None:
    assert len(list(open_pacs(dimse(since="", until="")).items())) == len(content.wanted())


def test_answers_that_are_cut_off_are_asked_for_again_by_date(
    tls_pacs: TlsPacs, dimse: Dimse, open_pacs: OpenPacs, fetched: Fetched, content: Content
) -> None:
    archive = dimse(port=tls_pacs.pacs.port, tls=tls_pacs.tls, most_results=1000)
    assert fetched(open_pacs(archive)) == sorted(content.wanted()), "Orthanc says so, with status 0xFE00"
    archive = dimse(port=tls_pacs.pacs.port, tls=tls_pacs.tls, most_results=2)
    assert fetched(open_pacs(archive)) == sorted(content.wanted()), "down to the time of day"


def test_a_move_over_tls_is_delivered_over_tls(
    tls_pacs: TlsPacs, dimse: Dimse, open_pacs: OpenPacs, fetched: Fetched, content: Content
) -> None:
    there = {"port": tls_pacs.pacs.port, "own_port": tls_pacs.pacs.deliver, "tls": tls_pacs.tls}
    assert fetched(open_pacs(dimse(retrieve="move", since="2020-01-01", **there))) == sorted(content.wanted(8, 9))
    with pytest.raises(SourceLost, match=r"archive\.port: no DICOM answer"):
        list(open_pacs(dimse(port=tls_pacs.pacs.port)).items())


def test_an_interrupted_fetch_goes_on_where_it_stopped(
    dimse: Dimse, open_pacs: OpenPacs, content: Content, tmp_path: Path
) -> None:
    source = open_pacs(dimse(connections=1))
    partly = source.fetch(list(source.items()))
    assert isinstance(partly, Generator)
    first = next(partly)
    partly.close()
    source.close()
    spooled = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "private" / "spool").glob("*.dcm")}
    assert first.key in spooled
    assert len(spooled) < len(content.wanted())

    again = open_pacs(dimse())
    assert {content.uid_of(item) for item in again.fetch(again.items())} == content.wanted()
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "private" / "spool").glob("*.dcm")}
    assert {name: now[name] for name in spooled} == spooled, "not written again"


def test_a_pacs_that_delivers_from_another_ae_is_accepted_where_listed(
    dimse: Dimse, open_pacs: OpenPacs, fetched: Fetched, content: Content
) -> None:
    there = {"retrieve": "move", "own_ae": "CXRMOVE", "since": "2020-01-01"}
    assert fetched(open_pacs(dimse(senders=("SOMEONE", "DELIVERS"), **there))) == sorted(content.wanted(8, 9))


def test_a_sender_that_is_not_listed_is_refused_and_told(dimse: Dimse, open_pacs: OpenPacs) -> None:
    source = open_pacs(dimse(retrieve="move", own_ae="CXRMOVE", since="2020-01-01"))
    with pytest.raises(SourceLost, match=r"archive\.senders: DELIVERS wanted to deliver"):
        list(source.fetch(list(source.items())))


def test_pictures_nobody_asked_for_are_refused_even_from_a_listed_sender(dimse: Dimse) -> None:
    archive = dimse(retrieve="move", senders=("FRIEND",))
    receiver = Receiver(archive, None)
    try:
        assert _send(archive.own_port, "FRIEND", archive.own_ae) == NOT_AUTHORISED
        assert _send(archive.own_port, "STRANGER", archive.own_ae) is None
        assert _send(archive.own_port, "FRIEND", "WRONG") is None
        assert receiver.refused == ["STRANGER", "FRIEND"]
    finally:
        receiver.close()


def test_every_transfer_syntax_of_radiographs_is_accepted_for_delivery(dimse: Dimse) -> None:
    archive = dimse(retrieve="move", senders=("FRIEND",))
    receiver = Receiver(archive, None)
    entity = AE("FRIEND")
    contexts = [build_context(storage, syntax) for storage in STORAGE_CLASSES for syntax in TRANSFER_SYNTAXES]
    try:
        association = entity.associate("127.0.0.1", archive.own_port, contexts=contexts, ae_title=archive.own_ae)
        assert len(association.accepted_contexts) == len(contexts)
        association.release()
    finally:
        receiver.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 9}, r"archive\.port: no DICOM answer from localhost port 9"),
        ({"remote_ae": "NOBODY"}, r"archive\.remote_ae: the PACS is not called NOBODY"),
        ({"host": "no-such-host.invalid"}, r"archive\.host: no-such-host\.invalid is not known"),
        ({"own_ae": "STRANGER", "retrieve": "move"}, r"archive\.own_ae STRANGER"),
        ({"own_ae": "STRANGER"}, r"archive\.own_ae STRANGER"),
    ],
)
def test_wrong_settings_are_told_within_seconds(
    settings: dict[str, Any], message: str, dimse: Dimse, open_pacs: OpenPacs
) -> None:
    started = time.monotonic()
    source = open_pacs(dimse(**settings))
    with pytest.raises(SourceLost, match=message):
        list(source.fetch(list(source.items())))
    assert time.monotonic() - started < 6


def test_a_server_that_accepts_and_says_nothing_is_told_within_seconds(dimse: Dimse, open_pacs: OpenPacs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(SourceLost, match=r"archive\.port: no DICOM answer"):
            list(open_pacs(dimse(port=silent.getsockname()[1], timeout=1)).items())
        assert time.monotonic() - started < 4


def test_a_taken_port_for_deliveries_is_told(dimse: Dimse, open_pacs: OpenPacs, pacs: Pacs) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(SourceLost, match=r"archive\.own_port: cannot listen"),
    ):
        open_pacs(dimse(retrieve="move", own_port=taken.getsockname()[1]))


def test_an_association_that_breaks_is_made_again(
    dimse: Dimse, open_pacs: OpenPacs, fetched: Fetched, content: Content, pacs: Pacs
) -> None:
    with _Relay(pacs.port, cuts=3) as relay:
        source = open_pacs(dimse(port=relay.port, tries=6, connections=1))
        assert fetched(source) == sorted(content.wanted())
        assert source.failures == {}
        assert relay.cuts == 0
        source.close()


def test_unreadable_certificates_are_told(dimse: Dimse, open_pacs: OpenPacs, tls_pacs: TlsPacs, tmp_path: Path) -> None:
    tls = type(tls_pacs.tls)(ca=tls_pacs.tls.ca, certificate=tmp_path / "nowhere", key=tls_pacs.tls.key)
    with pytest.raises(SettingsError, match=r"archive\.tls"):
        open_pacs(dimse(tls=tls))


def test_a_caller_that_breaks_off_leaves_no_socket_open(dimse: Dimse, open_pacs: OpenPacs) -> None:
    archive = dimse(retrieve="move")
    open_pacs(archive)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", archive.own_port), timeout=5) as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    deadline = time.monotonic() + 10
    while len(closed := _connections()) < 5 or not all(closed):
        assert time.monotonic() < deadline, closed
        time.sleep(0.02)


def _connections() -> list[bool]:
    """Of each association that was called for: is its socket closed?"""
    acceptors = [thread for thread in threading.enumerate() if isinstance(thread, Association) and thread.is_acceptor]
    sockets = [each.dul.socket.socket for each in acceptors if each.dul.socket]
    return [each is None or each.fileno() == -1 for each in sockets]


def test_a_full_disk_ends_the_fetch_as_itself(
    dimse: Dimse, open_pacs: OpenPacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.archive.pacs.source.write_private", full)
    source = open_pacs(dimse(since="2020-01-01"))
    with pytest.raises(OSError, match="No space left"):
        list(source.fetch(list(source.items())))


def test_a_picture_that_cannot_be_had_is_counted(
    dimse: Dimse, open_pacs: OpenPacs, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_pacs(dimse(since="2020-01-02"))
    real = type(source)._look

    def with_a_ghost(self: Any, study: str) -> Any:
        places = real(self, study)
        (_key, place), *_ = places.items()
        ghost = type(place)(place.series, content.root + ".404")
        return places | {self._key(ghost.instance): ghost}

    monkeypatch.setattr(type(source), "_look", with_a_ghost)
    assert {content.uid_of(item) for item in source.fetch(list(source.items()))} == content.wanted(9)
    assert sum(source.failures.values()) == 1
    assert set(source.failures) <= {Failure.INCOMPLETE, Failure.UNABLE, Failure.NOT_FOUND}


def _send(port: int, own: str, theirs: str) -> int | None:
    """Send a made-up radiograph; the status of the answer, None where there is no association."""

    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = STORAGE_CLASSES[0], "1.2.3.4"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(TRANSFER_SYNTAXES[0])
    entity = AE(own)
    contexts = [build_context(STORAGE_CLASSES[0], TRANSFER_SYNTAXES[0])]
    association = entity.associate(
        "127.0.0.1", port, contexts=contexts, ae_title=theirs, evt_handlers=connection_handlers(5)
    )
    if not association.is_established:
        return None
    status = association.send_c_store(dataset)
    association.release()
    return int(status.Status)


class _Relay:
    """Passes bytes between us and a PACS, and cuts the first connections after some bytes of answers."""

    def __init__(self, target: int, cuts: int) -> None:
        self.cuts, self._target = cuts, target
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port = self._sockets[0].getsockname()[1]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> _Relay:
        self._start(self._serve)
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for each in self._sockets:
            each.close()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _serve(self) -> None:
        connections = 0
        while True:
            try:
                ours, _ = self._sockets[0].accept()
            except OSError:
                return
            theirs = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [ours, theirs]
            connections += 1
            cut = 5000 if 1 < connections <= 4 else None  # the first one lists, undisturbed
            self._start(self._pass, ours, theirs, None)
            self._start(self._pass, theirs, ours, cut)

    def _pass(self, source: socket.socket, sink: socket.socket, cut: int | None) -> None:
        passed = 0
        try:
            while data := source.recv(1024):
                sink.sendall(data)
                passed += len(data)
                if cut is not None and passed > cut:
                    self.cuts -= 1
                    break
        except OSError:
            return
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def test_a_reactor_stands_still_once_it_was_told_to_wait() -> None:
    inside, ended = threading.Event(), threading.Event()

    def turns() -> None:  # as pynetdicom's, which says that it is paused before each wait
        while not ended.is_set():
            reactor.paused = True
            checkpoint.wait()
            reactor.paused = False
            inside.set()
            time.sleep(0.0002)
            inside.clear()

    reactor: Any = threading.Thread(target=turns)
    checkpoint = Checkpoint(reactor)
    reactor.start()
    for _ in range(300):
        checkpoint.clear()
        assert reactor.paused
        assert not inside.is_set()
        time.sleep(0.0005)
        assert not inside.is_set()
        checkpoint.set()
    ended.set()
    reactor.join()
    checkpoint.clear()  # comes back although nobody waits any more


def test_the_preflight_asks_a_pacs(dimse: Dimse, open_pacs: OpenPacs) -> None:
    open_pacs(dimse()).ask()
    with pytest.raises(SourceLost, match=r"archive\.remote_ae: the PACS is not called NOBODY"):
        open_pacs(dimse(remote_ae="NOBODY")).ask()
