"""Hospital-level privacy over whole runs of hospitals that add a constant, and of the sum alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrbase_model.codec import encode
from cxrbase_model.messages import Reply, Task
from cxrbase_model.normals import NoiseSource
from cxrbase_model.plan import Plan
from cxrbase_model.protection import Adaptive, HospitalPrivacy
from cxrbase_model.settings import read, to_mapping
from cxrbase_model.state import State, norm, subtract
from cxrbase_model.transport import EXACT
from server.aggregate import WeightedMean
from server.exchange import Exchange
from server.live import Live
from server.promise import promise
from server.protection import Protection, next_clip
from server.report import content, summary_text
from server.rounds import RoundLoop
from server.rules.noised import Noised
from server.spent import Spent, Sum, epsilon
from server.store import RunStore
from sim.grid import LocalGrid, Node
from tests.server.hospitals import Change, hospital, short_plan, start_of

NAMES = frozenset({"w", "v"})
STATE = {"w": torch.zeros(2000, 50), "v": torch.zeros(7), "frozen": torch.zeros(5)}


def noised(
    folder: Path, updates: dict[str, State], privacy: HospitalPrivacy, asked: int, seed: int | None = 1
) -> State:
    """The result of one round over STATE that asked so many hospitals, of which some answered."""
    made = Sum(1, 1, privacy.noise_multiplier, tuple(f"h{number}" for number in range(asked)))
    protection = Protection(privacy, 2, NAMES, privacy.clip, made, Spent(folder), NoiseSource(seed))
    with WeightedMean({name: STATE[name] for name in sorted(NAMES)}, folder / "sums") as mean:
        gathered = Noised(mean, STATE, protection)
        for site, update in updates.items():
            assert gathered.fits(update, 1)
            gathered.fold(site, update, 1)
        return gathered.result()


def drawn(seed: int, scale: float) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=draw) * scale for name, tensor in STATE.items()}


@pytest.mark.parametrize("clip", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("scale", [1e-9, 1e-3, 10.0, 1e20])
def test_one_hospital_moves_the_noised_sum_by_at_most_the_clip(tmp_path: Path, clip: float, scale: float) -> None:
    """The same noise in both runs, so that the difference is the hospital's alone; what it sends is not clipped before."""
    privacy = HospitalPrivacy(clip=clip, noise_multiplier=0.5)
    others = {"a": drawn(1, 1.0), "b": drawn(2, 1e-5)}
    without = noised(tmp_path, others, privacy, 3)
    moved = subtract(noised(tmp_path, others | {"c": drawn(3, scale)}, privacy, 3), without)
    rounding = norm(without) * 2e-7  # the results are float32; the sums that the promise is about are exact
    assert norm(moved) * 3 <= clip + 3 * rounding
    assert norm(moved) * 3 == pytest.approx(
        min(clip, norm({n: drawn(3, scale)[n] for n in NAMES})), abs=1e-4 * clip + 3 * rounding
    )
    assert norm({"frozen": without["frozen"]}) == 0.0


def test_the_noise_has_the_standard_deviation_that_was_promised(tmp_path: Path) -> None:
    privacy = HospitalPrivacy(clip=0.3, noise_multiplier=1.7)
    result = noised(tmp_path, {}, privacy, 4, seed=None)["w"].double()  # 100,000 numbers
    expected = 0.3 * 1.7 / 4
    assert float(result.std()) == pytest.approx(expected, rel=0.015)  # six standard errors
    assert abs(float(result.mean())) < 6 * expected / math.sqrt(result.numel())
    assert float((result.abs() < expected).double().mean()) == pytest.approx(0.6827, abs=0.01)


