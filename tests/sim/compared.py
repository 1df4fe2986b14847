"""A small comparison of rules: what is compared, on which pictures, and findings that nobody trained for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from cxrbase_model.engine import Runtime
from sim.cli import main
from sim.compare import jobs, mark, read_compare
from sim.compare_bench import Bench, Result
from sim.compare_findings import Findings

PLAN = {
    "schema": 1, "name": "tiny", "data": {"findings": ["Pneumonia"], "image_size": 32},
    "model": {"encoder": "vit_micro", "depth": 1},
    "stages": [{"kind": "finetune", "name": "detect", "init": "random", "rounds": 2, "batch_size": 4}],
}  # fmt: skip
RULES = [{"name": "mean"}, {"name": "median", "aggregation": {"rule": {"kind": "median"}}}]
STUDY: dict[str, Any] = {
    "hospitals": {"kind": "folders"}, "seeds": [1], "watched": 20, "largest_patient": 5,
    "parts": [
        {"name": "attacked", "title": "Attacked", "plan": "plan.yaml", "curve": False, "rules": RULES, "attackers": [1],
         "partitions": [{"kind": "even", "sites": 4}], "attacks": [{"kind": "nan"}, {"kind": "label-flip"}]},
        {"name": "cuts", "plan": "plan.yaml", "partitions": [{"kind": "natural", "cut": {"east": 2, "west": 2}}],
         "rules": [*RULES, {"name": "pooled", "pooled": True}, {"name": "norms", "aggregation": {"keep_local": ["*norm*"]}}]},
    ],
}  # fmt: skip


def write_study(folder: Path) -> Path:
    """Two hospitals of forty-one identifiers, where the sick have a bright half and one identifier stands for eight people."""
    rng = np.random.default_rng(0)
    for hospital in ("east", "west"):
        images = folder / "data" / hospital / "images"
        images.mkdir(parents=True)
        lines = ["image,patient_id,findings"]
        for number in range(48):
            picture = rng.integers(0, 160, (160, 160), dtype=np.uint8)
            picture[:80] += np.uint8(number % 2 * 90)
            Image.fromarray(picture).save(images / f"{number}.png")
            finding = "Pneumonia" if number % 2 else "No Finding"
            lines.append(f"images/{number}.png,p{min(number, 40)},{finding}")
        (images.parent / "labels.csv").write_text("\n".join(lines))
    (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "federation": {"quorum": 3}}))
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return folder


def run(study: Path, *more: str) -> int:
    """Run the comparison; the command's exit code."""
    arguments = ["compare", str(study / "study.yaml"), "--data", str(study / "data"), "--out", str(study / "out")]
    return main([*arguments, "--workers", "1", *more])


def bench_of(study: Path) -> Bench:
    """The bench of a comparison that was run."""
    config, plans = read_compare(study / "study.yaml")
    sites = sorted((study / "out" / "pictures" / "hospitals").glob("*/SITE.yaml"))
    return Bench(config, plans, sites, study / "data", study / "out", Runtime(torch.device("cpu"), "float32"))


def made_up(bench: Bench, scores: dict[str, np.ndarray], curve: list[float]) -> Findings:
    """Findings of results that are written and not trained."""
    for job in jobs(bench.config):
        count = len(bench.tested(job))
        result = Result(
            np.resize(scores.get(job.rule.name, np.array([0.5])), count).astype(np.float32), np.array(curve),
            np.array([10_000_000, 20_000_000]), np.array([1_000_000, 2_000_000]), "", {},
        )  # fmt: skip
        file = bench.out / "jobs" / f"{job.name}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        fields = {**vars(result), "rejected": "{}"}
        np.savez(file, mark=mark(bench.config, bench.plans[job.part.name], job, bench.data), **fields)
    return Findings(bench)
