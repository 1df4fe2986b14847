"""Doing the jobs of a comparison: pictures to hospitals, a federation, and what its model says of the held-out pictures."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.archive.identity import SPLITS
from client.site import Site
from cxrbase_model.classifier import build_classifier
from cxrbase_model.engine import Runtime
from cxrbase_model.metrics import auroc
from cxrbase_model.plan import FinetuneStage, Plan
from cxrbase_model.predict import predict
from cxrbase_model.seeds import derive_seed
from cxrbase_model.settings import SettingsError
from cxrbase_model.state import State, is_finite, load_state
from server.records import Record
from server.store import RunStore
from sim import attacks
from sim.compare import INVERTED, LABEL_FLIP, CompareConfig, Job, mark, plan_of
from sim.federation import own_tensors, run_federation, write_hospital
from sim.partition import Even, assign, grey_values
from sim.pool import Pool

_BATCH = 64
_FACTORS = {"sign-flip": attacks.sign_flip, "scaled": attacks.scaled, "head-flip": attacks.head_flip}
_SEEDED = {"noise": attacks.gaussian, "free-rider": attacks.free_rider, "colluding": attacks.colluding}


@dataclass(frozen=True)
class Result:
    """What came of a federation.

    scores: probabilities of the held-out pictures, float32 [N]; all 0.5 where no usable model came of it. curve: AUROC of the watched
    ones after each round of fine-tuning, [R], or after the last alone. sent, received: bytes from and to the server by then, [R]. stopped: why it ended early, ""
    where it did not. rejected: replies left out, by code.
    """

    scores: NDArray[np.float32]
    curve: NDArray[np.float64]
    sent: NDArray[np.int64]
    received: NDArray[np.int64]
    stopped: str
    rejected: dict[str, int]


@dataclass(frozen=True)
class Bench:
    """Where jobs are done: plans of the parts, the hospitals whose pictures are used, and the folder of results."""

    config: CompareConfig
    plans: dict[str, Plan]
    sites: list[Path]
    data: Path
    out: Path
    runtime: Runtime

    @cached_property
    def pool(self) -> Pool:
        """All pictures; identifiers that are no person's are taken apart."""
        return Pool(self.sites, self.config.largest_patient)

    @cached_property
    def splits(self) -> NDArray[np.uint8]:
        """Whose picture each is, [N], an index into SPLITS: of a share of each hospital's patients, the same in every job and,
        of test patients, whatever the share that settings are chosen on.
        """
        splits = np.full(len(self.pool.patients), SPLITS.index("train"), np.uint8)
        for hospital, name in enumerate(self.pool.names):
            patients = np.unique(self.pool.patients[self.pool.hospitals == hospital])
            order = np.random.default_rng(derive_seed(0, "held out", name)).permutation(patients)
            tested = math.ceil(self.config.held_out * len(order))
            chosen = order[tested : tested + math.ceil(self.config.validation * len(order))]
            splits[np.isin(self.pool.patients, order[:tested])] = SPLITS.index("test")
            splits[np.isin(self.pool.patients, chosen)] = SPLITS.index("validation")
        return splits

    def tested(self, job: Job) -> NDArray[np.int64]:
        """The rows that a job's model is judged on: of the judged split, labelled, and of hospitals that take part."""
        known = np.isfinite(self.pool.labels[:, 0])
        judged = self.splits == SPLITS.index(self.config.judged)
        return np.flatnonzero(judged & known & (self._sites_of(job) >= 0))

    def do(self, job: Job) -> Result:
        """Do a job, if its result is not there yet."""
        file = self.out / "jobs" / f"{job.name}.npz"
        wanted = mark(self.config, self.plans[job.part.name], job, self.data)
        if file.exists():
            with np.load(file) as found:
                if str(found["mark"]) == wanted:
                    return _unpacked(found)
        result = self._run(job)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        with part.open("wb") as stream:
            fields: dict[str, Any] = {**vars(result), "rejected": json.dumps(result.rejected), "mark": wanted}
            np.savez(stream, **fields)
        part.rename(file)
        return result

    def auroc(self, scores_N: NDArray[Any], rows_N: NDArray[np.int64]) -> float:
        """The mean AUROC over the real hospitals that have both classes among these rows; 0.5 where none has."""
        values = []
        for hospital in np.unique(self.pool.hospitals[rows_N]):
            own = self.pool.hospitals[rows_N] == hospital
            targets = (self.pool.labels[rows_N[own], 0] >= 0.5).astype(float)
            if 0 < targets.sum() < len(targets):
                values.append(auroc(scores_N[own].astype(float), targets))
        return float(np.mean(values)) if values else 0.5

    def _sites_of(self, job: Job) -> NDArray[np.int64]:
        """The made-up hospital of each picture, -1 for none."""
        positive, seed = self.pool.labels[:, 0] >= 0.5, derive_seed(job.seed, "partition", job.partition.name)
        found = assign(job.partition, self.pool.patients, positive, self.pool.hospitals, self.pool.names, seed)
        return np.minimum(found, 0) if job.rule.pooled else found

    def _pictures(self, job: Job, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pictures of some rows as the scanner of each one's hospital shows them."""
        pictures = self.pool.pictures[rows]
        if isinstance(job.partition, Even):
            return pictures
        positive, seed = self.pool.labels[:, 0] >= 0.5, derive_seed(job.seed, "partition", job.partition.name)
        sites = assign(job.partition, self.pool.patients, positive, self.pool.hospitals, self.pool.names, seed)[rows]
        for site in np.unique(sites):
            pictures[sites == site] = grey_values(job.partition, int(site))[pictures[sites == site]]
        return pictures

    def _hospitals(self, job: Job, plan: Plan, folder: Path) -> list[Site]:
        sites_N = self._sites_of(job)
        hospitals = []
        for site in range(1 if job.rule.pooled else job.partition.sites):
            rows = np.flatnonzero((sites_N == site) & (self.splits == SPLITS.index("train")))
            if len(rows) == 0:
                raise SettingsError(f"{job.name}: expected pictures in every hospital, found none in number {site + 1}")
            pictures, labels = self._pictures(job, rows), self.pool.labels[rows]
            if job.attack and site >= job.partition.sites - job.attackers:
                pictures = 255 - pictures if job.attack.kind == INVERTED else pictures
                labels = 1 - labels if job.attack.kind == LABEL_FLIP else labels
            name = f"h{site + 1:03}"
            hospitals.append(write_hospital(folder / name, name, plan.data, pictures, labels, self.pool.patients[rows]))
        return hospitals

    def _run(self, job: Job) -> Result:
        plan = plan_of(self.plans[job.part.name], job)
        with tempfile.TemporaryDirectory(prefix="federation-") as temporary:
            sites = self._hospitals(job, plan, Path(temporary))
            changed = [site.site for site in sites[len(sites) - job.attackers :]] if job.attack else []
            examiner = _Examiner(self, job, plan, sites)
            update_attacks = {name: attack for name in changed if (attack := update_attack(job, name)) is not None}
            store, stopped = run_federation(Path(temporary) / "run", plan, sites, update_attacks, examiner.watch)
            return examiner.result(store, stopped)


def update_attack(job: Job, hospital: str) -> attacks.Attack | None:
    """What a hospital does to its updates; None where it is its data that is changed. Who collude share a seed, others do not."""
    if job.attack is None or job.attack.kind in (LABEL_FLIP, INVERTED):
        return None
    if job.attack.kind == "nan":
        return attacks.not_a_number()
    if job.attack.kind in _FACTORS:
        return _FACTORS[job.attack.kind](job.attack.factor)
    who = "" if job.attack.kind == "colluding" else hospital
    seed = derive_seed(job.seed, "attacker", job.attack.kind, who) % 2**31
    if job.attack.kind == "free-rider":
        return attacks.free_rider(seed)
    return _SEEDED[job.attack.kind](seed, job.attack.factor)


class _Examiner:
    """Tests the global model as the rounds go on."""

    def __init__(self, bench: Bench, job: Job, plan: Plan, sites: list[Site]) -> None:
        self._bench, self._job, self._plan, self._sites = bench, job, plan, sites
        stage = plan.stages[-1]
        assert isinstance(stage, FinetuneStage)  # read_compare has seen to it
        self._stage = stage
        self._model = build_classifier(plan, stage)
        self._rows = bench.tested(job)
        self._pictures = bench._pictures(job, self._rows)
        self._site_of = bench._sites_of(job)[self._rows]
        drawn = np.random.default_rng(0).permutation(len(self._rows))[: bench.config.watched]
        self._watched = np.sort(drawn)
        self._scores = np.full(len(self._rows), 0.5, np.float32)
        self._curve: list[float] = []
        self._sent, self._received = list[int](), list[int]()
        self._total = [0, 0]
        self._rejected: Counter[str] = Counter()

    def watch(self, record: Record, store: RunStore) -> None:
        """Take note of a committed round."""
        self._total[0] += record["bytes_sent"]
        self._total[1] += record["bytes_received"]
        self._rejected.update(each["code"] for each in record["rejected"])
        if record["stage"] != self._stage.name:
            return
        self._sent.append(self._total[0])
        self._received.append(self._total[1])
        last = record["stage_round"] == record["stage_rounds"]
        chosen = np.arange(len(self._rows)) if last else self._watched
        if last or self._job.part.curve:
            scores = self._examine(store, record, chosen)
            where = self._watched if last else slice(None)
            self._curve.append(self._bench.auroc(scores[where], self._rows[self._watched]))
        if last:
            self._scores = scores

    def result(self, store: RunStore, stopped: str) -> Result:
        """What came of it; a run that stopped is tested by its last weights."""
        if stopped and self._sent:
            self._scores = self._examine(store, store.records()[-1], np.arange(len(self._rows)))
        return Result(
            self._scores, np.array(self._curve), np.array(self._sent), np.array(self._received), stopped,
            dict(sorted(self._rejected.items())),
        )  # fmt: skip

    def _examine(self, store: RunStore, record: Record, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probabilities of some of the tested pictures, those of each hospital by the weights it would use; 0.5 of a broken model."""
        state, scores = store.state(record["round"]), np.full(len(chosen), 0.5, np.float32)
        for number, site in enumerate(self._sites if self._plan.aggregation.keep_local else [None]):
            own = np.ones(len(chosen), bool) if site is None else self._site_of[chosen] == number
            weights: State = state
            if site is not None:
                weights = state | own_tensors(site, self._plan, record["stage"], record["stage_round"])
            if own.any() and is_finite(weights):
                scores[own] = self._predict(weights, chosen[own])
        return np.where(np.isfinite(scores), scores, np.float32(0.5))

    def _predict(self, weights: State, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        load_state(self._model, weights)
        parts = (torch.from_numpy(self._pictures[chosen[at : at + _BATCH]]) for at in range(0, len(chosen), _BATCH))
        scores: NDArray[np.float32] = predict(self._model, parts, self._bench.runtime).numpy()[:, 0]
        return scores


def _unpacked(found: Any) -> Result:
    return Result(
        found["scores"], found["curve"], found["sent"], found["received"], str(found["stopped"]),
        json.loads(str(found["rejected"])),
    )  # fmt: skip
