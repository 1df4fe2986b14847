"""A patient is forgotten: pixels, labels, keys and file names go; what stays is one HMAC, so that no later ingest takes them again."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from client.archive.cache import CacheError
from client.archive.finish import finish, recorded_spec
from client.archive.identity import load_secret
from client.archive.manifest import Manifest
from client.archive.stopped import IngestStopped
from client.feedback import forget_residuals
from client.held import forget_held
from client.mixing import forget_mixing
from client.moments import forget_moments
from client.outbox import forget_outbox
from client.own import forget_own
from client.site import Site
from client.variates import forget_variates
from cxrbase_model.files import locked


@dataclass(frozen=True)
class Forgotten:
    """What was removed: files of the manifest, pictures of the cache, and files of the spool."""

    files: int
    pictures: int
    spooled: int


def forget(site: Site, patient: str) -> Forgotten:
    """Remove every trace of a patient (the identifier as in the archive); the archive itself is not needed and not touched.

    Killed at any moment, the same call ends what it began. Raises CacheError or ManifestError where nothing was ingested,
    IngestStopped while an ingest runs.
    """
    if not (site.private / "manifest.sqlite").exists():
        raise CacheError("nothing was ingested here, so nothing is kept of anyone")
    secret = load_secret(site.private)
    key = secret.key("patient", patient.strip())
    with locked(site.private / "ingest.lock") as free:
        if not free:
            raise IngestStopped("an ingest of this site is running; stop it first")
        with closing(Manifest(site.private / "manifest.sqlite")) as manifest:
            entries = manifest.of_patient(key)
            spooled = sum(_remove_spooled(site.private / "spool", entry.name) for entry in entries)
            with manifest.transaction():
                manifest.forget(key)
                manifest.remove(entry.name for entry in entries)
            (site.private / "ingest.html").unlink(missing_ok=True)  # may show the patient
            forget_moments(site.private)
            forget_residuals(site.private)
            forget_own(site.private)
            forget_mixing(site.private)
            forget_variates(site.private)
            forget_outbox(site.private)
            forget_held(site.private)
            if spec := recorded_spec(manifest):
                finish(site, spec, manifest, secret)
            manifest.vacuum()
    return Forgotten(len(entries), sum(entry.final == "" for entry in entries), spooled)


def _remove_spooled(spool: Path, name: str) -> bool:
    """Remove a file that came over the network and waits in the spool under its name in the manifest."""
    path = (spool / name).resolve()
    if not path.is_relative_to(spool.resolve()) or not path.is_file():
        return False
    path.unlink()
    return True
