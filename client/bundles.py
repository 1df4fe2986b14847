"""Code approval: a hospital runs its own installed release, or a bundle that it has approved, and nothing else.

Bundles that were asked for and not approved are kept below the private folder, so that somebody can look at them; of them nothing
is unpacked or imported.
"""

from __future__ import annotations

from enum import Enum, auto
from pathlib import Path

from cxrbase_model.bundle import bundle_digest, release_bundle
from cxrbase_model.files import private_folder, write_private
from cxrbase_model.settings import SettingsError

FOLDER = "bundles"

_MOST_ASKED = 3  # bundles that wait; a server cannot fill the disk with more
_LARGEST = 10 << 20  # bytes of one that waits, Flower's own limit
_SHORTEST = 8  # characters of a digest that name a bundle


class Verdict(Enum):
    """What a hospital thinks of a bundle."""

    INSTALLED = auto()
    APPROVED = auto()
    UNKNOWN = auto()


class Bundles:
    """The bundles below the hospital's private folder, by their SHA-256."""

    def __init__(self, private: Path) -> None:
        self._top = private / FOLDER

    def verdict(self, bundle: bytes) -> Verdict:
        """Whether a bundle is, to the byte, the installed release, or one that was approved."""
        return self.verdict_of(bundle_digest(bundle))

    def verdict_of(self, digest: str) -> Verdict:
        """The same for a bundle that has this digest, 64 hexadecimal digits."""
        if digest == bundle_digest(release_bundle()):
            return Verdict.INSTALLED
        return Verdict.APPROVED if digest in self.digests("approved") else Verdict.UNKNOWN

    def ask(self, bundle: bytes) -> None:
        """Keep a bundle that waits for approval; the oldest makes room where too many do, and one that is too large is not kept."""
        if len(bundle) > _LARGEST:
            return
        self._write("asked", bundle)
        waiting = sorted((self._top / "asked").glob("*.zip"), key=lambda path: path.stat().st_mtime_ns)
        for path in waiting[:-_MOST_ASKED]:
            path.unlink(missing_ok=True)

    def approve(self, bundle: bytes) -> None:
        """Let a bundle run."""
        self._write("approved", bundle)
        self._file("asked", bundle_digest(bundle)).unlink(missing_ok=True)

    def revoke(self, digest: str) -> None:
        """Let a bundle not run any more; a task that is on its way is finished."""
        self._file("approved", digest).unlink(missing_ok=True)

    def digests(self, kind: str) -> list[str]:
        """The digests of the bundles that were asked for or approved, `kind`."""
        return sorted(path.stem for path in (self._top / kind).glob("*.zip"))

    def named(self, name: str, kind: str) -> bytes:
        """The bundle that a file or the beginning of a digest names; SettingsError where none or several do."""
        if Path(name).is_file():
            return Path(name).read_bytes()
        known = self.digests(kind)
        found = [digest for digest in known if len(name) >= _SHORTEST and digest.startswith(name)]
        if len(found) != 1:
            digests = ", ".join(digest[:12] for digest in known) or "none"
            raise SettingsError(
                f"BUNDLE: expected a file, or {_SHORTEST} or more characters of one of {digests}; found {name!r}"
            )
        return self._file(kind, found[0]).read_bytes()

    def _write(self, kind: str, bundle: bytes) -> None:
        private_folder(self._top)
        private_folder(self._top / kind)
        write_private(self._file(kind, bundle_digest(bundle)), bundle)

    def _file(self, kind: str, digest: str) -> Path:
        return self._top / kind / f"{digest}.zip"
