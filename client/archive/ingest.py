"""The hospital's archive becomes a training cache: list, prepare what is new in worker processes, commit, and finish.

    source -> new or changed items -> workers -> shards + manifest (committed every few seconds) -> finish -> cache.json

Files are worked through in the order of keys under the hospital's secret, so that neither shards nor rows tell the archive's
order. Whatever ends an ingest, what was committed stays, the cache of the last complete ingest stays valid, and the same
command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

from client.archive import finish
from client.archive.cache import VIEWS
from client.archive.finish import Summary
from client.archive.identity import age_code, load_secret, scanner_code, sex_code
from client.archive.labelbook import load_labels
from client.archive.manifest import Entry, Manifest
from client.archive.open_source import open_source
from client.archive.pacs.settings import PacsArchive
from client.archive.prepare import About, Job, Prepared, Settings, Unread, prepare
from client.archive.reasons import Reason
from client.archive.select import Rules
from client.archive.settings import DicomArchive
from client.archive.shards import Pending, write_pictures
from client.archive.sources import Item, Source, SourceLost
from client.archive.stopped import IngestStopped, full_disk_is_told
from client.archive.workers import Failed, Pool
from client.site import Site
from cxrbase_model.files import locked, private_folder
from cxrbase_model.plan import DataSpec
from cxrbase_model.settings import SettingsError, digest, load_yaml, read

PIXELS_VERSION = 1  # counts changes of the code that alter pixels; another one prepares everything again

_COMMIT_ROWS, _COMMIT_SECONDS = 256, 5.0
_RETRY = -1  # stands for the change of a file that could not be read, so that the next ingest tries it again
_LOST_SHARE = 0.5

Progress = Callable[[int, int], None]  # files done, files to do


def ingest(
    site: Site, spec: DataSpec, *, progress: Progress | None = None, again: bool = False, accept_loss: bool = False
) -> Summary:
    """Bring the cache of a site up to date with its archive and a plan's data specification.

    again: prepare every file anew. accept_loss: go on although more than half of the known files are gone.
    Raises SettingsError for a wrong site file, label file or rule file, SourceLost where the archive is not there, and
    IngestStopped where the disk is full, another ingest runs, or most files are gone.
    """
    private_folder(site.private)
    private_folder(site.cache_folder)
    with locked(site.private / "ingest.lock") as free:
        if not free:
            raise IngestStopped("another ingest of this site is running; wait for it or stop it")
        with (
            full_disk_is_told(),
            closing(Manifest(site.private / "manifest.sqlite")) as manifest,
            closing(open_source(site)) as source,
        ):
            return _Ingest(site, spec, manifest, source, progress).run(again=again, accept_loss=accept_loss)


def prepare_settings(site: Site, spec: DataSpec) -> Settings:
    """What every file of a site is prepared with."""
    patient = site.archive.patient if isinstance(site.archive, DicomArchive | PacsArchive) else "id"
    return Settings(spec=spec, rules=read_rules(site), limits=site.limits, patient=patient)


def read_rules(site: Site) -> Rules:
    """The site's rule file, or the default rules."""
    if site.rules is None:
        return Rules()
    try:
        return read(Rules, load_yaml(site.rules))
    except SettingsError as error:
        raise SettingsError(f"{site.rules}: {error}") from None


@dataclass
class _Listing:
    """What the archive holds against what the manifest knows."""

    todo: list[Item]
    gone: list[str]
    unchanged: int


