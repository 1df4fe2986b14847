"""A full disk on either side, a clock that is off by a day, one key in two daemons."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from client.site import read_site
from cxrbase_model.plan import Plan
from sim.deployment import Daemon, Deployment
from sim.faults import fault_plan, make_sites, same_model, undisturbed
from sim.tiny import write_tiny_hospital

pytestmark = pytest.mark.slow

Disk = Callable[[Path, int], Path]


@pytest.fixture
def plan() -> Plan:
    return fault_plan(3, local_epochs=1)


@pytest.fixture
def small_disk() -> Iterator[Disk]:
    """Mounts a disk of so many megabytes at a folder."""
    mounted: list[Path] = []

    def mount(folder: Path, megabytes: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        asked = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}M", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(asked, capture_output=True, check=False).returncode:
            pytest.skip("a small disk can be mounted by root only")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """Fill a folder's disk but for so many bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - left)))
    return ballast


def test_the_operators_full_disk_costs_time_and_no_round(tmp_path: Path, plan: Plan, small_disk: Disk) -> None:
    run = small_disk(tmp_path / "net" / "run", 64)
    with Deployment(tmp_path / "net", plan, make_sites(tmp_path / "sites", plan)) as deployment:
        deployment.start()
        deployment.wait_for_round(1)
        deployment.hospitals["riverside"].line.stall()  # the rounds may not end before the disk is full
        ballast = fill(run, 1 << 20)
        deployment.hospitals["riverside"].line.mend()
        deployment.wait_until(lambda: "have died" in deployment.operator.tail(), "the rounds go on without a disk")
        committed = deployment.committed()
        assert committed < 3
        ballast.unlink()
        assert deployment.finish() == 0, deployment.told()
        assert [record["round"] for record in deployment.records()] == [0, 1, 2, 3]
        assert same_model(run, undisturbed(tmp_path / "alone", plan).folder, plan)


def test_a_hospital_with_a_full_disk_rests_and_comes_back(tmp_path: Path, small_disk: Disk) -> None:
    plan, folder = fault_plan(8, local_epochs=1), tmp_path / "sites" / "riverside" / "private"
    plan = replace(plan, federation=replace(plan.federation, absence=10.0))  # who leaves is not waited for long
    small_disk(folder, 200)
    with Deployment(tmp_path / "net", plan, make_sites(tmp_path / "sites", plan)) as deployment:
        hospital = deployment.hospitals["riverside"]
        deployment.start()
        deployment.wait_for_round(1)
        ballast = fill(folder, 30 << 20)
        deployment.wait_until(lambda: hospital.status().get("state") == "paused-disk", "the daemon does not rest")
        assert "disk" in hospital.daemon.tail()
        deployment.wait_for_round(deployment.committed() + 1)
        ballast.unlink()
        deployment.wait_until(lambda: hospital.status().get("state") == "connected", "the daemon does not come back")
        assert deployment.finish() == 0, deployment.told()
        took_part = [any(e["site"] == "riverside" for e in record["hospitals"]) for record in deployment.records()]
        assert took_part[1]
        assert not all(took_part)
        assert took_part[-1]


def test_a_second_daemon_with_the_same_key_is_told_and_harms_nobody(tmp_path: Path, plan: Plan) -> None:
    with Deployment(tmp_path / "net", plan, make_sites(tmp_path / "sites", plan)) as deployment:
        deployment.start()
        deployment.wait_for_round(0)
        copy = write_tiny_hospital(tmp_path / "copy", "riverside", plan.data)
        original = deployment.hospitals["riverside"].private / "consortium"
        shutil.copytree(original, read_site(copy).private / "consortium")
        second = Daemon(["cxrbase-client", "start", str(copy)], tmp_path / "second.log")
        second.start()
        try:
            deployment.wait_until(lambda: "another daemon" in second.tail(), f"it does not say why: {second.tail()}")
            assert deployment.finish() == 0, deployment.told()
        finally:
            second.stop()
        assert same_model(deployment.run, undisturbed(tmp_path / "alone", plan).folder, plan)


def test_a_clock_that_is_off_by_a_day_is_named(tmp_path: Path, plan: Plan) -> None:
    if shutil.which("faketime") is None:
        pytest.skip("faketime is not installed")
    with Deployment(tmp_path / "net", plan, make_sites(tmp_path / "sites", plan)) as deployment:
        deployment.operator.start()
        deployment.wait_until(lambda: "listens at" in deployment.operator.tail(), "the server has not started")
        program = str(Path(sys.executable).with_name("cxrbase-client"))
        site_file = deployment.hospitals["riverside"].site_file
        late = Daemon(["/usr/bin/faketime", "-f", "-1d", program, "start", str(site_file)], tmp_path / "late.log")
        late.start()
        try:
            deployment.wait_until(lambda: "clock" in late.tail(), f"it does not say why: {late.tail()}")
        finally:
            late.stop()
