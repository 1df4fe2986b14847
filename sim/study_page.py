"""study.html: the tables of a study, charts of them, and what its model sees of real pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from cxrbase_model.codec import unpack
from cxrbase_model.initial import build_model
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.plan import FinetuneStage, PretrainStage
from cxrbase_model.predict import attention_maps, predict, reconstruct
from cxrbase_model.state import load_state
from server.charts import Interval, forest
from server.page import environment
from sim.pool import TEST, Pool
from sim.study import Job
from sim.study_bench import Bench
from sim.study_table import Line, against_reference, shares, unseen

_UNSEEN = (
    "Hospitals that took part in nothing",
    "Each hospital was left out of everything, of pretraining too, and all of it was tested. Below 0.5, what tells the known hospitals "
    "apart points the wrong way in the new one. The last column is how well a linear probe tells the hospitals from the embedding.",
)
_SHARES = (
    "Few labels",
    "Held-out patients of hospitals that took part, by the share of the labelled patients that was learned from. The difference is to full "
    "training from random weights on the same patients, draw by draw.",
)
_REFERENCE = (
    "Beside a usual network",
    "The same held-out patients, after training from the pretrained encoder and after training the reference network from random weights, on "
    "the same draws of patients, for the same steps. The chart shows the trainings from the pretrained encoder.",
)


def page(bench: Bench) -> str:
    """The whole page, self-contained."""
    pool = next(iter(bench.pools.values()))
    parts = [(*_UNSEEN, unseen(bench)), (*_SHARES, shares(bench)), (*_REFERENCE, against_reference(bench))]
    return environment("sim").get_template("study.html").render(
        name=bench.plan.name,
        hospitals=pool.names,
        parts=[
            (heading, text, _chart(lines), head, [line.cells for line in lines])
            for heading, text, (head, lines) in parts
            if lines
        ],
        finding=bench.plan.data.findings[0],
        pictures=list(_pictures(bench)),
    )  # fmt: skip


def _chart(lines: list[Line]) -> Markup:
    groups: dict[str, dict[str, Interval | None]] = {line.name: {"AUROC": line.auroc} for line in lines}
    return forest(groups, ["AUROC"], title="AUROC with 95 % intervals")


def _pictures(bench: Bench) -> Iterator[tuple[str, list[str]]]:
    """A caption and four pictures for each chosen one; none where no stage has a query to show."""
    heads = [each for each in bench.plan.stages if isinstance(each, FinetuneStage) and each.pooling == "attentive"]
    recipe = replace(next(each for each in bench.config.recipes if each.name == bench.config.recipe), init="mae")
    stage = bench.plan.stages[0]
    if not heads or not bench.config.labels or not isinstance(stage, PretrainStage):
        return
    pool, seed, most = bench.pools[recipe.pictures], 1, bench.config.labels[-1]
    rows = _chosen(pool)
    images = torch.from_numpy(pool.pictures[rows])
    autoencoder = build_model(bench.plan, stage)
    if not isinstance(autoencoder, MaskedAutoencoder):
        return
    job = Job(heads[0].name, recipe, most.labels, most.steps, most.looks, "", seed)
    load_state(
        autoencoder, unpack(bench.pretrained(recipe.pictures, "", bench.config.pretraining_seed(job.seed)).read_bytes())
    )
    masked, complete = reconstruct(autoencoder, images, stage, seed)
    probe = bench.trained(job)
    maps, scores = attention_maps(probe, images)[:, 0], predict(probe, [images], bench.runtime)[:, 0]
    for index, row in enumerate(rows):
        finding = _finding(pool, int(row), bench.plan.data.findings[0])
        shown = [_png(each[index].numpy()) for each in (images, masked, complete)]
        caption = f"{pool.names[pool.hospitals[row]]}, {finding}: the probe says {float(scores[index]):.0%}"
        yield caption, [*shown, _overlay(images[index].numpy(), maps[index].numpy())]


def _chosen(pool: Pool) -> NDArray[np.int64]:
    """The first test picture of each label of each hospital."""
    found = []
    for hospital in range(len(pool.names)):
        rows = pool.rows(TEST)
        rows = rows[pool.hospitals[rows] == hospital]
        labels = pool.labels[rows, 0]
        for mask in (labels >= 0.5, labels < 0.5, np.isnan(labels)):
            found += rows[mask][:1].tolist()
    return np.array(found, np.int64)


def _finding(pool: Pool, row: int, name: str) -> str:
    label = pool.labels[row, 0]
    return "not labelled" if np.isnan(label) else name if label >= 0.5 else f"no {name}"


def _overlay(image_HW: NDArray[np.uint8], map_SS: NDArray[np.float32]) -> str:
    """The picture, darkened, with the map over it in orange; the map's largest value is full colour."""
    map_11SS = torch.from_numpy(map_SS / map_SS.max())[None, None]
    heat_HW1 = F.interpolate(map_11SS, image_HW.shape, mode="bilinear", align_corners=False)[0, 0].numpy()[:, :, None]
    colour = np.array([255, 140, 0], np.float32)
    mixed = image_HW[:, :, None] * (0.85 - 0.45 * heat_HW1) + colour * heat_HW1 * 0.6
    return _png(mixed.clip(0, 255).astype(np.uint8))


def _png(picture: NDArray[np.uint8]) -> str:
    stream = BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")
