"""What the privacy officer sees and decides about code that the server wants run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from client.bundles import FOLDER, Bundles, Verdict
from client.cli import main
from client.site import Site
from cxrbase_model.bundle import bundle_digest, pack_bundle, release_bundle, release_files

CHANGED = pack_bundle(
    release_files()
    | {"client/app.py": release_files()["client/app.py"] + b"print('sent')\n", "client/new.py": b"a = 1\nb = 2\n"}
)
DIGEST = bundle_digest(CHANGED)


def words(text: str) -> str:
    """A text without the width of its columns."""
    return " ".join(text.split())


def approve(site: Site, *arguments: str) -> int:
    return main(["approve", str(site.private.parent / "SITE.yaml"), *arguments])


def test_what_differs_is_shown_and_approved(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    Bundles(site.private).ask(CHANGED)
    assert approve(site) == 0
    assert f"{DIGEST[:12]} waits for approval" in words(capsys.readouterr().out)
    assert approve(site, DIGEST[:8], "--yes") == 0
    told = capsys.readouterr().out
    assert "changed client/app.py +1 -0" in words(told)
    assert "added client/new.py +2 -0" in words(told)
    assert "+++ bundle/client/app.py" in told
    assert "+print('sent')" in told
    assert f"2 files differ from the installed release; the bundle is {DIGEST}" in told
    assert Bundles(site.private).verdict(CHANGED) is Verdict.APPROVED
    assert Bundles(site.private).digests("asked") == []
    approve(site)
    assert f"{DIGEST[:12]} approved" in words(capsys.readouterr().out)
    assert approve(site, DIGEST[:8], "--revoke") == 0
    assert Bundles(site.private).verdict(CHANGED) is Verdict.UNKNOWN


def test_nothing_is_approved_without_a_terminal_or_a_yes(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bundle.zip"
    file.write_bytes(CHANGED)
    assert approve(site, str(file)) == 2
    assert "--yes: is needed" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answered, status in (("n", 1), ("", 1), ("y", 0)):
        monkeypatch.setattr("builtins.input", lambda _, answered=answered: answered)
        assert Bundles(site.private).verdict(CHANGED) is Verdict.UNKNOWN
        assert approve(site, str(file)) == status
    assert Bundles(site.private).verdict(CHANGED) is Verdict.APPROVED


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        (b"no zip", "expected a bundle"),
        (pack_bundle({"client/__pycache__/app.cpython-311.pyc": b"\0"}), "holds files that nobody can read"),
        (pack_bundle({"client/native.so": b"\0"}), "holds files that nobody can read"),
    ],
)
def test_what_cannot_be_read_cannot_be_approved(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], bundle: bytes, message: str
) -> None:
    (tmp_path / "bundle.zip").write_bytes(bundle)
    assert approve(site, str(tmp_path / "bundle.zip"), "--yes") == 2
    assert message in capsys.readouterr().err
    assert Bundles(site.private).digests("approved") == []


def test_the_installed_release_needs_no_approval(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle.zip").write_bytes(release_bundle())
    assert approve(site, str(tmp_path / "bundle.zip")) == 0
    assert "may run already" in capsys.readouterr().out


def test_characters_that_a_terminal_would_act_on_are_shown(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle.zip").write_bytes(
        pack_bundle(release_files() | {"client/new.py": "\x1b[2Ksafe\u202e".encode()})
    )
    approve(site, str(tmp_path / "bundle.zip"), "--yes")
    told = capsys.readouterr().out
    assert "+\\x1b[2Ksafe\\x202e" in told
    assert "\x1b[2K" not in told


@pytest.mark.parametrize("name", ["", "abc", "0" * 8, "nowhere.zip"])
def test_a_name_that_names_nothing_is_one_line(site: Site, capsys: pytest.CaptureFixture[str], name: str) -> None:
    Bundles(site.private).ask(CHANGED)
    assert approve(site, name or DIGEST[:7], "--yes") == 2
    assert "BUNDLE: expected a file, or 8 or more characters of one of" in capsys.readouterr().err


def test_a_server_cannot_fill_the_disk_with_bundles(site: Site) -> None:
    bundles = Bundles(site.private)
    for number in range(5):
        bundle = pack_bundle({"client/app.py": b"%d" % number})
        bundles.ask(bundle)
        os.utime(site.private / FOLDER / "asked" / f"{bundle_digest(bundle)}.zip", (number, number))
    bundles.ask(bytes((10 << 20) + 1))
    kept = sorted((site.private / FOLDER / "asked").iterdir())
    assert len(kept) == 3
    assert bundle_digest(pack_bundle({"client/app.py": b"4"})) in bundles.digests("asked")
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}
