"""Secure aggregation between real processes over TLS, with keys that the hospitals have handed each other, and one that loses power."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.peers import add_peer
from client.site import read_site
from cxrbase_model.plan import Plan
from cxrbase_model.settings import read
from sim.deployment import Deployment
from sim.faults import NAMES, in_process, make_sites, power_cut, same_model, trains


@pytest.fixture(scope="module")
def plan() -> Plan:
    mapping: dict[str, Any] = {
        "schema": 1, "name": "secured", "seed": 11,
        "data": {"findings": ["No Finding", "Nodule"], "image_size": 32},
        "model": {"encoder": "vit_micro", "patch_size": 8, "depth": 1, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2},
        "stages": [{"kind": "pretrain", "name": "mae", "rounds": 2, "local_epochs": 4, "batch_size": 8}],
        "federation": {"quorum": 3, "deadline": 300, "join_deadline": 300, "absence": 120},
        "aggregation": {"secure": {"threshold": 2, "hospitals": 3, "examples": 200}},
    }  # fmt: skip
    return read(Plan, mapping)


@pytest.fixture(scope="module")
def ended(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A run of which a hospital loses power while it trains in the first round."""
    folder = tmp_path_factory.mktemp("secured")
    with Deployment(folder, plan, make_sites(folder / "sites", plan, NAMES)) as deployment:
        keys = {name: deployment.folder / "sites" / name / "private" / "consortium" / f"{name}.pub" for name in NAMES}
        for name, hospital in deployment.hospitals.items():
            for other in NAMES:
                if other != name:
                    add_peer(read_site(hospital.site_file), keys[other])
        deployment.start()
        deployment.wait_for_round(0)
        deployment.wait_until(lambda: trains(deployment.hospitals["riverside"]), "riverside has not begun to train")
        power_cut("riverside")(deployment)
        assert deployment.finish() == 0, deployment.told()
        yield deployment


def test_the_model_is_the_one_that_the_hospitals_reach_without_a_network(
    ended: Deployment, plan: Plan, tmp_path: Path
) -> None:
    """To the bit, though all masks are others: in the ring they cancel without a rest."""
    alone = in_process(tmp_path, plan, make_sites(tmp_path / "sites", plan, NAMES).values())
    assert same_model(ended.run, alone.folder, plan)


def test_all_hospitals_were_in_each_sum(ended: Deployment) -> None:
    for record in ended.records()[1:]:
        assert [entry["status"] for entry in record["hospitals"]] == ["admitted"] * 3
        assert [record["secure"][key] for key in ("members", "survivors")] == [3, 3]


def test_the_keys_were_signed_and_checked(ended: Deployment) -> None:
    for hospital in ended.hospitals.values():
        told = (hospital.private / "client.log").read_text(encoding="utf-8")
        assert "secure-unmask done" in told or "secure-masked done" in told
        assert "believed as the server sends them" not in told
