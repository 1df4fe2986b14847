"""The grey-scale pipeline step by step, against the formulas of PS3.3 written out number by number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from client.archive.lut import (
    inverted,
    modality,
    percentile_window,
    read_table,
    table_onto_unit,
    voi_candidates,
    window,
)


def header(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def table(count: int, first: int, bits: int, data: bytes | int | list[int], vr: str = "OW") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [count, first, bits])
    item.add_new("LUTData", vr, data)
    return item


def words(*entries: int) -> bytes:
    return np.array(entries, "<u2").tobytes()


def test_a_header_without_rescaling_leaves_values_alone() -> None:
    values = np.array([-5.0, 0, 7])
    np.testing.assert_array_equal(modality(header())(values), values)


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [("2.5", "-1024", [-1024, -1021.5, -1014]), ("0", "-8", [-8, -7, -4]), ("1", "", [0, 1, 4]), ("", "", [0, 1, 4])],
)
def test_rescaling_is_slope_times_value_plus_intercept(slope: str, intercept: str, expected: list[float]) -> None:
    step = modality(header(RescaleSlope=slope, RescaleIntercept=intercept))
    np.testing.assert_allclose(step(np.array([0.0, 1, 4])), expected)


def test_a_modality_table_goes_before_rescaling_and_holds_its_ends() -> None:
    dataset = header(ModalityLUTSequence=[table(3, 10, 16, words(100, 300, 900))], RescaleSlope="7")
    np.testing.assert_array_equal(
        modality(dataset)(np.array([0.0, 10, 11, 12, 4000])), [100, 100, 300, 900, 900]
    )  # C.11.1.1.1: values below the first map to the first entry, above the last to the last


def test_a_table_may_begin_below_zero_also_where_that_is_written_unsigned() -> None:
    signed, unsigned = table(3, -2, 16, words(1, 2, 3)), table(3, 65534, 16, words(1, 2, 3))
    for item in (signed, unsigned):
        step = modality(header(ModalityLUTSequence=[item]))
        np.testing.assert_array_equal(step(np.array([-9.0, -2, -1, 0, 9])), [1, 1, 2, 3, 3])


def by_the_standard(value: float, centre: float, width: float, function: str) -> float:
    """C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2 with outputs from 0 to 1, value by value."""
    if function == "SIGMOID":
        return 1 / (1 + math.exp(-4 * (value - centre) / width))
    half, middle = (width / 2, centre) if function == "LINEAR_EXACT" else ((width - 1) / 2, centre - 0.5)
    if value <= middle - half:
        return 0.0
    if value > middle + half:
        return 1.0
    return (value - middle) / (2 * half) + 0.5


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (0, 100), (-600, 1500.5), (50, 2)])
def test_windows_are_the_standards_formulas(function: str, centre: float, width: float) -> None:
    values = np.concatenate([np.linspace(centre - width, centre + width, 401), np.arange(centre - 5, centre + 5)])
    expected = [by_the_standard(value, centre, width, function) for value in values]
    np.testing.assert_allclose(window(values, centre, width, function), expected, atol=1e-9)


def test_a_linear_window_of_width_one_is_a_threshold() -> None:
    np.testing.assert_array_equal(window(np.array([9.0, 9.5, 10, 11]), 10, 1, "LINEAR"), [0, 0, 1, 1])


def test_a_sigmoid_far_from_its_centre_does_not_overflow() -> None:
    np.testing.assert_allclose(window(np.array([-1e9, 1e9]), 0, 1e-3, "SIGMOID"), [0, 1], atol=1e-9)


def test_every_window_of_the_header_is_offered_in_its_order_and_tables_before_them() -> None:
    dataset = header(WindowCenter=["10", "100"], WindowWidth=["21", "201"])
    dataset.VOILUTSequence = [table(2, 0, 8, words(0, 255))]
    lut, first, second = voi_candidates(dataset)
    values = np.array([0.0, 100])
    np.testing.assert_allclose(lut(values), [0, 1])
    np.testing.assert_allclose(first(values), window(values, 10, 21, "LINEAR"))
    np.testing.assert_allclose(second(values), window(values, 100, 201, "LINEAR"))


@pytest.mark.parametrize(
    ("centre", "width"),
    [("", ""), ("10", ""), ("10", "0"), ("10", "-4"), ("10", "0.5"), (None, None), ("nan", "10"), ("10", "inf")],
)
def test_windows_that_cannot_be_are_not_offered(centre: str | None, width: str | None) -> None:
    dataset = Dataset()
    for keyword, text in (("WindowCenter", centre), ("WindowWidth", width)):
        dataset.add_new(keyword, "FD", float(text) if text else None)  # as FD, for DS holds no nan
    assert voi_candidates(dataset) == []


def test_a_narrow_exact_window_is_offered_for_it_may_be_of_small_rescaled_values() -> None:
    (step,) = voi_candidates(header(WindowCenter="0.5", WindowWidth="0.2", VOILUTFunction="LINEAR_EXACT"))
    np.testing.assert_allclose(step(np.array([0.3, 0.5, 0.55])), [0, 0.5, 0.75])


@pytest.mark.parametrize(
    ("count", "bits", "data", "vr", "expected"),
    [
        (3, 16, words(1, 500, 65535), "OW", [1, 500, 65535]),
        (3, 12, [1, 500, 4095], "US", [1, 500, 4095]),
        (4, 8, bytes([1, 2, 3, 4]), "OW", [1, 2, 3, 4]),  # two entries in each word
        (3, 8, bytes([1, 2, 3, 0]), "OW", [1, 2, 3]),
        (4, 8, [0x0201, 0x0403], "US", [1, 2, 3, 4]),
        (3, 8, words(1, 2, 255), "OW", [1, 2, 255]),  # one entry in each word
        (2, 16, words(7, 8, 9), "OW", [7, 8]),
    ],
)
def test_table_entries_are_read_in_each_way_they_are_written(
    count: int, bits: int, data: Any, vr: str, expected: list[float]
) -> None:
    entries, first = read_table(table(count, 5, bits, data, vr))
    np.testing.assert_array_equal(entries, expected)
    assert first == 5


def test_a_count_of_zero_means_65536() -> None:
    entries, _ = read_table(table(0, 0, 16, np.arange(65536, dtype="<u2").tobytes()))
    assert len(entries) == 65536


@pytest.mark.parametrize(("count", "data"), [(4, words(1, 2, 3)), (1, words(1)), (3, b"")])
def test_a_table_shorter_than_it_says_is_an_error_that_shows_no_entry(count: int, data: bytes) -> None:
    with pytest.raises(ValueError, match=rf"LUT: expected {count} entries, found \d"):
        read_table(table(count, 0, 16, data))


def test_a_display_table_runs_over_the_range_of_its_bits() -> None:
    np.testing.assert_allclose(table_onto_unit(np.array([400.0, 3000]), 12), [400 / 4095, 3000 / 4095])


@pytest.mark.parametrize("bits", [8, 16])
def test_a_display_table_whose_bits_cannot_be_right_runs_over_its_own_range(bits: int) -> None:
    np.testing.assert_allclose(table_onto_unit(np.array([100.0, 1100, 4095]), bits), [0, 1000 / 3995, 1])


def test_a_display_table_of_one_value_is_finite() -> None:
    assert np.isfinite(table_onto_unit(np.zeros(5), 8)).all()


def test_the_percentile_window_ignores_the_extremes_and_weighs_values_by_their_pixels() -> None:
    values = np.arange(1000.0)
    counts = np.zeros(1000, np.int64)
    counts[200:401] = 100
    counts[0] = counts[999] = 20  # 0.1 % each
    shown = percentile_window(values, counts)(np.array([0.0, 200, 300, 400, 999]))
    np.testing.assert_allclose(shown, [0, 0, 0.5, 1, 1], atol=0.02)


def test_the_percentile_window_follows_meanings_that_fall_while_values_rise() -> None:
    values = np.arange(100.0)[::-1]
    shown = percentile_window(values, np.ones(100, np.int64))(values)
    assert shown[0] == 1
    assert shown[-1] == 0


def test_the_percentile_window_of_one_value_is_finite() -> None:
    assert np.isfinite(percentile_window(np.array([5.0, 6]), np.array([9, 0]))(np.array([5.0, 6]))).all()


@pytest.mark.parametrize(
    ("photometric", "shape", "expected"),
    [
        ("MONOCHROME1", "", True),
        ("MONOCHROME1", "INVERSE", True),  # which C.8.11.3.1.2 requires of it, and is not a second inversion
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "", False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_what_is_shown_inverted(photometric: str, shape: str, expected: bool) -> None:
    assert inverted(header(PhotometricInterpretation=photometric, PresentationLUTShape=shape)) is expected
