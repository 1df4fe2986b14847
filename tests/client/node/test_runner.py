"""Which code runs for a task: the installed release, an approved bundle, or nothing; and no text of an error leaves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.constant import TaskType

from client.bundles import FOLDER, Bundles
from client.node.flower import Exchange
from client.node.runner import serve
from client.node.tally import read_tally
from client.site import Site
from cxrbase_model.bundle import bundle_digest, pack_bundle, release_bundle, release_files
from cxrbase_model.messages import Code, Reply, Task, reply_from_message
from tests.client.conftest import PLANTED
from tests.client.node.conftest import SuperNode


@pytest.fixture
def node(supernode: SuperNode, site: Site) -> SuperNode:
    """A SuperNode of the site."""
    supernode.config["site"] = str(site.private.parent / "SITE.yaml")
    return supernode


@pytest.fixture
def own_modules() -> Iterator[None]:
    """Gives the installed modules their place back after an approved bundle has taken it."""
    packages = ("client", "cxrbase_model", "server")
    loaded, path = dict(sys.modules), list(sys.path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]
    sys.modules.update({name: module for name, module in loaded.items() if name.partition(".")[0] in packages})
    sys.path[:] = path


def run(node: SuperNode, site: Site, task: Task, bundle: bytes, kind: TaskType = TaskType.CLIENT_APP) -> bool:
    """What the runner does with a task, in this process."""
    exchange = Exchange(node.address, node.claim(node.offer(task, bundle, kind)))
    with exchange.alive():
        return serve(exchange, site.private, agent=kind is TaskType.AGENT_APP)


def answer(node: SuperNode) -> Reply:
    message, sent = node.wait_for_answer()
    assert PLANTED.encode() not in sent
    return reply_from_message(message)


def writes(path: Path) -> bytes:
    """Python that writes a file when it is imported."""
    return f"from pathlib import Path\nPath({str(path)!r}).write_text('ran')\n".encode()


def test_the_installed_code_runs_for_its_own_bundle_of_which_nothing_is_unpacked(
    node: SuperNode, site: Site, task_for: Callable[..., Task]
) -> None:
    assert run(node, site, task_for("mae"), release_bundle())
    reply = answer(node)
    assert (reply.site, reply.code, reply.steps) == ("riverside", None, 9)
    assert not (site.private / FOLDER).exists()
    assert (read_tally(site.private).tasks, read_tally(site.private).round) == (1, 1)


def changes(evil: Path) -> dict[str, dict[str, bytes]]:
    code = writes(evil)
    release = release_files()
    project = release["pyproject.toml"]
    return {
        "a module": {"client/app.py": code + release["client/app.py"]},
        "a package": {"cxrbase_model/__init__.py": code},
        "the component": {"pyproject.toml": project.replace(b"client.app:app", b"client.evil:app"), "client/evil.py": code},
        "the component alone": {"pyproject.toml": project.replace(b"client.app:app", b"client.node.runner:main")},
        "a module that Python loads first": {"sitecustomize.py": code, "usercustomize.py": code},
        "a module in the way": {"flwr.py": code, "torch.py": code, "json.py": code},
        "compiled code": {"client/__pycache__/app.cpython-311.pyc": b"\0" * 64},
        "one space": {"client/app.py": release["client/app.py"] + b" "},
    }  # fmt: skip


@pytest.mark.parametrize("name", changes(Path()))
def test_of_other_code_nothing_runs_and_the_server_gets_a_code(
    node: SuperNode, site: Site, task_for: Callable[..., Task], evil_file: Path,
    changed_bundle: Callable[..., bytes], name: str,
) -> None:  # fmt: skip
    bundle = changed_bundle(changes(evil_file)[name])
    assert run(node, site, task_for("mae"), bundle)
    reply = answer(node)
    assert (reply.site, reply.code, reply.round, reply.update) == ("riverside", Code.BUNDLE, 1, b"")
    assert not evil_file.exists()
    assert Bundles(site.private).digests("asked") == [bundle_digest(bundle)]
    kept = [path for path in (site.private / FOLDER).rglob("*") if path.is_file()]
    assert [path.suffix for path in kept] == [".zip"]
    assert read_tally(site.private).codes == {"BUNDLE": 1}


@pytest.mark.parametrize("bundle", [b"", b"no zip", pack_bundle({"../../evil.py": b"x"}), release_bundle() + b"\0"])
def test_what_is_no_bundle_is_refused_too(
    node: SuperNode, site: Site, task_for: Callable[..., Task], bundle: bytes
) -> None:
    assert run(node, site, task_for("mae"), bundle)
    assert answer(node).code is Code.BUNDLE


@pytest.mark.usefixtures("own_modules")
def test_an_approved_bundle_runs_from_the_private_folder(
    node: SuperNode, site: Site, task_for: Callable[..., Task], evil_file: Path, changed_bundle: Callable[..., bytes]
) -> None:
    release = release_files()["client/app.py"]
    bundle = changed_bundle({"client/app.py": release + writes(evil_file)})
    Bundles(site.private).approve(bundle)
    assert run(node, site, task_for("describe"), bundle)
    assert answer(node).code is None
    assert evil_file.read_text() == "ran"
    assert sys.modules["client.app"].__file__ == str(site.private / FOLDER / "running" / "client" / "app.py")
    other = changed_bundle({"client/app.py": release + writes(evil_file) + b"\n"})
    evil_file.unlink()
    assert run(node, site, task_for("describe"), other)
    assert answer(node).code is Code.BUNDLE
    assert not evil_file.exists()


def test_a_revoked_bundle_is_refused(
    node: SuperNode, site: Site, task_for: Callable[..., Task], changed_bundle: Callable[..., bytes]
) -> None:
    bundle = changed_bundle({"client/more.py": b""})
    Bundles(site.private).approve(bundle)
    Bundles(site.private).revoke(bundle_digest(bundle))
    run(node, site, task_for("describe"), bundle)
    assert answer(node).code is Code.BUNDLE


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(
    "code",
    [
        f"raise RuntimeError({PLANTED!r})",
        f"import sys\nsys.exit({PLANTED!r})",
        f"raise OSError(2, {PLANTED!r}, {PLANTED!r})",
        f"def app(message, context):\n    raise ValueError({PLANTED!r})",
        f"app = {PLANTED!r}",
        f"{PLANTED}",
    ],
)
def test_no_text_of_an_error_in_approved_code_leaves(
    node: SuperNode, site: Site, task_for: Callable[..., Task], changed_bundle: Callable[..., bytes], code: str
) -> None:
    bundle = changed_bundle({"client/app.py": code.encode()})
    Bundles(site.private).approve(bundle)
    assert run(node, site, task_for("mae"), bundle)
    assert_silent_failure(node)


def assert_silent_failure(node: SuperNode) -> None:
    message, sent = node.wait_for_answer()
    assert message.error.reason == "the hospital has no answer"
    assert PLANTED.encode() not in sent
    details = [task.status.details for task in node.state.get_tasks()]
    assert not any(PLANTED in text for text in details)


@pytest.mark.parametrize(
    "place", ["choose_app", "bundle_digest", "release_bundle", "refuse", "read_site", "Cache", "pretrain"]
)
def test_no_text_of_an_error_in_the_runner_or_the_installed_code_leaves(
    node: SuperNode, site: Site, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"{PLANTED} in {site.private}")

    targets = {
        "choose_app": "client.node.runner.choose_app",
        "bundle_digest": "client.bundles.bundle_digest",
        "release_bundle": "client.bundles.release_bundle",
        "refuse": "client.app.refusal",
        "read_site": "client.app.read_site",
        "Cache": "client.app.Cache.open",
        "pretrain": "client.local.pretrain",
    }
    monkeypatch.setattr(targets[place], fail)
    bundle = b"unknown" if place == "refuse" else release_bundle()
    assert run(node, site, task_for("mae"), bundle)
    message, sent = node.wait_for_answer()
    assert PLANTED.encode() not in sent
    if not message.has_error():
        assert reply_from_message(message).code is Code.FAILED


def break_site(site: Site) -> None:
    (site.private.parent / "SITE.yaml").write_text(f"schema: 1\nsite: {PLANTED}\n")


def lose_site(site: Site) -> None:
    (site.private.parent / "SITE.yaml").unlink()


def break_cache(site: Site) -> None:
    (site.cache_folder / "cache.json").write_text(f'{{"schema": "{PLANTED}"')


@pytest.mark.parametrize(
    ("damage", "code"),
    [(break_site, Code.SITE_INVALID), (lose_site, Code.SITE_INVALID), (break_cache, Code.CACHE_MISSING)],
)
def test_a_broken_hospital_answers_a_code(
    node: SuperNode, site: Site, task_for: Callable[..., Task], damage: Callable[[Site], None], code: Code
) -> None:
    damage(site)
    assert run(node, site, task_for("mae"), release_bundle())
    assert answer(node).code is code


def test_an_agentapp_is_refused_and_does_not_block_the_node(
    node: SuperNode, site: Site, task_for: Callable[..., Task]
) -> None:
    assert run(node, site, task_for("mae"), release_bundle(), TaskType.AGENT_APP)
    assert_silent_failure(node)


def test_a_bundle_that_cannot_be_kept_is_refused_all_the_same(
    node: SuperNode, site: Site, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(site.private))

    monkeypatch.setattr("client.bundles.write_private", full)
    assert run(node, site, task_for("mae"), b"unknown")
    assert answer(node).code is Code.BUNDLE


def test_a_token_that_is_not_known_fetches_nothing(node: SuperNode, site: Site) -> None:
    exchange = Exchange(node.address, "0" * 64)
    with exchange.alive():
        assert not serve(exchange, site.private)
    assert node.answers() == []
