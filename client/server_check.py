"""What has to be right between the hospital's machine and the server before a training, an item each; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator

from client.approval import Approvals
from client.bundles import Bundles, Verdict
from client.connection import Probe, Problem, probe
from client.membership import Membership, membership
from client.preflight import Item
from client.site import Site
from cxrbase_model.hello import Hello
from cxrbase_model.settings import SettingsError

_SOON = 30.0  # days before its end that a certificate is warned about
_WAY = (
    Problem.DNS,
    Problem.UNREACHABLE,
    Problem.PLAINTEXT,
    Problem.AUTHORITY,
    Problem.EXPIRED,
    Problem.NAME,
    Problem.TLS,
)


def server_items(site: Site) -> Iterator[Item]:
    """Membership, the way to the server, and what the server says; what cannot be asked any more has no item."""
    try:
        member = membership(site)
    except SettingsError as error:
        yield Item(
            "membership", False, str(error), "run cxrbase-client join KIT.yaml SITE.yaml with the operator's kit"
        )
        return
    yield Item("membership", True, f"{member.kit.consortium}, as {member.kit.hospital}")
    found = probe(member)
    yield _server(found, member)
    if found.hello is not None:
        yield from _answered(found, found.hello, site)


def _server(found: Probe, member: Membership) -> Item:
    if wrong := found.found(*_WAY, Problem.HELLO) or (found.hello is None and found.fatal):
        return Item("server", False, wrong.text, wrong.remedy)
    return Item("server", True, f"{member.kit.address} port {member.kit.port}, DNS, TCP and TLS")


def _answered(found: Probe, hello: Hello, site: Site) -> Iterator[Item]:
    yield _certificate(found.certificate_days)
    yield _item(found, "clock", f"{abs(found.clock_ahead or 0.0):.1f} s from the server's", Problem.CLOCK)
    yield _item(found, "key", f"enrolled as {hello.hospital}", Problem.KEY)
    yield _item(found, "release of the server", f"{hello.release}, as here", Problem.PROTOCOL, Problem.RELEASE)
    yield _bundle(hello.bundle, site)
    yield _plan(hello.plan, site)


def _item(found: Probe, name: str, text: str, *problems: Problem) -> Item:
    wrong = found.found(*problems)
    return Item(name, True, text) if wrong is None else Item(name, False, wrong.text, wrong.remedy)


def _certificate(days: float | None) -> Item:
    if days is None:
        return Item("certificate", True, "the server's is valid")
    text = f"the server's ends in {days:.0f} days"
    return Item("certificate", days >= _SOON, text, "ask the operator to renew it")


def _bundle(digest: str, site: Site) -> Item:
    if not digest:
        return Item("bundle", True, "the server has none yet")
    told = {Verdict.INSTALLED: "the installed release's", Verdict.APPROVED: "approved"}
    verdict = Bundles(site.private).verdict_of(digest)
    text = f"{digest[:12]}, {told.get(verdict, 'is not the installed code, and not approved')}"
    return Item(
        "bundle",
        verdict is not Verdict.UNKNOWN,
        text,
        "see cxrbase-client approve SITE.yaml, or install the server's release",
    )


def _plan(digest: str, site: Site) -> Item:
    name = "plan of the server"
    if not digest:
        return Item(name, True, "the server has none yet")
    if site.policy.plans == "any":
        return Item(name, True, f"{digest[:12]}; policy.plans is any")
    if site.policy.plans == "list":
        return Item(
            name,
            digest in site.policy.digests,
            f"{digest[:12]}",
            "policy.digests does not list it; add it if you agree with it",
        )
    state = Approvals(site.private).state(digest)
    text = f"{digest[:12]}, {state or 'was not asked for here yet; it will be with the first task'}"
    return Item(
        name, state == "approved", text, "run cxrbase-client plans SITE.yaml, and --approve it if you agree with it"
    )
