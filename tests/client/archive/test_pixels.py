"""From a data set or a picture file to the picture a model sees: windows, padding, pixel shapes, colours, sizes."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from client.archive.pixels import decode_image_file, fit, render, square_pixels, without_borders
from client.archive.reasons import Excluded, Reason
from client.archive.select import Rules
from cxrbase_model.plan import DataSpec

SMALL = Rules(minimum_size=1)
HEIGHT, WIDTH = 60, 80


def ramp(low: float, high: float) -> NDArray[np.float64]:
    """From left to right, the same in each row, [60, 80]."""
    return np.tile(np.linspace(low, high, WIDTH), (HEIGHT, 1))


def picture(values: NDArray[Any], **elements: Any) -> Dataset:
    """A data set of these values, [H, W] or [H, W, 3], of their own integer type."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    bits = values.dtype.itemsize * 8
    described: dict[str, Any] = {
        "Rows": values.shape[0], "Columns": values.shape[1], "SamplesPerPixel": 1 if values.ndim == 2 else 3,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1,
        "PixelRepresentation": int(values.dtype.kind == "i"), "PlanarConfiguration": 0,
    } | elements  # fmt: skip
    for keyword, value in described.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.set_original_encoding(False, True)
    return dataset


def reason_of(call: Any, *arguments: Any) -> Reason:
    with pytest.raises(Excluded) as caught:
        call(*arguments)
    return caught.value.reason


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": -90000, "WindowWidth": 100},  # all white
        {"WindowCenter": 90000, "WindowWidth": 100},  # all black
        {"WindowCenter": 1500, "WindowWidth": 2},  # black and white
        {"WindowCenter": 32768, "WindowWidth": 65536},  # nearly no contrast
        {"WindowCenter": 1500, "WindowWidth": 0},
    ],
)
def test_a_window_that_is_absent_or_absurd_is_replaced_by_percentiles(window: dict[str, Any]) -> None:
    values = ramp(1000, 2000).round().astype(np.uint16)
    values[0, :10] = 0
    values[0, -5:] = 65535  # a marker, which a window from least to most would be made for
    shown = render(picture(values, **window), SMALL)
    expected = np.clip((values - 1000.0) / 1000, 0, 1) * 255
    assert np.abs(shown[1:] - expected[1:]).max() <= 6  # half a percent may be cut off at each end, and is


def test_a_sound_window_is_kept_and_of_several_the_first_sound_one() -> None:
    values = ramp(0, 4095).round().astype(np.uint16)
    sound = render(picture(values, WindowCenter=1000, WindowWidth=1001), SMALL)
    expected = np.clip((values - 999.5) / 1000 + 0.5, 0, 1) * 255
    assert np.abs(sound - expected).max() <= 0.51
    both = render(picture(values, WindowCenter=[90000, 1000], WindowWidth=[10, 1001]), SMALL)
    np.testing.assert_array_equal(both, sound)


def test_small_values_are_white_in_monochrome1_also_without_a_window() -> None:
    values = ramp(0, 4095).round().astype(np.uint16)
    plain, inverse = (
        render(picture(values), SMALL),
        render(picture(values, PhotometricInterpretation="MONOCHROME1"), SMALL),
    )
    assert np.abs(255 - inverse.astype(int) - plain).max() <= 1
    assert inverse[0, 0] == 255


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("padding", "filled"),
    [
        ({"PixelPaddingValue": 0}, [0]),
        ({"PixelPaddingValue": 60000}, [60000]),
        ({"PixelPaddingValue": 60000, "PixelPaddingRangeLimit": 60010}, [60000, 60005, 60010]),
        ({"PixelPaddingValue": 60010, "PixelPaddingRangeLimit": 60000}, [60000, 60010]),
    ],
)
def test_padding_is_black_and_takes_no_part_in_the_window(
    photometric: str, padding: dict[str, int], filled: list[int]
) -> None:
    values = ramp(1000, 2000).round().astype(np.uint16)
    clean = render(picture(values, PhotometricInterpretation=photometric), SMALL)
    values[:30, :] = np.resize(filled, (30, WIDTH))
    shown = render(picture(values, PhotometricInterpretation=photometric, **padding), SMALL)
    assert (shown[:30] == 0).all()
    assert np.abs(shown[30:].astype(int) - clean[30:]).max() <= 6


@pytest.mark.parametrize("vr_and_value", [("SS", -2000), ("US", 63536)])
def test_padding_of_signed_values_may_be_written_unsigned(vr_and_value: tuple[str, int]) -> None:
    values = ramp(-1000, 1000).round().astype(np.int16)
    values[:30] = -2000
    dataset = picture(values)
    dataset.add_new("PixelPaddingValue", *vr_and_value)
    shown = render(dataset, SMALL)
    assert (shown[:30] == 0).all()
    assert np.abs(shown[31] - np.linspace(0, 255, WIDTH)).max() <= 6


