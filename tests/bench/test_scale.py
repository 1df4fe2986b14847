"""The bench over many hospitals runs every round of its plan."""

from __future__ import annotations

import json
from pathlib import Path

from bench.scale import rounds_of


def test_all_hospitals_are_admitted_in_each_round(tmp_path: Path) -> None:
    times = rounds_of(5, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert len(times) == len(records) == 4
    lines = [[(line["site"], line["status"]) for line in record["hospitals"]] for record in records]
    assert lines == [[(f"h{number:04}", "admitted") for number in range(5)]] * 4
