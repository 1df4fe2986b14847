"""The items of the preflight about the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.approval import Approvals
from client.archive.settings import DicomArchive
from client.bundles import Bundles
from client.cli import main
from client.preflight import Item
from client.server_check import server_items
from client.site import Policy, Site
from cxrbase_model.bundle import bundle_digest, release_bundle
from cxrbase_model.plan import Plan
from tests.client.serving import Authority, hello, joined, serving


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def look(site: Site, authority: Authority) -> Callable[..., dict[str, Item]]:
    """The items where the server answers this: `look(plan=..., days=..., site=...)`."""

    def items(days: float = 90, site: Site = site, **changes: Any) -> dict[str, Item]:
        with serving(authority.issue(end=days), hello(**changes)) as port:
            joined(site.private, authority.pem, port)
            return {item.name: item for item in server_items(site)}

    return items


def test_everything_is_right(look: Callable[..., dict[str, Item]]) -> None:
    items = look(bundle=bundle_digest(release_bundle()), plan="a" * 64)
    assert list(items) == [
        "membership",
        "server",
        "certificate",
        "clock",
        "key",
        "release of the server",
        "bundle",
        "plan of the server",
    ]
    assert [item for item in items.values() if not item.passed] == []
    assert items["bundle"].text.endswith("the installed release's")


@pytest.mark.parametrize(
    ("name", "changes", "text", "remedy"),
    [
        ("certificate", {"days": 20}, "ends in 20 days", "renew"),
        ("clock", {"time": 1.0}, "ahead of the server's", "NTP"),
        ("key", {"hospital": None}, "does not know this hospital's key", "to be enrolled"),
        ("release of the server", {"protocol": 99}, "protocol 99", "update the older release"),
        ("release of the server", {"release": "99.0"}, "release 99.0", "install release 99.0"),
        ("bundle", {"bundle": "b" * 64}, "not the installed code, and not approved", "cxrbase-client approve"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(
    look: Callable[..., dict[str, Item]], name: str, changes: dict[str, Any], text: str, remedy: str
) -> None:
    items = look(**changes)
    assert [item.name for item in items.values() if not item.passed] == [name]
    assert text in items[name].text
    assert remedy in items[name].remedy


def test_code_that_was_approved_passes(site: Site, look: Callable[..., dict[str, Item]]) -> None:
    Bundles(site.private).approve(b"other code")
    assert look(bundle=bundle_digest(b"other code"))["bundle"].passed


def test_a_plan_that_has_to_be_approved_is_told(site: Site, plan: Plan, look: Callable[..., dict[str, Item]]) -> None:
    asking, name = replace(site, policy=Policy(plans="ask")), "plan of the server"
    assert "was not asked for here yet" in look(site=asking, plan=plan.digest)[name].text
    Approvals(site.private).ask(plan)
    item = look(site=asking, plan=plan.digest)[name]
    assert (item.passed, item.text) == (False, f"{plan.digest[:12]}, asked")
    Approvals(site.private).approve(plan)
    assert look(site=asking, plan=plan.digest)[name].passed
    listing = replace(site, policy=Policy(plans="list", digests=("c" * 64,)))
    assert not look(site=listing, plan=plan.digest)[name].passed
    assert look(site=listing, plan="c" * 64)[name].passed


def test_a_hospital_that_has_not_joined_is_told_how(site: Site) -> None:
    (item,) = server_items(site)
    assert (item.name, item.passed) == ("membership", False)
    assert "cxrbase-client join" in item.remedy


def test_a_server_that_is_away_ends_the_questions(site: Site, authority: Authority) -> None:
    joined(site.private, authority.pem, 9)
    items = {item.name: item for item in server_items(site)}
    assert list(items) == ["membership", "server"]
    assert "refuses the connection" in items["server"].text


def test_the_command_looks_at_the_server_too(
    site: Site, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(site.archive, DicomArchive)
    site.archive.path.mkdir()
    with serving(authority.issue(), hello()) as port:
        joined(site.private, authority.pem, port)
        for path in (site.private, *site.private.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)
        assert main(["check", str(site.private.parent / "SITE.yaml")]) == 0
    told = capsys.readouterr().out
    assert "ok    server: localhost port" in told
    assert "riverside: ready." in told
