"""Mutated DICOM files: each is used or left out with a reason; none crashes, hangs, fills the memory or speaks of a patient."""

from __future__ import annotations

import os
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from client.archive.prepare import Job, Prepared, Settings, prepare
from client.archive.reasons import Reason
from client.archive.select import Rules
from client.archive.sources import Item
from client.archive.workers import Failed, Pool
from client.site import Limits
from cxrbase_model.plan import DataSpec

MIB = 1 << 20
GROWTH = 64 * MIB  # of a worker between its first hundred files and its last; caches of codecs and allocators
PLANTED = (b"Verylongname", b"Gwendoline", b"PAT-0", b"ACC0")
SYNTAXES = (b"1.2.840.10008.1.2\0\0", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.5")
COUNTS = [500, pytest.param(20_000, marks=pytest.mark.slow)]


def measured(job: Job) -> tuple[str, int, int]:
    """The outcome of a file, the worker's process, and the most memory that the worker has taken so far, in bytes."""
    done = prepare(job)
    outcome = (done.reason.value if done.reason else "used") if isinstance(done, Prepared) else "unread"

    return outcome, os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function is pickled by name; the workers find this file on their path."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(sys.modules, "test_fuzz", sys.modules[__name__])
    monkeypatch.setattr(measured, "__module__", "test_fuzz")


@pytest.fixture
def seeds(write_radiograph: Callable[..., Path], tmp_path: Path) -> list[bytes]:
    """Good files in the encodings whose readers take most on trust."""
    plain = write_radiograph(tmp_path / "seed.dcm", 1)
    pixels = pydicom.dcmread(plain).pixel_array
    frames = {
        JPEG2000Lossless: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0),
        JPEGLSLossless: imagecodecs.jpegls_encode(pixels),
        JPEGLosslessSV1: imagecodecs.ljpeg_encode(pixels, bitspersample=12),
    }
    files = [plain.read_bytes()]
    for syntax in (RLELossless, *frames):
        dataset = pydicom.dcmread(plain)
        if syntax == RLELossless:
            dataset.compress(RLELossless, generate_instance_uid=False)
        else:
            dataset.PixelData = encapsulate([bytes(frames[syntax])])
            dataset.file_meta.TransferSyntaxUID = syntax
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        files.append(buffer.getvalue())
    return files


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three of: flipped bytes, a cut, a piece left out or said twice, a number in the header, another transfer syntax."""
    changed = bytearray(data)
    header = max(200, data.rfind(b"\xe0\x7f\x10\x00"))
    for kind in rng.integers(0, 6, rng.integers(1, 4)):
        size = len(changed)
        if size < 64:
            break
        near = min(header, size) if rng.random() < 0.7 else size
        if kind == 0:
            for place in rng.integers(0, near, rng.integers(1, 32)):
                changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del changed[int(rng.integers(1, size)) :]
        elif kind == 2:
            start = int(rng.integers(0, near))
            del changed[start : start + int(rng.integers(1, 64))]
        elif kind == 3:
            start = int(rng.integers(0, near))
            changed[start:start] = changed[start : start + int(rng.integers(1, 64))]
        elif kind == 4:
            start = int(rng.integers(132, max(133, near - 4)))
            extreme = (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)[int(rng.integers(6))]
            changed[start : start + 4] = extreme.to_bytes(4, "little")
        else:
            changed = bytearray(
                bytes(changed).replace(b"1.2.840.10008.1.2.1\0", SYNTAXES[int(rng.integers(4))] + b"\0")
            )
    return bytes(changed)


def jobs(seeds: list[bytes], count: int, spec: DataSpec, folder: Path) -> Iterator[Job]:
    rng = np.random.default_rng(20)
    settings = Settings(spec, Rules(unknown_body_part=True), Limits(file=8))
    for number in range(count):
        path = folder / f"{number % 64}.dcm"  # overwritten when its turn comes again, long after it was read
        path.write_bytes(mutate(seeds[number % len(seeds)], rng))
        yield Job(Item(path.name, path.stat().st_size, number, path), settings)


def test_the_seeds_are_used(seeds: list[bytes], spec: DataSpec, tmp_path: Path) -> None:
    for number, data in enumerate(seeds):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(data)
        done = prepare(Job(Item(path.name, len(data), 1, path), Settings(spec, Rules(), Limits())))
        assert isinstance(done, Prepared)
        assert done.reason is None, "or nothing behind the header would be tried"


@pytest.mark.parametrize("count", COUNTS)
def test_no_mutated_file_does_harm(
    count: int, seeds: list[bytes], spec: DataSpec, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcomes: Counter[str] = Counter()
    memory: dict[int, list[int]] = {}
    with Pool(measured, count=2, seconds=20, memory=1024 * MIB) as pool:
        for _, result in pool.run(jobs(seeds, count, spec, tmp_path)):
            if isinstance(result, Failed):
                outcomes[result.reason.value] += 1
                continue
            outcome, worker, taken = result
            outcomes[outcome] += 1
            memory.setdefault(worker, []).append(taken)
    told = capfd.readouterr()
    assert not any(planted.decode() in told.out + told.err for planted in PLANTED)
    assert outcomes.total() == count
    harmful = {Reason.CRASHED, Reason.TIMEOUT, Reason.OUT_OF_MEMORY} & outcomes.keys()
    assert not harmful, outcomes
    assert outcomes["used"] > count / 50, "mutations that no file survives try the first check only"
    assert outcomes["UNREADABLE"] > count / 50
    assert len(memory) == 2, "no worker had to be replaced"
    assert max(taken[-1] - taken[min(100, len(taken) - 1)] for taken in memory.values()) < GROWTH