def test_padding_is_compared_with_stored_values_and_not_with_rescaled_ones() -> None:
    values = ramp(0, 2000).round().astype(np.uint16)
    dataset = picture(
        values, PixelPaddingValue=0, RescaleSlope=1, RescaleIntercept=-1000, WindowCenter=0, WindowWidth=4000
    )
    assert render(dataset, SMALL)[0, 0] == 0
    assert render(dataset, SMALL)[0, 1] > 60


@pytest.mark.parametrize("kind", [np.uint32, np.int32])
@pytest.mark.parametrize(("low", "high"), [(0, 4000), (0, 1_000_000), (-3000, 3000), (-1_000_000, 2_000_000)])
def test_wider_values_are_windowed_in_their_own_units(kind: type[Any], low: int, high: int) -> None:
    if kind is np.uint32 and low < 0:
        low, high = 0, high - low
    values = ramp(low, high).round().astype(kind)
    middle, width = (low + high) / 2, (high - low) / 2
    shown = render(picture(values, WindowCenter=middle, WindowWidth=width, VOILUTFunction="LINEAR_EXACT"), SMALL)
    expected = np.clip((values.astype(float) - middle) / width + 0.5, 0, 1) * 255
    assert np.abs(shown - expected).max() <= 0.6


@pytest.mark.parametrize(
    ("elements", "shape"),
    [
        ({"PixelSpacing": [0.2, 0.1]}, (120, 80)),
        ({"PixelSpacing": [0.1, 0.2]}, (60, 160)),
        ({"ImagerPixelSpacing": [0.3, 0.2]}, (90, 80)),
        ({"PixelAspectRatio": [2, 1]}, (120, 80)),
        ({"PixelAspectRatio": [1, 2]}, (60, 160)),
        ({"PixelAspectRatio": [1, 1]}, (60, 80)),
        ({"PixelSpacing": [0.143, 0.143]}, (60, 80)),
        ({"PixelSpacing": [0.1430, 0.1431]}, (60, 80)),  # a rounding, and no reason to resample
        ({"PixelSpacing": [0.1, 0]}, (60, 80)),
        ({"PixelSpacing": [100, 0.1]}, (60, 80)),  # absurd
        ({"PixelSpacing": None}, (60, 80)),
        ({}, (60, 80)),
    ],
)
def test_pixels_become_square(elements: dict[str, Any], shape: tuple[int, int]) -> None:
    dataset = picture(ramp(0, 255).astype(np.uint8), **elements)
    shown = render(dataset, SMALL)
    assert shown.shape == shape
    np.testing.assert_allclose(shown[shape[0] // 2], np.linspace(0, 255, shape[1]), atol=6)


def test_pixels_that_would_become_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.archive.pixels.MOST_PIXELS", 9000)
    dataset = picture(ramp(0, 255).astype(np.uint8), PixelSpacing=[0.2, 0.1])
    assert reason_of(square_pixels, dataset, np.zeros((HEIGHT, WIDTH), np.uint8)) is Reason.TOO_LARGE


def grey_in_three() -> NDArray[np.uint8]:
    return np.repeat(ramp(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_a_colour_picture_without_colour_is_grey_and_one_with_colour_is_left_out() -> None:
    values = grey_in_three()
    np.testing.assert_array_equal(render(picture(values, PhotometricInterpretation="RGB"), SMALL), values[..., 0])
    values[..., 2] //= 2
    assert reason_of(render, picture(values, PhotometricInterpretation="RGB"), SMALL) is Reason.COLOUR


@pytest.mark.parametrize("compressed", [False, True])
def test_luminance_without_chrominance_is_grey(compressed: bool) -> None:
    values = grey_in_three()
    values[..., 1:] = 128
    dataset = picture(values, PhotometricInterpretation="YBR_FULL")
    coloured = picture(
        np.where([False, True, False], 40, values).astype(np.uint8), PhotometricInterpretation="YBR_FULL"
    )
    if compressed:
        for item in (dataset, coloured):
            item.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(render(dataset, SMALL), values[..., 0])
    assert reason_of(render, coloured, SMALL) is Reason.COLOUR


def test_a_grey_jpeg_of_three_samples_is_grey() -> None:
    values = grey_in_three()
    dataset = picture(values, PhotometricInterpretation="YBR_FULL_422")
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([bytes(imagecodecs.jpeg_encode(values, level=95))])
    assert np.abs(render(dataset, SMALL).astype(int) - values[..., 0]).max() <= 4


def palette(blue: int) -> Dataset:
    dataset = picture(ramp(0, 255).astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for channel, most in (("Red", 65535), ("Green", 65535), ("Blue", blue)):
        dataset.add_new(f"{channel}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        entries = np.linspace(0, most, 256).astype("<u2")
        dataset.add_new(f"{channel}PaletteColorLookupTableData", "OW", entries.tobytes())
    return dataset


def test_a_grey_palette_is_grey_and_a_coloured_one_is_left_out() -> None:
    np.testing.assert_allclose(render(palette(65535), SMALL), ramp(0, 255).astype(np.uint8), atol=1)
    assert reason_of(render, palette(20000), SMALL) is Reason.COLOUR


@pytest.mark.parametrize(
    ("values", "minimum", "reason"),
    [
        (ramp(0, 255), 61, Reason.TOO_SMALL),
        (np.full((HEIGHT, WIDTH), 77.0), 1, Reason.BLANK),
        (np.pad(ramp(0, 255)[:5], ((0, 95), (0, 0))), 1, Reason.SATURATED),
        (np.pad(ramp(0, 255)[:5], ((0, 95), (0, 0)), constant_values=255), 1, Reason.SATURATED),
    ],
)
def test_pictures_that_show_too_little_have_a_reason_each(
    values: NDArray[np.float64], minimum: int, reason: Reason
) -> None:
    dataset = picture(values.astype(np.uint8), WindowCenter=128, WindowWidth=256)
    assert reason_of(render, dataset, Rules(minimum_size=minimum)) is reason


def png(values: NDArray[Any], kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


def test_picture_files_of_8_bits_are_taken_as_they_are_and_of_16_by_percentiles() -> None:
    values = ramp(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(decode_image_file(png(values), SMALL), values)
    assert np.abs(decode_image_file(png(values, "JPEG"), SMALL).astype(int) - values).max() <= 4
    wide = decode_image_file(png(ramp(1000, 5000).astype(np.uint16)), SMALL)
    assert np.abs(wide - ramp(0, 255)).max() <= 6


@pytest.mark.parametrize("length", [8, 60, 200])
def test_picture_files_that_are_cut_off_are_unreadable(length: int) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH)).astype(np.uint8)
    for kind in ("PNG", "JPEG"):
        with warnings.catch_warnings(action="ignore"):
            assert reason_of(decode_image_file, png(noise, kind)[:length], SMALL) is Reason.UNREADABLE


def test_picture_files_of_too_many_pixels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.archive.pixels.MOST_PIXELS", HEIGHT * WIDTH - 1)
    assert reason_of(decode_image_file, png(ramp(0, 255).astype(np.uint8)), SMALL) is Reason.TOO_LARGE


def plan(aspect: str, *, borders: bool = False) -> DataSpec:
    return DataSpec(
        findings=("No Finding",), image_size=32, validation=0.1, test=0.1, aspect=aspect, remove_borders=borders
    )


@pytest.mark.parametrize(
    ("aspect", "columns", "left", "right"),
    [("pad", 32, 0, 255), ("stretch", 32, 0, 255), ("crop", 32, 32, 223), ("shortest", 32, 32, 223)],
)
def test_each_aspect_keeps_its_part_of_the_picture(aspect: str, columns: int, left: int, right: int) -> None:
    shown = fit(ramp(0, 255).astype(np.uint8), plan(aspect))
    assert shown.shape == (32, columns)
    assert abs(int(shown[16, 0]) - left) <= 8
    assert abs(int(shown[16, -1]) - right) <= 8
    padded = (shown[:4] == 0).all() and (shown[-4:] == 0).all()
    assert padded == (aspect == "pad")  # 60 rows of 80 become 24 of 32


def test_fine_stripes_become_grey_and_not_other_stripes() -> None:
    stripes = np.zeros((640, 640), np.uint8)
    stripes[:, ::2] = 255
    shown = fit(stripes, plan("stretch"))
    assert np.abs(shown.astype(int) - 127).max() <= 3


def test_black_borders_go_where_the_plan_says_so_and_only_then() -> None:
    values = np.zeros((100, 100), np.uint8)
    values[20:80, 10:90] = 200
    assert without_borders(values).shape == (60, 80)
    assert (fit(values, plan("stretch", borders=True)) == 200).all()
    assert fit(values, plan("stretch"))[0, 0] == 0


def test_a_picture_that_is_nearly_all_border_is_left_whole() -> None:
    values = np.zeros((100, 100), np.uint8)
    values[40:60, 40:60] = 200
    assert without_borders(values).shape == (100, 100)
    assert without_borders(np.zeros((10, 10), np.uint8)).shape == (10, 10)
