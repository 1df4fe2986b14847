"""The bundle: the code of a release as the operator's server sends it to the hospitals, a zip file in Flower's FAB format.

Its bytes follow from the installed files alone (nothing is compressed, dates are fixed, names are sorted), so both sides can compute
its SHA-256 by themselves, on any machine. A bundle that came from elsewhere is only ever read here, never run.
"""

from __future__ import annotations

import difflib
import hashlib
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from io import BytesIO
from pathlib import PurePosixPath

PACKAGES = ("client", "cxrbase_model", "server")
SUFFIXES = (".py", ".html")

_MANIFEST = ".info/CONTENT"  # Flower's list of the files with their SHA-256
_DATE = (2024, 10, 1, 0, 0, 0)  # Flower's own fixed date
_LARGEST = 10 << 20  # bytes, of the bundle and of all its files together; Flower's own limit for a bundle
_PROJECT = """\
[project]
name = "cxrbase"
version = "{version}"
description = "Federated training of one chest X-ray foundation model"

[tool.flwr.app]
publisher = "cxrbase"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
run-directory = ""
expected-hospitals = 0
"""


class BundleError(ValueError):
    """Bytes are not a bundle."""


@dataclass(frozen=True)
class Difference:
    """One file in which two bundles differ: added, removed or changed, with a unified diff of its lines."""

    path: str
    kind: str
    diff: str


def release_files() -> dict[str, bytes]:
    """The files of the installed release by their path in the bundle, sorted."""
    found = {"pyproject.toml": _PROJECT.format(version=version("cxrbase")).encode()}
    for package in PACKAGES:
        found |= dict(_walk(files(package), package))
    return dict(sorted(found.items()))


def release_bundle() -> bytes:
    """The bundle of the installed release."""
    return pack_bundle(release_files())


def pack_bundle(content: Mapping[str, bytes]) -> bytes:
    """The bundle that holds these files; the same files give the same bytes."""
    lines = [f"{path},{hashlib.sha256(data).hexdigest()},{8 * len(data)}" for path, data in sorted(content.items())]
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, data in (*sorted(content.items()), (_MANIFEST, "\n".join(lines).encode())):
            archive.writestr(zipfile.ZipInfo(path, _DATE), data)
    return buffer.getvalue()


def bundle_digest(bundle: bytes) -> str:
    """The SHA-256 by which a bundle is known, 64 hexadecimal digits; Flower's own identity of a bundle."""
    return hashlib.sha256(bundle).hexdigest()


def bundle_files(bundle: bytes) -> dict[str, bytes]:
    """The files of a bundle by path, sorted; BundleError where it is none, is too large, or a path leaves its folder."""
    if len(bundle) > _LARGEST:
        raise BundleError(f"expected a bundle of at most {_LARGEST} bytes, found {len(bundle)}")
    try:
        with zipfile.ZipFile(BytesIO(bundle)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir() and member.filename != _MANIFEST]
            if sum(member.file_size for member in members) > _LARGEST:
                raise BundleError(f"expected files of at most {_LARGEST} bytes in all")
            names = [member.filename for member in members]
            if len(set(names)) != len(names) or not all(map(_inside, names)):
                raise BundleError("expected each file once, and below the bundle's own folder")
            return {member.filename: _read(archive, member) for member in sorted(members, key=lambda m: m.filename)}
    except BundleError:
        raise
    except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError, ValueError, LookupError, struct.error):
        raise BundleError("expected a bundle, a zip file, found something else or a damaged one") from None


def differences(bundle: Mapping[str, bytes], release: Mapping[str, bytes]) -> list[Difference]:
    """What a bundle's files change with respect to a release's, by path."""
    found = []
    for path in sorted(bundle.keys() | release.keys()):
        before, after = release.get(path), bundle.get(path)
        if before != after:
            kind = "added" if before is None else "removed" if after is None else "changed"
            found.append(Difference(path, kind, _diff(path, before or b"", after or b"")))
    return found


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A file's bytes, never more of them than it claims, however many its compressed form holds."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others inflate without a limit
        raise BundleError("expected files that are stored or deflated, found another method")
    with archive.open(member) as file:
        data = file.read(member.file_size + 1)  # a bare read() inflates all that is there before it looks at the size
    if len(data) != member.file_size:
        raise BundleError("expected files of the size that the bundle claims")
    return data


def _diff(path: str, before: bytes, after: bytes) -> str:
    old, new = (data.decode("utf-8", "backslashreplace").splitlines() for data in (before, after))
    return "\n".join(difflib.unified_diff(old, new, f"release/{path}", f"bundle/{path}", lineterm=""))


def _walk(folder: Traversable, where: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        path = f"{where}/{entry.name}"
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _walk(entry, path)
        elif entry.name.endswith(SUFFIXES):
            yield path, entry.read_bytes()


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        name == str(path) != "."
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        and ":" not in name
    )