class _Ingest:
    """One ingest, from the listing to the summary."""

    def __init__(
        self, site: Site, spec: DataSpec, manifest: Manifest, source: Source, progress: Progress | None
    ) -> None:
        self.site, self.spec, self.manifest, self.source = site, spec, manifest, source
        self.progress = progress or (lambda done, total: None)
        self.secret = load_secret(site.private)
        self.settings = prepare_settings(site, spec)
        self.forgotten = manifest.forgotten()
        self.pending: list[Pending] = []
        self.taken: list[Item] = []  # to be let go of by the source once they are committed
        self.read = 0
        self.left_out = 0  # files of patients who asked to be forgotten

    def run(self, *, again: bool, accept_loss: bool) -> Summary:
        """See `ingest`."""
        started = time.monotonic()
        self._check_secret()
        self._check_pixels(again)
        listing = self._list()
        self._check_loss(listing, accept_loss)
        book = load_labels(self.site, self.spec, self.source, self.secret)  # before hours of work: its errors come now
        with self.manifest.transaction():
            self.manifest.mark_gone(listing.gone)
        todo = listing.todo or self._promoted()
        while todo:
            self._prepare_all(todo)
            todo = self._promoted()
        summary = finish.finish(self.site, self.spec, self.manifest, self.secret, book, self.left_out)
        return replace(
            summary,
            seconds=time.monotonic() - started,
            new=self.read,
            unchanged=listing.unchanged,
            failures={str(code): count for code, count in self.source.failures.items()},
        )

    def _check_secret(self) -> None:
        proof = self.secret.key("proof", "manifest").hex()
        if self.manifest.fact("secret", proof) != proof:
            raise SettingsError(
                "private/secret.key is another one than at the last ingest; put it back, or move the private folder away"
            )

    def _check_pixels(self, again: bool) -> None:
        """Start over where the pictures would now be made in another way."""
        how = [PIXELS_VERSION, self.spec.image_size, self.spec.aspect, self.spec.remove_borders, self.settings.patient]
        how += [self.spec.intensity] if self.spec.intensity != "as-is" else []  # older caches stay valid
        pixels = digest({"how": how, "rules": self.settings.rules, "kind": self.site.archive.kind})
        if self.manifest.fact("pixels", pixels) != pixels or again:
            with self.manifest.transaction():
                self.manifest.start_over()
                self.manifest.set_fact("pixels", pixels)

    def _list(self) -> _Listing:
        known = self.manifest.prints()
        todo, unchanged = [], 0
        seen = set()
        for item in self.source.items():
            if item.key in seen:  # a zip may hold two members of one name; the first is used
                continue
            seen.add(item.key)
            if known.get(item.key) == (item.size, item.changed, self._facts_print(item)):
                unchanged += 1
            else:
                todo.append(item)
        if not seen:
            raise SourceLost("archive: holds no files; is it plugged in and mounted, and is archive.path right?")
        todo.sort(key=lambda item: self.secret.key("file", item.key))
        return _Listing(todo, [name for name in known if name not in seen], unchanged)

    def _check_loss(self, listing: _Listing, accept_loss: bool) -> None:
        known = len(listing.gone) + listing.unchanged
        if not accept_loss and known >= 20 and len(listing.gone) > _LOST_SHARE * known:
            raise IngestStopped(
                f"{len(listing.gone)} of {known} known files are gone from the archive; is all of it mounted? "
                "If they are gone for good, run again with --accept-loss"
            )

    def _prepare_all(self, items: list[Item]) -> None:
        if not items:
            return
        limits = self.site.limits
        jobs = (Job(item, self.settings) for item in self.source.fetch(items))
        saved = time.monotonic()
        self.progress(0, len(items))
        workers = min(self.site.compute.workers, len(items))
        try:
            with Pool(prepare, count=workers, seconds=limits.seconds, memory=limits.memory << 20) as pool:
                for done, (job, result) in enumerate(pool.run(jobs), start=1):
                    self._take(job.item, result)
                    self.read += 1
                    if len(self.pending) >= _COMMIT_ROWS or time.monotonic() - saved > _COMMIT_SECONDS:
                        self._commit()
                        saved = time.monotonic()
                    self.progress(done, len(items))
        finally:
            self._commit()

    def _promoted(self) -> list[Item]:
        """Copies that take the place of a file that has gone or changed: their pixels are needed now."""
        with self.manifest.transaction():
            self.manifest.decide()
        names = self.manifest.pictureless()
        return [item for item in self.source.items() if item.key in names] if names else []

    def _take(self, item: Item, result: Prepared | Unread | Failed) -> None:
        changed = item.changed
        self.taken.append(item)
        if isinstance(result, Unread):
            if not self.source.present():
                raise SourceLost(
                    "archive: went away during the ingest; what was read is kept, run again when it is back"
                )
            result, changed = Prepared(About(), reason=Reason.UNREADABLE), _RETRY
        if isinstance(result, Failed):
            result = Prepared(About(), reason=result.reason)
        entry = self._entry(item, changed, result)
        if entry.patient in self.forgotten:
            self.left_out += 1
            return
        self.pending.append((entry, result.picture))

    def _entry(self, item: Item, changed: int, result: Prepared) -> Entry:
        about = result.about
        view = about.view if about.view in VIEWS else "OTHER"
        return Entry(
            name=item.key, size=item.size, changed=changed, facts=self._facts_print(item), prepared=result.reason or "",
            row_key=self.secret.key("row", about.uid or item.key),
            uid=self._key("uid", about.uid), accession=self._key("accession", about.accession),
            patient=self._key("patient", about.patient), pixels=result.pixel_hash or None,
            sex=sex_code(about.sex), age_band=age_code(about.age), view=VIEWS.index(view),
            scanner=scanner_code(about.modality, about.maker), device=f"{about.maker} {about.model}".strip()[:80],
            height=result.height, width=result.width,
        )  # fmt: skip

    def _key(self, purpose: str, identifier: str) -> bytes | None:
        return self.secret.key(purpose, identifier) if identifier else None

    def _facts_print(self, item: Item) -> str:
        return self.secret.key("facts", repr(item.facts)).hex() if item.facts else ""

    def _commit(self) -> None:
        """Write what is pending: first the pictures, then, in one transaction, the entries that point at them."""
        pending, self.pending = self.pending, []
        placed, rows = write_pictures(self.site.cache_folder, self.manifest.shards(), pending)
        with self.manifest.transaction():
            self.manifest.put(placed)
            for number, count in rows.items():
                self.manifest.set_shard(number, count)
        taken, self.taken = self.taken, []
        self.source.done(taken)
