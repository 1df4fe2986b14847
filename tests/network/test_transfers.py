"""A line that breaks in the middle of a transfer: what has come is not sent again, and the round is not lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cxrbase_model.plan import Plan
from cxrbase_model.settings import read
from sim.deployment import Deployment
from sim.faults import in_process, make_sites, outage, same_model
from sim.proxy import Line

pytestmark = pytest.mark.slow

_RATE = 6e6  # bytes a second, so that a transfer can be met half way
_NAMES = ("riverside", "northgate")
_SLACK = 1.2  # of the bytes of a transfer: pieces that were under way, the messages around them, signs of life


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Float32 both ways: 60 MB of a model that trains in seconds, so that the pieces under way are a small part of it."""
    mapping: dict[str, Any] = {
        "schema": 1, "name": "transfers", "seed": 3,
        "data": {"findings": ["No Finding", "Nodule"], "image_size": 32},
        "model": {"encoder": "vit_base", "patch_size": 16, "depth": 2, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2},
        "stages": [{"kind": "pretrain", "name": "mae", "rounds": 2, "batch_size": 32}],
        "federation": {"quorum": 2, "deadline": 900, "join_deadline": 300, "absence": 600},
        "transport": {"broadcast": "float32", "update": "float32", "compress": "none"},
    }  # fmt: skip
    return read(Plan, mapping)


class Transfers:
    """A run whose lines broke twice, once in each direction, and the bytes that passed each way in the round of each break."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.hospital = deployment.hospitals[_NAMES[0]]
        self.passed: dict[str, tuple[int, int]] = {}  # by direction: at the break, and in the whole round

    def break_in(self, way: str, number: int, size: int) -> None:
        """Break the line for ten seconds when half of a transfer has passed in a round."""
        line, counted = self.hospital.line, _counter(self.hospital.line, way)
        before = counted()
        line.rate = _RATE
        self.deployment.wait_until(
            lambda: counted() - before > size / 2, f"round {number} has not begun to transfer", 300
        )
        at_break = counted() - before
        outage(self.hospital.name, 10)(self.deployment)
        self.deployment.wait_for_round(number, 600)
        self.passed[way] = at_break, counted() - before


def _counter(line: Line, way: str) -> Callable[[], int]:
    return lambda: line.received if way == "down" else line.sent


@pytest.fixture(scope="module")
def size(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of the model."""
    from cxrbase_model.mae import build_autoencoder
    from cxrbase_model.state import byte_size, state_of

    return byte_size(state_of(build_autoencoder(plan)))


@pytest.fixture(scope="module")
def ended(plan: Plan, size: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transfers]:
    folder = tmp_path_factory.mktemp("transfers")
    with Deployment(folder, plan, make_sites(folder / "sites", plan, _NAMES)) as deployment:
        transfers = Transfers(deployment)
        deployment.start()
        deployment.wait_for_round(0)
        transfers.break_in("down", 1, size)
        transfers.break_in("up", 2, size)
        assert deployment.finish() == 0, deployment.told()
        yield transfers


@pytest.mark.parametrize("way", ["down", "up"])
def test_what_had_passed_is_not_sent_again(ended: Transfers, size: int, way: str) -> None:
    at_break, whole = ended.passed[way]
    assert size / 2 < at_break < size, "the line broke in the middle"
    assert size <= whole < _SLACK * size


def test_no_round_is_lost_or_repeated(ended: Transfers) -> None:
    records = ended.deployment.records()
    assert [(record["round"], record["attempt"]) for record in records] == [(0, 1), (1, 1), (2, 1)]
    assert [[line["status"] for line in record["hospitals"]] for record in records] == [["admitted"] * 2] * 3


def test_the_model_is_the_undisturbed_one(ended: Transfers, plan: Plan, tmp_path: Path) -> None:
    alone = in_process(tmp_path, plan, make_sites(tmp_path / "sites", plan, _NAMES).values())
    assert same_model(ended.deployment.run, alone.folder, plan)
