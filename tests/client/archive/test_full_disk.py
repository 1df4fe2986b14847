"""A disk that is full, for which a process that may write no larger files stands."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from client.archive.cache import verify_cache
from client.dataset import Cache

REPOSITORY = Path(__file__).parents[3]
LARGEST = 260_000  # bytes: room for the manifest and three pictures of 256 x 256, not for six

Ingest = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_ingest(tmp_path: Path) -> Ingest:
    """Runs `cxrbase-client ingest` in a process of its own, which may write no file larger than `largest` bytes."""
    plan = yaml.safe_load((REPOSITORY / "configs" / "plans" / "demo.yaml").read_text(encoding="utf-8"))
    plan["data"]["image_size"] = 256
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    site = {"schema": 1, "site": "full", "archive": {"kind": "dicom", "path": "dicom"}, "compute": {"workers": 1}}
    (tmp_path / "SITE.yaml").write_text(yaml.safe_dump(site), encoding="utf-8")
    command = [
        "import sys; from client.cli import main; sys.exit(main())",
        "ingest", str(tmp_path / "SITE.yaml"), "--plan", str(tmp_path / "plan.yaml"),
    ]  # fmt: skip

    def run(largest: int = resource.RLIM_INFINITY) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", *command],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
        )

    return run


def test_a_full_disk_is_a_clear_stop_and_the_last_cache_stays_valid(
    tmp_path: Path, write_radiograph: Callable[..., Path], run_ingest: Ingest
) -> None:
    for number in range(3):
        write_radiograph(tmp_path / "dicom" / f"{number}.dcm", number)
    assert run_ingest(LARGEST).returncode == 0, "there is room for the first three"
    for number in range(3, 8):
        write_radiograph(tmp_path / "dicom" / f"{number}.dcm", number)

    stopped = run_ingest(LARGEST)
    cache = tmp_path / "private" / "cache"
    assert stopped.returncode == 1
    assert "the disk of the private folder is full; make room and run again" in " ".join(stopped.stderr.split())
    assert "Traceback" not in stopped.stderr
    assert verify_cache(cache).rows == len(Cache.open(cache)) == 3

    assert run_ingest().returncode == 0, "there is room again"
    assert verify_cache(cache).rows == len(Cache.open(cache)) == 8