def test_a_sum_that_was_learned_under_masks_gets_the_same_noise(tmp_path: Path) -> None:
    privacy, update = HospitalPrivacy(clip=100.0, noise_multiplier=0.01), drawn(1, 0.1)
    made = Sum(1, 1, 0.01, ("a", "b", "c"))
    protection = Protection(privacy, 2, NAMES, 100.0, made, Spent(tmp_path), NoiseSource(1))
    total = {name: update[name] * 2 for name in update}
    with pytest.raises(RuntimeError, match="without its noise"):
        protection.told()
    released = protection.released({name: total[name] for name in sorted(total)})
    assert protection.told()["epsilon"] == epsilon([0.01], 1e-5)
    alone = subtract(released, {name: total[name] / 3 for name in total})
    assert float(alone["w"].std()) == pytest.approx(1.0 / 3, rel=0.015)
    assert released["frozen"].tolist() == [0.0] * 5


def test_an_adaptive_clip_raises_the_updates_noise_for_the_counts(tmp_path: Path) -> None:
    privacy = HospitalPrivacy(noise_multiplier=1.0, adaptive=Adaptive(count_noise=1.0))
    result = noised(tmp_path, {}, privacy, 1, seed=None)["w"]
    assert float(result.std()) == pytest.approx(1 / math.sqrt(1 - 0.25), rel=0.015)


def test_silent_hospitals_do_not_change_the_divisor(tmp_path: Path) -> None:
    privacy = HospitalPrivacy(clip=10.0, noise_multiplier=0.0)
    update = {"w": torch.full((2000, 50), 0.01), "v": torch.zeros(7), "frozen": torch.zeros(5)}
    two = noised(tmp_path, {"a": update, "b": update}, privacy, 4)
    torch.testing.assert_close(two["w"], torch.full((2000, 50), 2 * 0.01 / 4))


def test_a_clip_far_from_the_norms_finds_their_quantile() -> None:
    """Fifty hospitals whose norms are 1 to 50; counts with noise, as Andrew et al. have it."""
    adaptive = Adaptive(quantile=0.7, lr=0.2, count_noise=1.0)
    source = NoiseSource(3)
    for start in (1e-3, 1e4):
        clip, seen = start, []
        for _ in range(300):
            count = sum(0.5 if length < clip else -0.5 for length in range(1, 51)) + float(source.normal(1))
            clip = next_clip(clip, 0.5 + count / 50, adaptive)
            seen.append(clip)
        assert sum(seen[-100:]) / 100 == pytest.approx(35.5, rel=0.05)


def test_a_count_that_noise_has_carried_far_away_ends_at_the_clips_limits_and_not_the_run() -> None:
    assert (next_clip(1.0, -1e6, Adaptive()), next_clip(1.0, 1e6, Adaptive())) == (1e12, 1e-12)


def test_one_number_with_the_noise_of_all_is_left_out_where_the_sum_has_no_room_for_it(tmp_path: Path) -> None:
    state = {"w": torch.zeros(1200, 1000)}
    privacy = HospitalPrivacy(noise_multiplier=1000.0, noise="hospitals")
    made = Sum(1, 1, 1000.0, ("a", "b"))
    protection = Protection(privacy, 2, frozenset(state), 1.0, made, Spent(tmp_path), NoiseSource(1))
    state["w"][0, 0] = 1.09e6
    with WeightedMean(state, tmp_path / "sums") as mean:
        assert not Noised(mean, state, protection).fits(state, 1)


def private(privacy: dict[str, Any], **federation: Any) -> Plan:
    base = {"weighting": "uniform", "quorum": 2, "deadline": 60, "join_deadline": 60} | federation
    return read(Plan, to_mapping(short_plan(**base)) | {"aggregation": {"privacy": privacy}})


def run(
    folder: Path,
    the_plan: Plan,
    nodes: list[Node],
    *,
    resume: bool = False,
    seed: int | None = 7,
    kill: Callable[[RoundLoop], None] | None = None,
) -> RunStore:
    store = RunStore.resume(folder, the_plan) if resume else RunStore.create(folder, the_plan)
    loop = RoundLoop(Exchange(LocalGrid(dict(enumerate(nodes, start=1)))), store, Live(folder), noise_seed=seed)
    if kill is not None:
        kill(loop)
    loop.run()
    return store


