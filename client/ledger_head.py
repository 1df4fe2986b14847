"""The ledger's last line in a file of its own, sealed with the hospital's secret (HMAC-SHA256, RFC 2104)."""

from __future__ import annotations

import hmac
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from client.archive.identity import load_secret
from cxrbase_model.files import write_private


class LedgerError(ValueError):
    """The ledger was altered, shortened or damaged; the message says what is wrong with it."""


@dataclass(frozen=True)
class Head:
    """Number, text and hash of the last line."""

    number: int
    line: str
    hash: str


def write_head(path: Path, head: Head, private: Path) -> None:
    """Write a head, whole or not at all, onto the disk; LedgerError where it cannot be."""
    content = asdict(head) | {"seal": _seal(head, private)}
    try:
        write_private(path, json.dumps(content, sort_keys=True).encode() + b"\n")
    except OSError as error:
        raise LedgerError(f"{path}: cannot be written ({error.strerror})") from None


def read_head(path: Path, private: Path) -> Head | None:
    """The head in a file, None where there is no such file; LedgerError where it is damaged or sealed with another secret."""
    try:
        content = json.loads(path.read_bytes())
        seal = str(content.pop("seal"))
        head = Head(**content)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LedgerError(f"{path}: is damaged") from None
    if not hmac.compare_digest(seal, _seal(head, private)):
        raise LedgerError(f"{path}: is not sealed with the secret of this hospital (secret.key)")
    return head


def _seal(head: Head, private: Path) -> str:
    if not (private / "secret.key").exists():
        raise LedgerError(f"{private / 'secret.key'}: is not there; the ledger is sealed with it")
    return load_secret(private).key("ledger head", f"{head.number}\x1f{head.hash}\x1f{head.line}").hex()
