"""A hospital's answers to the steps of secure aggregation, from what it holds since the training (client/secure.py).

    secure-shares    -> sealed shares of the own secrets          _share
    secure-masked    -> the masked update                         _masked
    secure-confirm   -> signature of the survivors                _confirm, where hospitals have keys to sign with
    secure-unmask    -> others' shares, for one set of survivors  _open

What does not fit what the hospital knows of the round is refused with SECURE, and why is written to its own log.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from client.held import Held, Session
from client.peers import known_peers, sign, verified
from client.policy import Refused
from client.release import secured
from client.site import Site
from cxrbase_model.messages import Code, Reply, Task
from cxrbase_model.plan import Plan
from cxrbase_model.protection import Secure
from cxrbase_model.secure.keys import SEAL, KeyProblem, add_mask, agreed, own_mask, pair_mask, seal, unseal
from cxrbase_model.secure.letters import (
    CONFIRM,
    MASKED,
    SHARE,
    SHARES,
    UNMASK,
    LetterError,
    Opened,
    Roster,
    Survivors,
    consent_to_bytes,
    context_of,
    least,
    needed,
    opened_to_bytes,
    parcels_from_bytes,
    parcels_to_bytes,
    roster_from_bytes,
    session_of,
    survivors_from_bytes,
)
from cxrbase_model.secure.ring import RingError, Vector, rings_of
from cxrbase_model.secure.shares import split

log = logging.getLogger("cxrbase.client")


def take_step(task: Task, site: Site, plan: Plan) -> Reply:
    """The answer to a step of secure aggregation; Refused with SECURE where the hospital may not give it."""
    held = Held(site, task)
    session = held.session()
    try:
        if session is None:
            raise LetterError("step: expected one of the round that was trained last")
        step = {SHARES: _share, MASKED: _masked, CONFIRM: _confirm, UNMASK: _open}[task.kind]
        letter = step(task, site, plan, held, session)
    except (LetterError, KeyProblem, RingError) as error:
        log.warning("round %d: %s: %s", task.round, task.kind, error)
        raise Refused(Code.SECURE) from None
    return secured(site.site, task, letter)


def _share(task: Task, site: Site, plan: Plan, held: Held, session: Session) -> bytes:
    """Shares of the seed and of the mask key for each other hospital of the roster, sealed; the keys are the roster's from here on."""
    letter = task.state.hex()
    if session.roster == letter:
        return bytes.fromhex(session.parcels)
    if session.roster:
        raise LetterError("roster: expected the one of before, since the keys are for it alone")
    roster = roster_from_bytes(task.state)
    secure = section(plan)
    if roster.get(site.site) != session.advert:
        raise LetterError("roster: expected this hospital's own keys in it")
    if not max(3, plan.federation.quorum) <= len(roster) <= secure.hospitals:
        raise LetterError(f"roster: expected federation.quorum to {secure.hospitals} hospitals, found {len(roster)}")
    bound_to = context(task)
    _check_signatures(roster, site, bound_to, task.round)
    name, count = session_of(bound_to, roster), len(roster)
    secrets = [bytes.fromhex(session.seed), bytes.fromhex(session.mask)]
    parts = [split(secret, needed(secure.threshold, count), count) for secret in secrets]
    parcels: dict[str, bytes] = {}
    shares = {site.site: ""}
    for place, other in enumerate(sorted(roster)):
        both = parts[0][place] + parts[1][place]
        if other == site.site:
            shares[other] = both.hex()
            continue
        key = agreed(bytes.fromhex(session.seal), roster[other].seal, name, SEAL, site.site, other)
        parcels[other] = seal(key, both, name)
    answer = parcels_to_bytes(parcels)
    held.keep(replace(session, roster=letter, parcels=answer.hex(), shares=shares))
    return answer


def _masked(task: Task, site: Site, plan: Plan, held: Held, session: Session) -> bytes:
    """The update under the own mask and those shared with each hospital whose parcel has come."""
    roster, name = _bound(task, session)
    parcels = parcels_from_bytes(task.state)
    members = {site.site, *parcels}
    if not members <= roster.keys() or site.site in parcels:
        raise LetterError("parcels: expected those of other hospitals of the roster")
    _check_size("parcels", len(members), len(roster), plan)
    if session.masked and set(session.masked) != members:
        raise LetterError("parcels: expected those of the same hospitals as before, since an update is masked once")
    shares = {site.site: session.shares[site.site]}
    for other, parcel in parcels.items():
        key = agreed(bytes.fromhex(session.seal), roster[other].seal, name, SEAL, other, site.site)
        shares[other] = unseal(key, parcel, name).hex()
        if len(shares[other]) != 4 * SHARE:
            raise LetterError("parcel: expected two shares in it")
    data = held.update(session)
    if data is None:
        raise LetterError("update: expected it as it was held, found it gone or damaged")
    held.keep(replace(session, masked=tuple(sorted(members)), shares=shares))
    _mask(rings_of(plan, task.clip).vector(data, session.count), session, site.site, roster, members, name)
    return bytes(data)


