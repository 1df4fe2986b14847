"""Who is not let in, and what is not run, by real daemons against a real SuperLink; both sides say why."""

from __future__ import annotations

import http.client
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from client.bundles import Bundles
from client.membership import join
from client.site import read_site
from cxrbase_model.bundle import bundle_digest, pack_bundle, release_files
from cxrbase_model.plan import Plan
from server.authority import Authority
from server.control import control
from server.enrolment import kit_file, provision
from server.live import read_status
from server.store import RunStore
from sim.deployment import Daemon, Deployment
from sim.faults import fault_plan, make_sites
from sim.tiny import write_tiny_hospital

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plan() -> Plan:
    return fault_plan(1)


@pytest.fixture(scope="module")
def consortium(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An operator that waits for its quorum, and two enrolled hospitals of which one is connected."""
    folder = tmp_path_factory.mktemp("consortium")
    with Deployment(folder, plan, make_sites(folder / "sites", plan, ("riverside", "lindenhof"))) as deployment:
        deployment.operator.start()
        deployment.wait_until(lambda: "listens at" in deployment.operator.tail(), "the server has not started")
        deployment.hospitals["riverside"].daemon.start()
        wait_for(deployment, "riverside", "connected")
        yield deployment


def wait_for(deployment: Deployment, name: str, state: str) -> None:
    """Wait for a state of a hospital's daemon."""
    hospital = deployment.hospitals[name]
    deployment.wait_until(lambda: hospital.status().get("state") == state, f"{name} is not {state}")


def stranger(deployment: Deployment, plan: Plan, folder: Path, change: dict[str, object]) -> Daemon:
    """The daemon of a hospital that has joined with a changed kit and was not enrolled."""
    site_file = write_tiny_hospital(folder / "stranger", "lindenhof", plan.data)
    kit = yaml.safe_load(kit_file(deployment.consortium, "lindenhof").read_text(encoding="utf-8"))
    (folder / "kit.yaml").write_text(yaml.safe_dump(kit | change), encoding="utf-8")
    join(read_site(site_file), folder / "kit.yaml")
    daemon = Daemon(["cxrbase-client", "start", str(site_file)], folder / "stranger.log")
    daemon.start()
    return daemon


def says(deployment: Deployment, daemon: Daemon, *words: str) -> None:
    try:
        deployment.wait_until(
            lambda: all(word in daemon.tail() for word in words), f"expected {words}, found {daemon.tail()}", 60
        )
    finally:
        daemon.stop()


def test_a_key_that_is_not_enrolled(consortium: Deployment, plan: Plan, tmp_path: Path) -> None:
    says(consortium, stranger(consortium, plan, tmp_path, {}), "key", "enrol")


def test_a_server_of_another_authority(consortium: Deployment, plan: Plan, tmp_path: Path) -> None:
    impostor = replace(consortium.consortium, home=tmp_path / "impostor")
    provision(impostor)
    other = Authority(impostor.home).certificate_file.read_text(encoding="ascii")
    says(consortium, stranger(consortium, plan, tmp_path, {"authority": other}), "certificate", "authority")


def test_a_revoked_key_while_the_run_goes_on_and_its_return_with_a_new_one(consortium: Deployment) -> None:
    hospital = consortium.hospitals["lindenhof"]
    hospital.daemon.start()
    wait_for(consortium, "lindenhof", "connected")
    assert operator(consortium, "revoke", "lindenhof").returncode == 0
    wait_for(consortium, "lindenhof", "refused")
    consortium.wait_until(lambda: "key" in str(hospital.status().get("problem")), "the hospital does not say why")
    hospital.daemon.stop()

    old = hospital.private / "consortium" / "lindenhof.pub"
    refused = operator(consortium, "enrol", "lindenhof", str(old))
    assert refused.returncode == 2
    assert "join --replace" in refused.stderr

    member = join(read_site(hospital.site_file), consortium.folder / "lindenhof.kit.yaml", replace=True)
    assert operator(consortium, "enrol", "lindenhof", str(member.public_key)).returncode == 0
    hospital.daemon.start()
    wait_for(consortium, "lindenhof", "connected")
    hospital.daemon.stop()


def test_an_expired_certificate_and_its_renewal_without_a_restart(consortium: Deployment) -> None:
    authority, hospital = Authority(consortium.consortium.home), consortium.hospitals["riverside"]
    served = consortium.operator.processes("server.superlink")[0].pid
    try:
        authority.issue(consortium.consortium.certified, 0)
        consortium.wait_until(lambda: not trusted(consortium), "the expired certificate is not served")
        hospital.line.cut()  # connections that are open already are not looked at again
        hospital.line.mend()
        consortium.wait_until(lambda: "expired" in hospital.daemon.tail(), "the hospital does not say so")
    finally:
        renewed = operator(consortium, "provision", "--renew")
    assert renewed.returncode == 0
    consortium.wait_until(lambda: trusted(consortium), "the renewed certificate is not served")
    wait_for(consortium, "riverside", "connected")
    assert consortium.operator.processes("server.superlink")[0].pid == served


def test_code_that_a_hospital_did_not_install_or_approve(consortium: Deployment, plan: Plan, tmp_path: Path) -> None:
    mark, hospital = tmp_path / "imported", consortium.hospitals["riverside"]
    files = release_files()
    for name in ("client/__init__.py", "client/app.py"):
        files[name] = f"open({str(mark)!r}, 'w').close()\n".encode() + files[name].replace(b"from __future__", b"#")
    changed = pack_bundle(files)
    run = tmp_path / "run"
    RunStore.create(run, plan)
    with control(consortium.consortium) as link:
        link.start(changed, {"run-directory": str(run), "expected-hospitals": 1})
    consortium.wait_until(lambda: "BUNDLE" in (read_status(run) or {}).get("detail", ""), "the operator is not told")
    assert not mark.exists()
    private = read_site(hospital.site_file).private
    assert bundle_digest(changed) in Bundles(private).digests("asked")


def test_what_is_the_operators_does_not_exist_for_others(consortium: Deployment) -> None:
    """A request that came over a proxy is nobody's of this machine, although its last step is loopback."""
    context = ssl.create_default_context(cafile=str(Authority(consortium.consortium.home).certificate_file))
    for path in (
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
    ):
        link = http.client.HTTPSConnection("localhost", consortium.consortium.port, context=context, timeout=10)
        link.request("POST", path, b"", {"X-Forwarded-For": "192.0.2.7"})
        assert link.getresponse().status == 404
        link.close()


def operator(deployment: Deployment, command: str, *more: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("cxrbase-server"))
    asked = [program, command, str(deployment.file), *more]
    return subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)


def trusted(deployment: Deployment) -> bool:
    """Whether the server's certificate is accepted now."""
    context = ssl.create_default_context(cafile=str(Authority(deployment.consortium.home).certificate_file))
    link = http.client.HTTPSConnection("localhost", deployment.consortium.port, context=context, timeout=10)
    try:
        link.connect()
    except ssl.SSLCertVerificationError:
        time.sleep(0.2)
        return False
    finally:
        link.close()
    return True