def three(change: Change = lambda task, reply: reply) -> list[Node]:
    return [hospital(name, shift, 10, change) for name, shift in (("a", 0.3), ("b", -0.1), ("c", 50.0))]


def step_of(store: RunStore, rounds: int) -> State:
    before = start_of(store)
    return {name: (store.stage_state("mae")[name] - before[name]) / rounds for name in before}


def test_without_noise_each_round_moves_by_the_clipped_updates_over_the_asked(tmp_path: Path) -> None:
    store = run(tmp_path, private({"clip": 1.0, "noise_multiplier": 0.0}), three())
    moved = torch.cat([tensor.flatten() for tensor in step_of(store, 3).values()])
    moving = moved[moved != 0]
    each = 1 / math.sqrt(len(moving))  # of a clipped update, which is a constant
    assert float(moving.mean()) == pytest.approx((each - each + each) / 3, rel=1e-3)
    assert store.records()[1]["privacy"]["epsilon"] is None


def test_the_records_and_the_report_tell_epsilon_after_each_round(tmp_path: Path) -> None:
    store = run(tmp_path, private({"clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-6}), three())
    told = [record["privacy"] for record in store.records()[1:]]
    assert [each["epsilon"] for each in told] == [epsilon([2.0] * count, 1e-6) for count in (1, 2, 3)]
    assert {each["clip"] for each in told} == {1.0}
    report = content(store.plan, store.run, store.records())
    text = f"hospital-level epsilon = {epsilon([2.0] * 3, 1e-6):.3g} at delta = 1e-06 after round 3"
    assert report["privacy"]["text"] == text
    assert report["privacy"]["hospitals"].keys() == {"a", "b", "c"}
    assert text in summary_text(report)
    statements = " ".join(report["privacy"]["statements"])
    assert "nothing is promised against the server itself" in statements
    assert "was seeded" in statements, "this noise can be repeated"


def test_only_a_seeded_run_can_be_repeated_and_its_rounds_have_noise_of_their_own(tmp_path: Path) -> None:
    the_plan = private({"noise_multiplier": 1.0})
    stores = [
        run(tmp_path / str(seed) / name, the_plan, three(), seed=seed)
        for seed, name in ((7, "a"), (7, "b"), (None, "a"), (None, "b"))
    ]
    found = [[record["state_digest"] for record in store.records()[1:]] for store in stores]
    assert found[0] == found[1]
    assert len({digests[0] for digests in found}) == 3
    assert [store.records()[1]["privacy"]["seeded"] for store in stores] == [True, True, False, False]
    first, second, third = (stores[0].state(number) for number in (1, 2, 3))
    assert not torch.allclose(
        subtract(second, first)["encoder.norm.bias"], subtract(third, second)["encoder.norm.bias"]
    )


def test_a_sum_that_a_kill_kept_from_being_committed_counts(tmp_path: Path) -> None:
    the_plan = private({"noise_multiplier": 2.0})

    def kill(loop: RoundLoop) -> None:
        def commit(done: dict[str, Any], *rest: Any, **more: Any) -> None:
            if done["round"] == 2:
                raise KeyboardInterrupt
            whole(done, *rest, **more)

        whole = loop._commit
        loop._commit = commit  # type: ignore[method-assign]  # the moment before the commit

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, the_plan, three(), kill=kill)
    store = run(tmp_path, the_plan, three(), resume=True)
    assert [made.round for made in Spent(tmp_path).sums()] == [1, 2, 2, 3]
    told = [record["privacy"]["epsilon"] for record in store.records()[1:]]
    assert told == [epsilon([2.0] * count, 1e-5) for count in (1, 3, 4)]


def test_a_hospital_spends_by_the_rounds_that_it_was_asked_in(tmp_path: Path) -> None:
    """The draw is no secret, so that it makes no round cheaper for those who are in it."""
    nodes = [hospital(name, 0.1, 10) for name in "abcdef"]
    store = run(tmp_path, private({"noise_multiplier": 2.0}, fraction=0.5), nodes)
    asked = [{line["site"] for line in record["hospitals"]} for record in store.records()[1:]]
    assert {len(each) for each in asked} == {3}
    told = store.records()[-1]["privacy"]
    counts = {name: sum(name in each for each in asked) for name in "abcdef"}
    assert told["hospitals"] == {name: epsilon([2.0] * count, 1e-5) for name, count in counts.items() if count}
    assert told["epsilon"] == epsilon([2.0] * max(counts.values()), 1e-5)
    assert (told["divisor"], told["sums"]) == (3, max(counts.values()))


def test_an_attempt_without_quorum_makes_no_sum_and_costs_nothing(tmp_path: Path) -> None:
    tries: list[int] = []

    def late(task: Task, reply: Reply) -> Reply | None:
        if task.kind == "pretrain" and task.round == 1 and len(tries) < 3:
            tries.append(task.round)
            return replace(reply, examples=-1)
        return reply

    store = run(tmp_path, private({}), three(late))
    assert store.records()[1]["attempt"] == 2
    assert [(made.round, made.attempt) for made in Spent(tmp_path).sums()] == [(1, 2), (2, 1), (3, 1)]


def test_an_adaptive_clip_goes_on_after_a_restart(tmp_path: Path) -> None:
    the_plan = private({"noise_multiplier": 0.1, "adaptive": {"lr": 1.0}})
    clips: list[tuple[int, float | None]] = []

    def look(task: Task, reply: Reply) -> Reply:
        clips.append((task.round, task.clip))
        return reply

    def kill(loop: RoundLoop) -> None:
        def stop(record: dict[str, Any]) -> None:
            if record["round"] == 1:
                raise KeyboardInterrupt

        loop._observers.append(stop)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, the_plan, three(look), kill=kill)
    records = run(tmp_path, the_plan, three(look), resume=True).records()
    told = [record["privacy"] for record in records[1:]]
    assert dict(clips) == {1: 1.0, 2: told[0]["next_clip"], 3: told[1]["next_clip"]}
    assert all(each["next_clip"] == next_clip(each["clip"], each["short"], Adaptive(lr=1.0)) for each in told)
    assert told[0]["next_clip"] > 1.0, "all three were longer than the first bound"


def shared_noise(task: Task, reply: Reply) -> Reply:
    """As a hospital under `noise: hospitals` has it, with one update in the last round that is too long for any noise."""
    if task.kind != "pretrain":
        return reply
    draw = torch.Generator().manual_seed(task.round * 100 + ord(reply.site))
    from cxrbase_model.codec import unpack

    share = 1e3 if (task.round, reply.site) == (3, "c") else 0.5
    update = {name: torch.randn(tensor.shape, generator=draw) * share for name, tensor in unpack(reply.update).items()}
    return replace(reply, update=encode(update, EXACT))


def test_where_hospitals_add_the_noise_the_server_adds_none_and_keeps_out_what_is_too_long(tmp_path: Path) -> None:
    the_plan = private({"noise": "hospitals", "noise_multiplier": 0.5, "honest": 1})
    store = run(tmp_path, the_plan, three(shared_noise))
    records = store.records()
    assert [record["rejected"] for record in records[1:]] == [[], [], [{"site": "c", "code": "NORM"}]]
    assert [len(Spent(tmp_path).sums()), records[3]["privacy"]["epsilon"]] == [3, epsilon([0.5] * 3, 1e-5)]
    moved = torch.cat([tensor.flatten() for tensor in step_of(store, 1).values()])
    assert float(moved[moved != 0].std()) == pytest.approx(0.5 * math.sqrt(8) / 3, rel=0.05), (
        "eight shares were taken in"
    )
    told = promise(the_plan, records)
    assert told is not None
    assert told["server_epsilon"] == epsilon([0.5] * 3, 1e-5), (
        "one share is all of the noise that a plan with honest: 1 counts on"
    )
    assert f"against it epsilon is {told['server_epsilon']:.3g}" in " ".join(told["statements"])