def _mask(vector: Vector, session: Session, own: str, roster: Roster, members: set[str], name: bytes) -> None:
    add_mask(vector.parts(), own_mask(bytes.fromhex(session.seed), name), 1)
    for other in members - {own}:
        key, sign_of_mask = pair_mask(bytes.fromhex(session.mask), roster[other].mask, name, own, other)
        add_mask(vector.parts(), key, sign_of_mask)


def _confirm(task: Task, site: Site, plan: Plan, held: Held, session: Session) -> bytes:
    """This hospital's signature of the survivors, which it gives once in a round."""
    survivors, _, name = _survivors(task, site, plan, held, session)
    return consent_to_bytes(sign(site, survivors.signed_text(name)))


def _open(task: Task, site: Site, plan: Plan, held: Held, session: Session) -> bytes:
    """Shares of the survivors' seeds, and of the mask keys of those whose masked update has not come: never both of one hospital.

    A hospital that knows the others' keys wants as many signatures of the same survivors as open a secret: so no server can tell
    hospitals of different survivors and take off the masks of fewer than it says.
    """
    survivors, roster, name = _survivors(task, site, plan, held, session)
    if peers := known_peers(site):
        text, given = survivors.signed_text(name), survivors.signatures
        agree = {each for each in survivors.names & given.keys() if verified(peers.get(each), given[each], text)}
        wanted = needed(section(plan).threshold, len(roster))
        if len(agree | {site.site}) < wanted:
            raise LetterError(
                f"survivors: expected signatures of at least {wanted} of them, found {len(agree)} others'"
            )
    dropped = set(session.masked) - survivors.names
    shares = {other: bytes.fromhex(both) for other, both in session.shares.items()}
    seeds = {other: shares[other][:SHARE] for other in survivors.names}
    return opened_to_bytes(Opened(seeds, {other: shares[other][SHARE:] for other in dropped}))


def _survivors(task: Task, site: Site, plan: Plan, held: Held, session: Session) -> tuple[Survivors, Roster, bytes]:
    """The survivors that a step names, whom the round is bound to from here on; with the roster and the session's name."""
    roster, name = _bound(task, session)
    survivors = survivors_from_bytes(task.state)
    if site.site not in survivors.names or not survivors.names <= set(session.masked):
        raise LetterError("survivors: expected hospitals that masks were made with, this one among them")
    _check_size("survivors", len(survivors.names), len(roster), plan)
    if not held.may_open(context(task), survivors.names):
        raise LetterError("survivors: expected those that this round was unmasked for before")
    return survivors, roster, name


def _check_size(what: str, found: int, members: int, plan: Plan) -> None:
    fewest = least(section(plan).threshold, members, plan.federation.quorum)
    if found < fewest:
        raise LetterError(f"{what}: expected at least {fewest} of {members} hospitals, found {found}")


def _bound(task: Task, session: Session) -> tuple[Roster, bytes]:
    """The roster that a session's keys are for, and the session's name."""
    if not session.roster:
        raise LetterError("step: expected secure-shares before it")
    roster = roster_from_bytes(bytes.fromhex(session.roster))
    return roster, session_of(context(task), roster)


def _check_signatures(roster: Roster, site: Site, bound_to: bytes, number: int) -> None:
    peers = known_peers(site)
    if not peers:
        log.info("round %d: the keys of other hospitals are believed as the server sends them", number)
        return
    for name, advert in roster.items():
        if name != site.site and not verified(peers.get(name), advert.signature, advert.signed_text(name, bound_to)):
            raise LetterError(
                f"roster: expected keys that {name} has signed; take its public key in with cxrbase-client peers"
            )


def context(task: Task) -> bytes:
    """What the keys and signatures of a round are bound to."""
    return context_of(task.plan_digest, task.stage, task.round)


def section(plan: Plan) -> Secure:
    """The plan's section; Refused where it has none and a step of it is asked for."""
    if plan.aggregation.secure is None:
        raise Refused(Code.SECURE)
    return plan.aggregation.secure
