"""Keys under the hospital's secret, and classes instead of values."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import numpy as np
import pytest

from client.archive.identity import (
    AGE_BANDS,
    SCANNERS,
    SEXES,
    Secret,
    age_code,
    age_years,
    load_secret,
    scanner_code,
    sex_code,
    years_between,
)
from cxrbase_model.files import write_private
from cxrbase_model.plan import DataSpec
from cxrbase_model.settings import SettingsError


def test_the_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    first = load_secret(tmp_path / "private")
    assert len(first.value) == 32
    assert load_secret(tmp_path / "private") == first
    assert stat.S_IMODE((tmp_path / "private" / "secret.key").stat().st_mode) == 0o600
    assert first.value.hex() not in repr(first)
    assert load_secret(tmp_path / "other") != first


def test_two_that_begin_at_once_have_one_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[Secret] = []
    other = threading.Thread(target=lambda: others.append(load_secret(tmp_path)))

    def write(path: Path, *data: bytes) -> None:
        if not other.ident:  # the first one is about to write when the other begins
            other.start()
            other.join(0.3)
        write_private(path, *data)

    monkeypatch.setattr("client.archive.identity.write_private", write)
    first = load_secret(tmp_path)
    other.join()
    assert others == [first]
    assert load_secret(tmp_path) == first


def test_a_secret_that_is_none_is_refused_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_text("hunter2")
    with pytest.raises(SettingsError, match="expected 64 hexadecimal digits") as caught:
        load_secret(tmp_path)
    assert "hunter2" not in str(caught.value)


def test_keys_differ_by_purpose_identifier_and_secret() -> None:
    one, other = Secret(b"1" * 32), Secret(b"2" * 32)
    keys = [one.key("patient", "A"), one.key("uid", "A"), one.key("patient", "B"), other.key("patient", "A")]
    assert len(set(keys)) == 4
    assert one.key("patient", "A") == keys[0]


def test_splits_have_the_plans_shares_and_grow_into_each_other() -> None:
    secret = Secret(b"1" * 32)
    keys = [secret.key("patient", str(number)) for number in range(4000)]
    small = np.array([secret.split(key, DataSpec(findings=("A",), test=0.2, validation=0.1)) for key in keys])
    large = np.array([secret.split(key, DataSpec(findings=("A",), test=0.3, validation=0.1)) for key in keys])
    np.testing.assert_allclose(np.bincount(small) / 4000, [0.7, 0.1, 0.2], atol=0.025)
    assert set(large[small == 2]) == {2}


@pytest.mark.parametrize(
    ("text", "sex"),
    [("F", "female"), ("Male", "male"), ("w", "female"), ("O", "other"), ("", "unknown"), ("?", "unknown")],
)
def test_sexes(text: str, sex: str) -> None:
    assert SEXES[sex_code(text)] == sex


@pytest.mark.parametrize(
    ("text", "years"),
    [("043Y", 43), ("018M", 1.5), ("026W", 0.5), ("73", 73), ("58.0", 58), ("", None), ("old", None), ("9999Y", None)],
)
def test_ages(text: str, years: float | None) -> None:
    assert age_years(text) == years


@pytest.mark.parametrize(
    ("years", "band"), [(0.5, "0-9"), (10, "10-19"), (79, "70-79"), (80, "80+"), (103, "80+"), (400, "unknown")]
)
def test_age_bands(years: float, band: str) -> None:
    assert AGE_BANDS[age_code(years)] == band


def test_unknown_ages_have_a_band() -> None:
    assert AGE_BANDS[age_code(None)] == "unknown"


@pytest.mark.parametrize(
    ("birth", "study", "years"),
    [
        ("19770321", "20200320", 42),
        ("19770321", "20200321", 43),
        ("", "20200321", None),
        ("20210101", "20200101", None),
    ],
)
def test_years_between_dates(birth: str, study: str, years: float | None) -> None:
    assert years_between(birth, study) == years


@pytest.mark.parametrize(
    ("modality", "maker", "scanner"),
    [
        ("DX", "SIEMENS Healthineers", "dx-siemens"), ("CR", "FUJIFILM Corporation", "cr-fujifilm"), ("CR", "Fuji Photo Film", "cr-fujifilm"),
        ("DX", '"GE Healthcare"', "dx-ge"), ("DR", "Philips Medical Systems", "dx-philips"), ("CR", "KODAK", "cr-carestream"),
        ("DX", "Dr. Smith's own", "dx-other"), ("", "SIEMENS", "unknown"), ("DX", "", "dx-other"),
    ],
)  # fmt: skip
def test_scanners_are_a_closed_list(modality: str, maker: str, scanner: str) -> None:
    assert SCANNERS[scanner_code(modality, maker)] == scanner
