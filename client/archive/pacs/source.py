"""A PACS as a source of pictures: what it has is listed; what is not known yet is then fetched into a private spool.

    items()  studies -> series -> pictures     names only; studies that were listed before cost no request of their own
    fetch()  pictures wanted -> spool           a few studies ahead of who reads them, so the spool stays small
    done()   pictures taken in -> spool emptied

Pictures are known by an HMAC of their SOP Instance UID, in the spool as in the book of what was listed; UIDs are never
written down outside the DICOM files themselves. A file in the spool is whole, so it is itself the note that it need not
be fetched again.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from client.archive.identity import Secret
from client.archive.pacs.dicomweb import DicomwebServer
from client.archive.pacs.dimse import DimseServer
from client.archive.pacs.link import Failure, Link, PacsError, Retry, Server, Study, is_uid
from client.archive.pacs.listing import Known, Listing
from client.archive.pacs.settings import DicomwebArchive, DimseArchive
from client.archive.sources import Item, SourceLost
from cxrbase_model.files import private_folder, write_private
from cxrbase_model.settings import digest

Result = TypeVar("Result")
Task = TypeVar("Task")

_AHEAD = 3  # studies for each connection that are being fetched or wait to be read
_IN_A_ROW = 10  # studies that fail one after the other before the PACS is given up


@dataclass(frozen=True)
class _Place:
    """Where a picture is in the PACS."""

    series: str
    instance: str


class PacsSource:
    """A PACS that can be listed and fetched from; see the module's docstring. Close it, or use it as a context manager.

    limit: bytes of the largest file worth reading. `failures` counts what could not be listed or fetched, by code;
    another `items` and `fetch` tries it again.
    """

    def __init__(self, archive: DicomwebArchive | DimseArchive, private: Path, secret: Secret, limit: int) -> None:
        self.failures: Counter[Failure] = Counter()
        self._archive, self._secret = archive, secret
        self._spool = private_folder(private / "spool")
        self._listing = Listing(private_folder(private) / "pacs.sqlite")
        self._scope = digest({"modalities": sorted(archive.modalities), "body_parts": sorted(archive.body_parts)})
        self._stop = threading.Event()
        self._server = _server(archive, limit, Retry(archive.tries, archive.pause, self._stop))
        self._studies: dict[str, str] = {}  # key of each listed picture to its Study Instance UID
        self._places: dict[str, dict[str, _Place]] = {}  # of studies listed by this object: key to place
        self._local = threading.local()
        self._links: list[Link] = []

    def __enter__(self) -> PacsSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections."""
        self._stop.set()
        self._hang_up()
        self._server.close()
        self._listing.close()

    def present(self) -> bool:
        """Whether fetched pictures can be read; the PACS itself is only asked by `items` and `fetch`."""
        return self._spool.is_dir()

    def ask(self) -> None:
        """Ask once whether the PACS answers and lets us in; SourceLost, naming the setting, where it does not."""
        with self._told():
            self._link().check()
        self._hang_up()

    def items(self) -> Iterator[Item]:
        """Every picture that the settings ask for; SourceLost, naming the setting, where the PACS cannot be asked."""
        with self._told():
            self._link().check()
            yield from self._unique(self._ahead(self._listed, self._found(), self._take_listed))

    def fetch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Each of these listed pictures as soon as it can be read; `failures` counts those that cannot be had.

        Files in the spool that are not among them are removed. SourceLost where the PACS goes away; what was fetched
        stays.
        """
        wanted: dict[str, dict[str, Item]] = {}
        for item in items:
            wanted.setdefault(self._studies[item.key], {})[item.key] = item
        self._sweep({key for group in wanted.values() for key in group})
        with self._told():
            yield from self._ahead(self._fetched, iter(wanted.items()), self._take_fetched)

    def done(self, items: Iterable[Item]) -> None:
        """Remove pictures from the spool that need not be read again."""
        for item in items:
            (self._spool / item.key).unlink(missing_ok=True)

    # Listing

    def _found(self) -> Iterator[Study]:
        """Each study once. A failing search ends the listing: what it would have found must not be taken for gone."""
        seen = set()
        for study in self._link().studies():
            if is_uid(study.uid) and study.uid not in seen:
                seen.add(study.uid)
                yield study

    def _listed(self, study: Study) -> tuple[Study, list[str], Failure | None]:
        """The keys of a study's pictures, from the book if it has not grown since, and why it could not be asked."""
        key = self._secret.key("pacs study", study.uid)
        known = self._listing.get(key, self._scope)
        if known is not None and study.instances is not None and known.instances == study.instances:
            return study, known.pictures, None
        try:
            places = self._look(study.uid)
        except PacsError as error:
            if error.failure.fatal:
                raise
            return study, known.pictures if known else [], error.failure
        self._places[study.uid] = places
        if study.instances is not None:
            self._listing.put(key, self._scope, Known(study.instances, list(places)))
        return study, list(places), None

    def _look(self, study: str) -> dict[str, _Place]:
        """The pictures of a study, by key, in those of its series that the settings take."""
        places = {}
        for series in self._link().series(study):
            if not is_uid(series.uid) or not self._archive.takes(series.modality, series.body_part):
                continue
            for instance in self._link().instances(study, series.uid):
                if is_uid(instance):
                    places[self._key(instance)] = _Place(series.uid, instance)
        return places

    def _take_listed(self, result: tuple[Study, list[str], Failure | None]) -> tuple[list[Item], list[Failure]]:
        study, keys, failure = result
        self._studies.update(dict.fromkeys(keys, study.uid))
        return [Item(key, 0, 0, self._spool / key) for key in keys], [failure] if failure else []

    def _key(self, instance: str) -> str:
        """The name of a picture in the manifest and the spool."""
        return f"{self._secret.key('pacs', instance).hex()}.dcm"

    # Fetching

    def _fetched(self, wanted: tuple[str, dict[str, Item]]) -> tuple[list[Item], list[Failure]]:
        """Bring pictures of one study into the spool: those that are there, and why each other one is not."""
        study, items = wanted
        missing = {key for key in items if not (self._spool / key).exists()}
        failures: list[Failure] = []
        try:
            places = self._places.pop(study, None) or (self._look(study) if missing else {})
        except PacsError as error:
            if error.failure.fatal:
                raise
            places, failures = {}, [error.failure] * len(missing)
        else:
            failures = [Failure.NOT_FOUND] * len(missing - set(places))
        for series in dict.fromkeys(place.series for place in places.values()):
            all_of_it = {key: place.instance for key, place in places.items() if place.series == series}
            rest = [instance for key, instance in all_of_it.items() if key in missing]
            if rest and not self._stop.is_set():
                failures += self._link().retrieve(study, series, rest, len(rest) == len(all_of_it), self._keep).values()
        return [item for key, item in items.items() if (self._spool / key).exists()], failures

    def _keep(self, instance: str, data: bytes) -> None:
        write_private(self._spool / self._key(instance), data)

    def _take_fetched(self, result: tuple[list[Item], list[Failure]]) -> tuple[list[Item], list[Failure]]:
        return result

    def _sweep(self, wanted: set[str]) -> None:
        for path in self._spool.iterdir():
            if path.name not in wanted:
                path.unlink()

    # Both

    def _ahead(
        self,
        work: Callable[[Task], Result],
        tasks: Iterator[Task],
        take: Callable[[Result], tuple[list[Item], list[Failure]]],
    ) -> Iterator[Item]:
        """The items out of the results of tasks, in their order, worked on by a few threads a few tasks ahead."""
        waiting: deque[Future[Result]] = deque()
        in_a_row = 0
        executor = ThreadPoolExecutor(self._archive.connections, "pacs")
        try:
            for task in _then_none(tasks):
                if task is not None:
                    waiting.append(executor.submit(work, task))
                while waiting and (task is None or len(waiting) > _AHEAD * self._archive.connections):
                    items, failures = take(waiting.popleft().result())
                    self.failures.update(failures)
                    in_a_row = 0 if items or not failures else in_a_row + 1
                    if in_a_row >= _IN_A_ROW:
                        raise PacsError(
                            failures[0], f"archive: {_IN_A_ROW} studies in a row failed: {failures[0].description}"
                        )
                    yield from items
        finally:
            self._stop.set()  # ends pauses of tasks that nobody waits for any more
            executor.shutdown(cancel_futures=True)
            self._stop.clear()
            self._hang_up()

    def _unique(self, items: Iterator[Item]) -> Iterator[Item]:
        seen = set()
        for item in items:
            if item.key not in seen:
                seen.add(item.key)
                yield item

    def _link(self) -> Link:
        """This thread's connection."""
        link: Link | None = getattr(self._local, "link", None)
        if link is None:
            link = self._local.link = self._server.link()
            self._links.append(link)
        return link

    def _hang_up(self) -> None:
        links, self._links, self._local = self._links, [], threading.local()
        for link in links:
            link.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except PacsError as error:
            raise SourceLost(str(error)) from None


def _then_none(tasks: Iterator[Task]) -> Iterator[Task | None]:
    yield from tasks
    yield None


def _server(archive: DicomwebArchive | DimseArchive, limit: int, retry: Retry) -> Server:
    return (
        DicomwebServer(archive, limit, retry) if isinstance(archive, DicomwebArchive) else DimseServer(archive, retry)
    )
