"""Who a picture belongs to, as the cache may know it: keys made with the hospital's secret, bands and classes instead of values.

Every key is an HMAC-SHA256 (RFC 2104) under a secret that never leaves the hospital, cut to 16 bytes: the same patient has the
same key in each ingest, and nobody without the secret can tell whose key it is, nor try identifiers until one fits.
"""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from cxrbase_model.files import locked, private_folder, write_private
from cxrbase_model.plan import DataSpec
from cxrbase_model.settings import SettingsError

KEY_BYTES = 16

SEXES = ("unknown", "female", "male", "other")
AGE_BANDS = ("unknown", "0-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70-79", "80+")
SPLITS = ("train", "validation", "test")
MAKERS = (
    "agfa", "canon", "carestream", "delft", "fujifilm", "ge", "hologic", "konica", "philips", "samsung", "shimadzu", "siemens",
    "swissray", "toshiba", "other",
)  # fmt: skip
SCANNERS = ("unknown", *(f"{kind}-{maker}" for kind in ("cr", "dx") for maker in MAKERS))

_MAKER_WORDS = {"kodak": "carestream", "general": "ge", "fuji": "fujifilm"}  # other first words of the makers' names


@dataclass(frozen=True)
class Secret:
    """The hospital's secret, 32 bytes; it is not shown."""

    value: bytes

    def __repr__(self) -> str:
        return "Secret(...)"

    def key(self, purpose: str, identifier: str) -> bytes:
        """The 16-byte key of an identifier; keys of different purposes (patient, uid, ...) cannot be matched with each other."""
        return hmac.digest(self.value, f"{purpose}\x1f{identifier}".encode(), "sha256")[:KEY_BYTES]

    def split(self, patient_key: bytes, spec: DataSpec) -> int:
        """The split of a patient, an index into SPLITS: a pure function of the patient, the secret and the plan's shares."""
        draw = int.from_bytes(hmac.digest(self.value, b"split\x1f" + patient_key, "sha256")[:8], "big") / 2**64
        if draw < spec.test:
            return SPLITS.index("test")
        return SPLITS.index("validation") if draw < spec.test + spec.validation else SPLITS.index("train")


def load_secret(private: Path) -> Secret:
    """The secret in `private`/secret.key (64 hexadecimal digits), made at first use; SettingsError where it is not one."""
    path = private_folder(private) / "secret.key"
    if not path.exists():
        with locked(path.with_name(".secret.lock"), wait=True):  # two processes of a new hospital make one secret
            if not path.exists():
                write_private(path, f"{secrets.token_hex(32)}\n".encode())
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise SettingsError(
            f"{path}: expected 64 hexadecimal digits; without the secret, patients cannot be recognised again"
        )
    return Secret(bytes.fromhex(text))


def sex_code(text: str) -> int:
    """(0010,0040) Patient's Sex, or words of CSV files, as an index into SEXES."""
    first = text.strip().upper()[:1]
    return {"F": 1, "W": 1, "M": 2, "O": 3, "D": 3}.get(first, 0)


def age_code(years: float | None) -> int:
    """An age in years as an index into AGE_BANDS; ages that nobody has are unknown."""
    if years is None or not 0 <= years < 125:
        return 0
    return 1 + min(int(years) // 10, len(AGE_BANDS) - 2)


def age_years(text: str) -> float | None:
    """An age in years out of (0010,1010) Patient's Age ("043Y", "011M", "002W", "005D", PS3.5 6.2) or out of a bare number."""
    match = re.fullmatch(r"\s*(\d{1,3})(?:\.\d+)?\s*([YMWD]?)[A-Z]*\s*", text.upper())
    if not match:
        return None
    return int(match[1]) / {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}[match[2]]


def years_between(birth: str, study: str) -> float | None:
    """Whole years between two dates written as DA values (YYYYMMDD); None where either is not one."""
    if not (re.fullmatch(r"\d{8}", birth) and re.fullmatch(r"\d{8}", study)):
        return None
    years = int(study[:4]) - int(birth[:4]) - (study[4:] < birth[4:])
    return float(years) if years >= 0 else None


def scanner_code(modality: str, maker: str) -> int:
    """Modality and (0008,0070) Manufacturer as an index into SCANNERS, a closed list, so that no text of a header is kept."""
    kind = {"CR": "cr", "DX": "dx", "DR": "dx"}.get(modality.strip().upper())
    if kind is None:
        return 0
    words = re.findall(r"[a-z]+", maker.lower())
    known = [name for name in (_MAKER_WORDS.get(word, word) for word in words) if name in MAKERS]
    return SCANNERS.index(f"{kind}-{known[0] if known else 'other'}")
