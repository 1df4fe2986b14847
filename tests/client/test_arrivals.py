"""The weights that arrived last are kept for the next difference, and what cannot be added up is asked for whole."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.app import answer
from client.arrivals import FOLDER, BaseMissing, HeldWeights, WrongWeights, arrived
from client.rehearsal import rehearse
from client.site import Site
from cxrbase_model.codec import sent
from cxrbase_model.difference import encode_difference, narrow
from cxrbase_model.messages import Code, Task
from cxrbase_model.plan import Plan
from cxrbase_model.state import State, digest
from cxrbase_model.transport import Transport

TRANSPORT = Transport(broadcast="bf16", update="int8", compress="zstd", difference=True)


def weights(number: int) -> State:
    generator = torch.Generator().manual_seed(number)
    first = {"w": torch.randn(20, 30, generator=torch.Generator().manual_seed(0))}
    return {"w": first["w"] + 0.01 * number * torch.randn(20, 30, generator=generator)}


def whole(number: int, kind: str = "pretrain") -> Task:
    packed, state = sent(weights(number), TRANSPORT.down(kind))
    return Task(kind, "run", number, "mae", number, "mae", "text", "digest", digest(state), packed)


def difference(number: int, to: int, kind: str = "pretrain") -> Task:
    precision = TRANSPORT.down(kind).precision
    base = {"w": narrow(weights(to)["w"], "bf16")}
    data = encode_difference([("w", narrow(weights(number)["w"], precision))], base, precision)
    return replace(whole(number, kind), state=data, base_digest=whole(to).state_digest)


def arrive(task: Task, private: Path) -> State:
    return arrived(task, TRANSPORT, 10**6, private)


def test_a_difference_to_what_is_held_gives_the_weights_that_the_whole_gives(tmp_path: Path) -> None:
    arrive(whole(1), tmp_path / "one")
    for number in (2, 3, 4):
        by_difference = arrive(difference(number, number - 1), tmp_path / "one")
        assert digest(by_difference) == digest(arrive(whole(number), tmp_path / "other"))
    assert len(difference(4, 3).state) < len(whole(4).state)


def test_an_evaluation_arrives_exact_and_is_held_for_the_next_round(tmp_path: Path) -> None:
    arrive(whole(1), tmp_path)
    assert digest(arrive(difference(2, 1, "evaluate"), tmp_path)) == digest(weights(2))
    base = {"w": narrow(weights(2)["w"], "float32")}
    data = encode_difference([("w", narrow(weights(3)["w"], "bf16"))], base, "bf16")
    task = replace(whole(3), state=data, base_digest=digest(weights(2)))
    assert digest(arrive(task, tmp_path)) == whole(3).state_digest


def test_one_file_is_held_that_only_the_owner_may_read(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        arrive(whole(number), tmp_path)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [f"{whole(3).state_digest}.safetensors"]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (tmp_path / FOLDER).rglob("*")} == {0}
    HeldWeights(tmp_path).drop()
    HeldWeights(tmp_path).drop()
    assert not (tmp_path / FOLDER).exists()


def _nothing(file: Path) -> None:
    file.unlink()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def _flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def _another(file: Path) -> None:
    file.rename(file.with_name("0" * 64 + ".safetensors"))


@pytest.mark.parametrize("spoil", [_nothing, _cut, _flipped, _another])
def test_what_is_not_held_or_not_as_it_was_is_asked_for_whole(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    arrive(whole(1), tmp_path)
    spoil(next((tmp_path / FOLDER).iterdir()))
    with pytest.raises(BaseMissing):
        arrive(difference(2, 1), tmp_path)
    assert digest(arrive(whole(2), tmp_path)) == whole(2).state_digest
    assert digest(arrive(difference(3, 2), tmp_path)) == whole(3).state_digest


def test_asked_again_for_the_same_weights_a_hospital_takes_those_it_holds(tmp_path: Path) -> None:
    arrive(whole(1), tmp_path)
    arrive(difference(2, 1), tmp_path)
    assert digest(arrive(difference(2, 1), tmp_path)) == whole(2).state_digest
    _flipped(next((tmp_path / FOLDER).iterdir()))
    with pytest.raises(BaseMissing):
        arrive(difference(2, 1), tmp_path)
    assert digest(arrive(whole(2), tmp_path)) == whole(2).state_digest
    assert digest(arrive(difference(3, 2), tmp_path)) == whole(3).state_digest


def test_a_name_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    arrive(whole(1), tmp_path)
    shutil.copy(next((tmp_path / FOLDER).iterdir()), tmp_path / "other.safetensors")
    with pytest.raises(BaseMissing):
        arrive(replace(difference(2, 1), base_digest="../other"), tmp_path)


def test_whole_weights_that_are_not_those_that_were_sent_are_refused_and_not_held(tmp_path: Path) -> None:
    with pytest.raises(WrongWeights):
        arrive(replace(whole(1), state_digest="0" * 64), tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_a_disk_without_room_costs_a_longer_broadcast_and_not_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    arrive(whole(1), tmp_path)
    monkeypatch.setattr("client.arrivals.write_private", full)
    assert digest(arrive(difference(2, 1), tmp_path)) == whole(2).state_digest
    with pytest.raises(BaseMissing):
        arrive(difference(3, 2), tmp_path)


def test_nothing_is_held_where_the_plan_has_weights_travel_whole(tmp_path: Path) -> None:
    plain = replace(TRANSPORT, difference=False)
    assert digest(arrived(whole(1), plain, 10**6, tmp_path)) == whole(1).state_digest
    assert not (tmp_path / FOLDER).exists()
    with pytest.raises(BaseMissing):
        arrived(difference(2, 1), plain, 10**6, tmp_path)


def test_a_hospital_without_the_base_answers_with_its_code_and_trains_from_the_whole(
    site: Site, plan: Plan, task_for: Callable[..., Task], state_for: Callable[[str], State]
) -> None:
    plan = replace(plan, transport=TRANSPORT)
    packed, state = sent(state_for("mae"), TRANSPORT.down("pretrain"))
    task = replace(task_for("mae", state=state, plan=plan), state=packed)
    asked = replace(task, state=b"a difference", base_digest="0" * 64)
    assert answer(asked, site).code is Code.BASE_MISSING
    first = answer(task, site)
    assert first.code is None
    again = answer(replace(asked, base_digest=task.state_digest), site)
    assert again == first, "the same task, however its weights came"


def test_a_rehearsal_leaves_no_weights(site: Site, plan: Plan) -> None:
    for rehearsed in rehearse(replace(plan, transport=TRANSPORT), site):
        assert rehearsed.code is None
    assert not (site.private / FOLDER).exists()
