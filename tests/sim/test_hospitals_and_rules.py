"""Real hospitals of random pictures under the plan's rules and packings: what they send is admitted, and little is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client.app import answer
from client.site import Site, read_site
from cxrbase_model.messages import reply_to_message, task_from_message
from cxrbase_model.plan import Plan
from cxrbase_model.settings import read
from server.exchange import Exchange
from server.live import Live
from server.rounds import RoundLoop
from server.store import RunStore
from sim.grid import LocalGrid, Node
from sim.tiny import write_tiny_hospital

EVERYTHING = {
    "aggregation": {
        "rule": {"kind": "geometric-median"}, "step": {"kind": "fedavgm", "momentum": 0.1}, "proximal": 0.01, "mixing": 0.01,
        "keep_local": ["decoder_*"],
    },
    "transport": {"broadcast": "bf16", "update": "int8", "compress": "zstd"},
}  # fmt: skip


EXACT = {"broadcast": "float32", "update": "float32", "compress": "none"}


def plan(**sections: Any) -> Plan:
    federation = {"quorum": 3, "deadline": 60, "join_deadline": 60, "outlier": 10.0}
    mapping = {
        "schema": 1, "name": "tiny", "seed": 1,
        "data": {"findings": ["No Finding", "Nodule"], "image_size": 16},
        "model": {
            "encoder": "vit_micro", "patch_size": 8, "depth": 1, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2,
        },
        "stages": [
            {"kind": "pretrain", "name": "mae", "rounds": 3, "local_epochs": 2, "batch_size": 8, "mask_ratio": 0.5,
             "optimizer": {"lr": 0.02}},
            {"kind": "finetune", "name": "detect", "rounds": 1, "batch_size": 8},
            {"kind": "evaluate", "name": "test"},
        ],
        "federation": federation,
    } | sections  # fmt: skip
    return read(Plan, mapping)


def node(site: Site) -> Node:
    def respond(message: Message) -> Message:
        return reply_to_message(answer(task_from_message(message), site), message)

    return respond


def run(folder: Path, the_plan: Plan) -> list[dict[str, Any]]:
    sites = [read_site(write_tiny_hospital(folder / name, name, the_plan.data)) for name in ("a", "b", "c")]
    store = RunStore.create(folder / "run", the_plan)
    grid = LocalGrid({number: node(site) for number, site in enumerate(sites)})
    RoundLoop(Exchange(grid), store, Live(folder / "run")).run()
    return store.records()


def held_out(records: list[dict[str, Any]]) -> list[float]:
    """The loss of the global weights on held-out pictures at the start of each round of pretraining."""
    return [record["metrics"]["validation_loss"] for record in records if record["kind"] == "pretrain"]


def test_coarse_packing_both_ways_loses_next_to_nothing_of_what_training_gains(tmp_path: Path) -> None:
    exact = run(tmp_path / "exact", plan(transport=EXACT))
    coarse = run(tmp_path / "coarse", plan(transport=EVERYTHING["transport"]))
    before, after = held_out(exact)[0], held_out(exact)[-1]
    assert after < before
    assert held_out(coarse)[-1] == pytest.approx(after, abs=0.05 * (before - after))
    sent, received = (
        sum(record[way] for record in coarse if record["kind"] in ("pretrain", "finetune"))
        / sum(record[way] for record in exact if record["kind"] in ("pretrain", "finetune"))
        for way in ("bytes_sent", "bytes_received")
    )
    assert sent < 0.4
    assert received < 0.3


def test_everything_at_once_is_admitted_and_learns(tmp_path: Path) -> None:
    records = run(tmp_path, plan(**EVERYTHING))
    assert [record["rejected"] for record in records] == [[]] * 6
    assert held_out(records)[-1] < held_out(records)[0]


def test_the_largest_fifth_of_each_update_learns_nearly_as_much_as_the_whole(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", plan(transport=EXACT))
    thin = run(
        tmp_path / "thin", plan(transport={"broadcast": "float32", "update": "topk", "keep": 0.2, "compress": "zstd"})
    )
    before, after = held_out(whole)[0], held_out(whole)[-1]
    assert [record["rejected"] for record in thin] == [[]] * 6
    assert before - held_out(thin)[-1] > 0.5 * (before - after)
    received = [
        sum(line["bytes_received"] for line in records if line["kind"] == "pretrain") for records in (thin, whole)
    ]
    assert received[0] < 0.2 * received[1]
