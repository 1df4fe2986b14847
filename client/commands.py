"""The sub-commands about training: which plans may run here, and a rehearsal of one; what they print is for the hospital's own eyes."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.approval import Approvals
from client.membership import join
from client.peers import add_peer, fingerprint, known_peers
from client.site import Site, read_site
from cxrbase_model.messages import MEANING, Reply
from cxrbase_model.plan import EvaluateStage, Plan, Stage, read_plan, timeline
from cxrbase_model.settings import SettingsError

if TYPE_CHECKING:
    from client.rehearsal import Rehearsed

console = Console(highlight=False, soft_wrap=True)


def add_join(commands: Any) -> None:
    """`join KIT.yaml SITE.yaml`."""
    parser = commands.add_parser(
        "join",
        help="join a consortium with the kit it has given: make the own key, of which only the public half leaves",
        description="Make this hospital's key and keep it with the consortium's certificate in the private folder. Doing it again "
        "changes nothing.",
    )
    parser.add_argument("kit", type=Path, metavar="KIT.yaml", help="the kit from the operator")
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the hospital's settings")
    parser.add_argument("--replace", action="store_true", help="make a new key, or trust a new authority")
    parser.set_defaults(run=_join)


def add_peers(commands: Any) -> None:
    """`peers SITE.yaml [FILE.pub ...]`."""
    parser = commands.add_parser(
        "peers",
        help="take in other hospitals' public keys, so that no server can pass off others as theirs in secure aggregation",
        description="Take in the public keys that other hospitals' join has made and handed over without the operator, and show the "
        "fingerprints of all. Once there is one, a secured round goes on with hospitals alone whose keys are here.",
    )
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the hospital's settings")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE.pub", help="public keys of other hospitals")
    parser.add_argument("--replace", action="store_true", help="take a new key of a hospital that has another one here")
    parser.set_defaults(run=_peers)


def add_check(commands: Any) -> None:
    """`check SITE.yaml [--plan PLAN.yaml]`."""
    parser = commands.add_parser(
        "check",
        help="see whether this machine is ready for a training, and what to do where it is not",
        description="Look at settings, rights, archive, cache, labels, disk and device, at the way to the server and what it says and, "
        "with a plan, at whether it fits the cache and the policy. Nothing is changed.",
    )
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the hospital's settings")
    parser.add_argument("--plan", type=Path, metavar="PLAN.yaml", help="the training plan")
    parser.set_defaults(run=_check)


def add_plans(commands: Any) -> None:
    """`plans SITE.yaml [--approve PLAN | --revoke PLAN]`."""
    parser = commands.add_parser(
        "plans",
        help="see which training plans were asked for, approve them or take that back",
        description="With policy.plans: ask, the default, a plan runs here once it was approved. A plan is named by its digest, "
        "of which the first eight characters do, or by its file.",
    )
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the hospital's settings")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--approve", metavar="PLAN", help="let this plan run: a digest that was asked for, or a file")
    choice.add_argument("--revoke", metavar="PLAN", help="let this plan not run any more")
    parser.set_defaults(run=_plans)


def add_rehearse(commands: Any) -> None:
    """`rehearse SITE.yaml [--plan PLAN]`."""
    parser = commands.add_parser(
        "rehearse",
        help="run one round of a plan on the own cache and device, with nothing sent",
        description="Run the first round of each stage on the own cache and device and show the time, the memory and everything that "
        "would leave. Nothing is sent and nothing is kept.",
    )
    parser.add_argument("site", type=Path, metavar="SITE.yaml", help="the hospital's settings")
    parser.add_argument(
        "--plan", metavar="PLAN", help="a plan's file, or its digest; the only one that was asked for if not given"
    )
    parser.set_defaults(run=_rehearse)


def _join(arguments: argparse.Namespace) -> int:
    site = read_site(arguments.site)
    member = join(site, arguments.kit, replace=arguments.replace)
    console.print(f"{site.site} can join {member.kit.consortium} at {member.kit.address} port {member.kit.port}.")
    console.print("1. Compare the authority's fingerprint with the operator's, by telephone:")
    console.print(f"   {member.fingerprint}")
    console.print(f"2. Send the operator this file: {member.public_key}")
    console.print(f"The key itself stays in {member.key}; it leaves this machine in no case.")
    return 0


def _peers(arguments: argparse.Namespace) -> int:
    site = read_site(arguments.site)
    for file in arguments.files:
        add_peer(site, file, replace=arguments.replace)
    known = known_peers(site)
    for name, key in known.items():
        console.print(f"{name}: {fingerprint(key)}")
    if known:
        console.print("Compare each fingerprint with that hospital, by telephone.")
    else:
        console.print(f"{site.site} knows no other hospital's key, and believes those that the server sends.")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from client.preflight import preflight  # imported here: torch takes a second that other commands need not wait
    from client.server_check import server_items

    site = read_site(arguments.site)
    plan = read_plan(arguments.plan) if arguments.plan else None
    passed = True
    for item in itertools.chain(preflight(site, plan), server_items(site)):
        passed = passed and item.passed
        mark = "[green]ok[/green]   " if item.passed else "[red]WRONG[/red]"
        console.print(f"{mark} {item.name}: {escape(item.text)}")
        if not item.passed:
            console.print(f"      {escape(item.remedy)}")
    console.print(f"{site.site}: ready." if passed else f"{site.site}: not ready; see what is WRONG above.")
    return 0 if passed else 1


def _plans(arguments: argparse.Namespace) -> int:
    site = read_site(arguments.site)
    approvals = Approvals(site.private)
    if arguments.approve:
        plan = _named(arguments.approve, approvals.plans("asked"))
        console.print(f"Privacy of plan {plan.name}: {_privacy(plan, site)}.", markup=False)
        approvals.approve(plan)
        console.print(f"{site.site}: plan {plan.name} ({plan.digest[:12]}) may run.")
    elif arguments.revoke:
        plan = _named(arguments.revoke, approvals.plans("approved"))
        approvals.revoke(plan)
        console.print(f"{site.site}: plan {plan.name} ({plan.digest[:12]}) may not run any more.")
    else:
        _list_plans(approvals, site)
    if site.policy.plans != "ask":
        console.print(f"[yellow]policy.plans is {site.policy.plans}, so approvals are not asked for.[/yellow]")
    return 0


def _named(name: str, known: list[Plan]) -> Plan:
    """The plan that a digest, its beginning or a file names."""
    if Path(name).is_file():
        return read_plan(Path(name))
    found = [plan for plan in known if len(name) >= 8 and plan.digest.startswith(name)]
    if len(found) != 1:
        digests = ", ".join(plan.digest[:12] for plan in known) or "none"
        raise SettingsError(f"PLAN: expected a plan file, or 8 or more characters of one of {digests}; found {name!r}")
    return found[0]


def _list_plans(approvals: Approvals, site: Site) -> None:
    costs = []
    table = Table("plan", "digest", "", "stages", box=None, padding=(0, 1))
    for kind, state in (("approved", "[green]approved[/green]"), ("asked", "[yellow]waits for approval[/yellow]")):
        for plan in approvals.plans(kind):
            table.add_row(plan.name, plan.digest[:12], state, "; ".join(_told(stage) for stage in plan.stages))
            costs.append(f"Privacy of {plan.name} ({plan.digest[:12]}): {_privacy(plan, site)}.")
    if table.row_count:
        console.print(table)
        console.print("\n".join(costs), markup=False)
    else:
        console.print("No plan was asked for or approved yet.")


def _privacy(plan: Plan, site: Site) -> str:
    """What a plan would cost this hospital, in words."""
    if plan.privacy is None:
        return "no guarantee"
    from client.budget import standing  # imported here: torch takes a second that other commands need not wait
    from client.dataset import Cache, CacheError
    from client.forecast import cost

    try:
        return cost(plan, site, Cache.open(site.cache_folder), standing(site))[1]
    except CacheError:
        return f"a guarantee for each {plan.privacy.unit}; what it costs is known after the ingest"


def _told(stage: Stage) -> str:
    if isinstance(stage, EvaluateStage):
        return f"{stage.name}: evaluate on {stage.split}"
    return f"{stage.name}: {stage.kind}, {stage.rounds} rounds of {stage.local_epochs:g} epochs"


def _rehearse(arguments: argparse.Namespace) -> int:
    from client.rehearsal import (
        rehearse,
    )  # imported here: Flower and timm take seconds that other commands need not wait

    site = read_site(arguments.site)
    plan = _to_rehearse(arguments.plan, site)
    console.print(f"[bold]{site.site}[/bold] rehearses {plan.name} ({plan.digest[:12]}); nothing is sent.")
    if plan.aggregation.secure is not None:
        console.print("Secure aggregation: the update stays here, and leaves under masks once all keys are known.")
    passed, hours = True, 0.0
    rounds = {stage.name: sum(step.stage.name == stage.name for step in timeline(plan)) for stage in plan.stages}
    for done in rehearse(plan, site):
        passed = passed and done.code is None and not done.objection
        hours += done.seconds * rounds[done.stage.name] / 3600
        _print_rehearsed(done, rounds[done.stage.name])
    console.print(
        f"All {len(timeline(plan))} rounds take this machine about {_duration(hours * 3600)}, without the network."
    )
    return 0 if passed else 1


def _to_rehearse(name: str | None, site: Site) -> Plan:
    """The plan that was named, or the only one that the consortium has asked for; SettingsError where that is none or several."""
    approvals = Approvals(site.private)
    known = {plan.digest: plan for kind in ("approved", "asked") for plan in approvals.plans(kind)}
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    if name is None:
        raise SettingsError(f"--plan: is required where not one plan was asked for but {len(known) or 'none'}")
    return _named(name, list(known.values()))


def _print_rehearsed(done: Rehearsed, rounds: int) -> None:
    console.print(f"\n[bold]{done.stage.name}[/bold] ({done.stage.kind}), one of {rounds} rounds")
    if done.objection:
        console.print(f"  [red]would be refused[/red]: {done.objection}")
    if done.code is not None or done.reply is None:
        meaning = f": {MEANING[done.code]}" if done.code else ""
        console.print(f"  [red]cannot be done[/red]: {done.code}{meaning}")
        return
    memory = "" if done.memory is None else f", {done.memory / 1e9:.2f} GB at most"
    console.print(f"  {_duration(done.seconds)}{memory}")
    for name, value in leaves(done.reply).items():
        console.print(f"  leaves: {name} = {value}", markup=False)


def leaves(reply: Reply) -> dict[str, str]:
    """Every field of a reply that holds anything, as text; the update by its size."""
    fields = {name: value for name, value in vars(reply).items() if value not in (None, b"", "", 0, {})}
    return {
        name: f"{len(value)} bytes"
        if isinstance(value, bytes)
        else value
        if isinstance(value, str)
        else json.dumps(value, default=str)
        for name, value in fields.items()
    }


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
