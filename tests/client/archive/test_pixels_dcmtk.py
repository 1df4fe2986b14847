"""Pictures against an independent renderer, DCMTK's dcm2pnm and dcmj2pnm, on files of every kind that both can read.

Both map a stored value to one of 256 grey levels through several roundings, so one level of difference is allowed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from client.archive.pixels import render
from client.archive.select import Rules

HEIGHT, WIDTH = 64, 80
SMALL = Rules(minimum_size=1)
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def radiograph(bits: int, *, signed: bool = False) -> NDArray[Any]:
    """A smooth field with an edge and a bright spot that uses the whole range of its bits."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    field = 0.45 * (1 + np.sin(x / 13) * np.cos(y / 17)) + 0.1 * (x > 50) * (y > 30)
    field = (field - field.min()) / (field.max() - field.min())
    values: NDArray[np.int64] = np.rint(field * (2**bits - 1)).astype(np.int64)
    if signed:
        values -= 2 ** (bits - 1)
        return values.astype(np.int16)
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def dicom(values: NDArray[Any], bits: int, **elements: Any) -> Dataset:
    """A DX image of these values, explicit little endian."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    described = {
        "SOPClassUID": DX,
        "SOPInstanceUID": "1.2.3.4",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.1",
        "PatientName": "",
        "PatientID": "1",
        "StudyDate": "",
        "StudyTime": "",
        "Modality": "DX",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": values.shape[0],
        "Columns": values.shape[1],
        "BitsAllocated": values.dtype.itemsize * 8,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(values.dtype.kind == "i"),
        "PixelData": values.tobytes(),
    }
    for keyword, value in (described | elements).items():
        setattr(dataset, keyword, value)
    return dataset


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian package dcmtk)")
    return path


@pytest.fixture
def dcmtk(tmp_path: Path) -> Callable[..., NDArray[np.uint8]]:
    """What DCMTK shows of a data set or file: `dcmtk(source, "+Wi", "1")`; without options no window is applied."""

    def show(source: Dataset | Path, *options: str, program: str = "dcm2pnm") -> NDArray[np.uint8]:
        file, picture = tmp_path / "in.dcm", tmp_path / "out.pgm"
        if isinstance(source, Dataset):
            source.save_as(file, enforce_file_format=True)
            source = file
        done = subprocess.run(
            [tool(program), "--write-8-bit-pnm", *options, str(source), str(picture)],
            check=False,
            capture_output=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        with Image.open(picture) as image:
            return np.asarray(image.convert("L"))

    return show


def assert_same_picture(ours: NDArray[np.uint8], theirs: NDArray[np.uint8], levels: int = 1) -> None:
    assert ours.shape == theirs.shape
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert int(difference.max()) <= levels, (
        f"{int((difference > levels).sum())} pixels differ, the most by {difference.max()}"
    )
    assert ours.std() > 20, "a blank picture proves nothing"


@pytest.mark.parametrize(
    ("bits", "signed"), [(8, False), (10, False), (12, False), (16, False), (12, True), (16, True)]
)
def test_depths_and_signs(dcmtk: Callable[..., NDArray[np.uint8]], bits: int, signed: bool) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    window = {"WindowCenter": low + 2 ** (bits - 1), "WindowWidth": 2**bits}
    dataset = dicom(radiograph(bits, signed=signed), bits, **window)
    assert_same_picture(render(dataset, SMALL), dcmtk(dataset, "+Wi", "1"))


@pytest.mark.parametrize("signed", [False, True])
def test_eight_bits_in_sixteen_and_signed_bytes(dcmtk: Callable[..., NDArray[np.uint8]], signed: bool) -> None:
    values = radiograph(8, signed=signed)
    window = {"WindowCenter": 0 if signed else 128, "WindowWidth": 200}
    dataset = dicom(values, 8, **window)
    assert_same_picture(render(dataset, SMALL), dcmtk(dataset, "+Wi", "1"))
    if signed:
        dataset = dicom(values.astype(np.int8), 8, **window)
        assert_same_picture(render(dataset, SMALL), dcmtk(dataset, "+Wi", "1"))


def test_values_that_lie_above_other_bits(dcmtk: Callable[..., NDArray[np.uint8]]) -> None:
    values = (radiograph(10) << 4) | np.uint16(0xC00F)  # overlay bits around ten stored bits
    dataset = dicom(values, 10, HighBit=13, WindowCenter=512, WindowWidth=1024)
    assert_same_picture(render(dataset, SMALL), dcmtk(dataset, "+Wi", "1"))


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": 1500, "WindowWidth": 900},
        {"WindowCenter": 1500, "WindowWidth": 900, "PhotometricInterpretation": "MONOCHROME1"},
        {"WindowCenter": 2000, "WindowWidth": 1500, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": [1800, 900], "WindowWidth": [2400, 300]},
        {"WindowCenter": 500, "WindowWidth": 3000, "RescaleSlope": 1.5, "RescaleIntercept": -1000, "RescaleType": "US"},
    ],
    ids=["linear", "monochrome1", "sigmoid", "first-of-two", "rescaled"],
)
def test_windows(dcmtk: Callable[..., NDArray[np.uint8]], elements: dict[str, Any]) -> None:
    dataset = dicom(radiograph(12), 12, **elements)
    assert_same_picture(render(dataset, SMALL), dcmtk(dataset, "+Wi", "1"))


def test_an_exact_linear_window_is_the_standards_formula() -> None:
    elements = {"RescaleSlope": 1 / 4095, "RescaleIntercept": 0, "VOILUTFunction": "LINEAR_EXACT"}
    dataset = dicom(radiograph(12), 12, WindowCenter=0.6, WindowWidth=0.5, **elements)
    values = radiograph(12) / 4095
    expected = np.where(values <= 0.35, 0, np.where(values > 0.85, 1, (values - 0.6) / 0.5 + 0.5)) * 255  # C.11.2.1.3.2
    assert np.abs(render(dataset, SMALL) - expected).max() <= 0.51


def lut(values: NDArray[Any], first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    item.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    return item


def test_a_table_of_display_values(dcmtk: Callable[..., NDArray[np.uint8]]) -> None:
    curve = np.rint((np.arange(4096) / 4095) ** 0.6 * 4095)
    dataset = dicom(radiograph(12), 12, VOILUTSequence=[lut(curve, 0, 12)])
    assert_same_picture(render(dataset, SMALL), dcmtk(dataset, "+Wl", "1"))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_table_that_holds_part_of_the_values_and_of_the_levels(
    dcmtk: Callable[..., NDArray[np.uint8]], photometric: str
) -> None:
    curve = np.rint(np.linspace(400, 3000, 3000))  # of 4095, so neither black nor white is shown
    dataset = dicom(radiograph(12), 12, VOILUTSequence=[lut(curve, 500, 12)], PhotometricInterpretation=photometric)
    assert_same_picture(render(dataset, SMALL), dcmtk(dataset, "+Wl", "1"))


def test_a_table_of_bytes_below_zero(dcmtk: Callable[..., NDArray[np.uint8]]) -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [2000, -1000, 8])
    levels = np.rint((np.arange(2000) / 1999) ** 2 * 255).astype(np.uint8)
    item.add_new("LUTData", "OW", levels.tobytes())  # two entries in each word
    dataset = dicom(radiograph(12, signed=True), 12, VOILUTSequence=[item])
    assert_same_picture(render(dataset, SMALL), dcmtk(dataset, "+Wl", "1"))


@pytest.mark.parametrize("bits", [8, 12])
def test_tables_of_big_endian_files(bits: int, tmp_path: Path, dcmtk: Callable[..., NDArray[np.uint8]]) -> None:
    levels = np.rint((np.arange(4096) / 4095) ** 0.6 * (2**bits - 1))
    item = lut(levels, 0, bits)
    if bits == 8:
        item.LUTData = levels.astype(np.uint8).tobytes()
    dicom(radiograph(12), 12, VOILUTSequence=[item]).save_as(tmp_path / "plain.dcm", enforce_file_format=True)
    arguments = [tool("dcmconv"), "+tb", str(tmp_path / "plain.dcm"), str(tmp_path / "big.dcm")]
    assert subprocess.run(arguments, check=False, capture_output=True, timeout=30).returncode == 0
    dataset = pydicom.dcmread(tmp_path / "big.dcm")
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    assert_same_picture(render(dataset, SMALL), dcmtk(tmp_path / "big.dcm", "+Wl", "1"))


def test_a_table_of_modality_values(dcmtk: Callable[..., NDArray[np.uint8]]) -> None:
    item = lut(np.rint((np.arange(3000) / 2999) ** 2 * 65535), 500, 16)
    item.ModalityLUTType = "US"
    dataset = dicom(radiograph(12), 12, ModalityLUTSequence=[item], WindowCenter=30000, WindowWidth=50000)
    assert_same_picture(render(dataset, SMALL), dcmtk(dataset, "+Wi", "1"))


def test_an_inverse_presentation_shape_is_shown_the_other_way_round() -> None:
    elements = {"WindowCenter": 2048, "WindowWidth": 4096}
    plain = render(dicom(radiograph(12), 12, **elements), SMALL)
    inverse = render(dicom(radiograph(12), 12, PresentationLUTShape="INVERSE", **elements), SMALL)
    both = render(
        dicom(radiograph(12), 12, PresentationLUTShape="INVERSE", PhotometricInterpretation="MONOCHROME1", **elements),
        SMALL,
    )
    assert np.abs(255 - inverse.astype(int) - plain).max() <= 1
    np.testing.assert_array_equal(both, inverse)  # the two say the same thing, not the opposite of each other


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_an_inverse_presentation_shape_is_shown_as_dcmtk_shows_it(
    dcmtk: Callable[..., NDArray[np.uint8]], photometric: str
) -> None:
    elements = {"PhotometricInterpretation": photometric, "PresentationLUTShape": "INVERSE"}
    dataset = dicom(radiograph(12), 12, WindowCenter=1500, WindowWidth=2500, **elements)
    assert_same_picture(render(dataset, SMALL), dcmtk(dataset, "+Wi", "1"))


WINDOW = {8: {"WindowCenter": 128, "WindowWidth": 256}, 12: {"WindowCenter": 2048, "WindowWidth": 4096}}
ENCODERS = {  # program, its option, bits, levels by which two decoders may differ
    "implicit": ("dcmconv", "+ti", 12, 1),
    "explicit-little": ("dcmconv", "+te", 12, 1),
    "explicit-big": ("dcmconv", "+tb", 12, 1),
    "deflated": ("dcmconv", "+td", 12, 1),
    "rle": ("dcmcrle", None, 12, 1),
    "jpeg-baseline": ("dcmcjpeg", "+eb", 8, 3),  # decoders may round the inverse transform either way, PS3.5 8.2.1
    "jpeg-extended-12-bit": ("dcmcjpeg", "+ee", 12, 1),
    "jpeg-lossless": ("dcmcjpeg", "+el", 12, 1),
    "jpeg-lossless-first-order": ("dcmcjpeg", "+e1", 12, 1),
    "jpeg-ls": ("dcmcjpls", "+el", 12, 1),
    "jpeg-ls-near-lossless": ("dcmcjpls", "+en", 12, 1),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_transfer_syntaxes_that_dcmtk_writes(
    kind: str, dcmtk: Callable[..., NDArray[np.uint8]], tmp_path: Path
) -> None:
    program, option, bits, levels = ENCODERS[kind]
    dicom(radiograph(bits), bits, **WINDOW[bits]).save_as(tmp_path / "plain.dcm", enforce_file_format=True)
    encoded = tmp_path / "encoded.dcm"
    arguments = [tool(program), *([option] if option else []), str(tmp_path / "plain.dcm"), str(encoded)]
    assert subprocess.run(arguments, check=False, capture_output=True, timeout=30).returncode == 0
    viewer = "dcml2pnm" if program == "dcmcjpls" else "dcmj2pnm"
    ours = render(pydicom.dcmread(encoded), SMALL)
    assert_same_picture(ours, dcmtk(encoded, "+Wi", "1", program=viewer), levels)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (
            "1.2.840.10008.1.2.4.90",
            lambda values: imagecodecs.jpeg2k_encode(values, codecformat="j2k", reversible=True, level=0),
        ),
        ("1.2.840.10008.1.2.4.201", lambda values: imagecodecs.htj2k_encode(values, reversible=True)),
    ],
    ids=["jpeg-2000", "htj2k"],
)
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False)])
def test_wavelets_come_back_to_the_bit(syntax: str, encode: Callable[..., bytes], bits: int, signed: bool) -> None:
    values = radiograph(bits, signed=signed)
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    plain = dicom(values, bits, **window)
    packed = dicom(values, bits, **window)
    packed.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    packed.PixelData = encapsulate([encode(values)])
    np.testing.assert_array_equal(render(packed, SMALL), render(plain, SMALL))


def test_a_big_endian_file_of_bytes(tmp_path: Path, dcmtk: Callable[..., NDArray[np.uint8]]) -> None:
    dicom(radiograph(8), 8, **WINDOW[8]).save_as(tmp_path / "plain.dcm", enforce_file_format=True)
    assert (
        subprocess.run(
            [tool("dcmconv"), "+tb", tmp_path / "plain.dcm", tmp_path / "big.dcm"], check=False, timeout=30
        ).returncode
        == 0
    )
    dataset = pydicom.dcmread(tmp_path / "big.dcm")
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    assert_same_picture(render(dataset, SMALL), dcmtk(tmp_path / "big.dcm", "+Wi", "1"))
