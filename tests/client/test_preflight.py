"""Each item of the preflight passes where it should and fails where it should, with its remedy."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from client.approval import Approvals
from client.archive.pacs.settings import DimseArchive
from client.archive.settings import DicomArchive
from client.cli import main
from client.preflight import Item, preflight
from client.site import Compute, Policy, Site
from cxrbase_model.plan import Plan, plan_to_text


@pytest.fixture
def ready(site: Site) -> Site:
    """The site with an archive and with rights as the ingest leaves them."""
    assert isinstance(site.archive, DicomArchive)
    site.archive.path.mkdir()
    for path in (site.private, *site.private.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return site


def looked_at(site: Site, plan: Plan | None = None) -> dict[str, Item]:
    return {item.name: item for item in preflight(site, plan)}


def test_a_site_that_is_ready_passes(ready: Site, plan: Plan) -> None:
    items = looked_at(ready, plan)
    assert list(items) == [
        "release", "private folder", "archive", "disk", "device", "ledger", "budget", "cache", "labels", "delta", "plan", "policy",
        "privacy of the plan",
    ]  # fmt: skip
    assert [item for item in items.values() if not item.passed] == []
    assert items["cache"].text == "60 pictures of 30 patients, 36 of them for training"


def unmount(site: Site) -> None:
    assert isinstance(site.archive, DicomArchive)
    shutil.rmtree(site.archive.path)


def expose(site: Site) -> None:
    (site.cache_folder / "cache.json").chmod(0o644)


def lose_cache(site: Site) -> None:
    shutil.rmtree(site.cache_folder)


def lose_everything(site: Site) -> None:
    shutil.rmtree(site.private)


@pytest.mark.parametrize(
    ("damage", "name", "text", "remedy"),
    [
        (unmount, "archive", "not there", "is it mounted"),
        (expose, "private folder", "1 files or folders in .* can be read by others", "chmod -R go="),
        (lose_cache, "cache", "cache", "run cxrbase-client ingest"),
        (lose_everything, "private folder", "is not there", "ingest, which makes it"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(
    ready: Site, damage: Callable[[Site], None], name: str, text: str, remedy: str
) -> None:
    damage(ready)
    item = looked_at(ready)[name]
    assert not item.passed
    assert re.search(text, item.text)
    assert remedy in item.remedy


def test_a_full_disk_is_told(ready: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.preflight._LEAST_FREE", 1 << 62)
    assert not looked_at(ready)["disk"].passed


@pytest.mark.parametrize("device", ["cuda:77", "nonsense"])
def test_a_device_that_is_not_there_is_told(ready: Site, device: str) -> None:
    item = looked_at(replace(ready, compute=Compute(device=device)))["device"]
    assert not item.passed
    assert device in item.text


def test_a_pacs_that_does_not_answer_is_told(ready: Site) -> None:
    pacs = DimseArchive(host="localhost", port=9, remote_ae="PACS", timeout=1, tries=1, pause=0.01)
    item = looked_at(replace(ready, archive=pacs))["archive"]
    assert not item.passed
    assert "archive.port: no DICOM answer from localhost port 9" in item.text


def test_a_plan_is_compared_with_cache_policy_and_approvals(ready: Site, plan: Plan) -> None:
    other = replace(plan, data=replace(plan.data, image_size=32))
    assert not looked_at(ready, other)["plan"].passed
    strict = replace(ready, policy=Policy(plans="ask", stages=("finetune", "evaluate")))
    items = looked_at(strict, plan)
    assert items["policy"].text == "policy.stages does not allow pretrain"
    assert not items["policy"].passed
    assert not items["approval"].passed
    Approvals(ready.private).approve(plan)
    assert looked_at(strict, plan)["approval"].passed


def test_the_command_says_whether_the_machine_is_ready(
    ready: Site, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan.yaml").write_text(plan_to_text(plan), encoding="utf-8")
    arguments = ["check", str(ready.private.parent / "SITE.yaml"), "--plan", str(tmp_path / "plan.yaml")]
    monkeypatch.setattr("client.server_check.server_items", lambda site: iter(()))
    assert main(arguments) == 0
    assert "riverside: ready." in capsys.readouterr().out
    unmount(ready)
    assert main(arguments) == 1
    told = capsys.readouterr().out
    assert "WRONG archive: dicom, not there" in told
    assert "is it mounted, and is archive.path right?" in told
