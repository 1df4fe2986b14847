"""What a run's finished models make of public pictures, for its report: reconstructions, and where a classifier looks.

The server has no pictures of hospitals; a simulation hands in made-up ones, a consortium may own some.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from cxrbase_model.classifier import build_classifier
from cxrbase_model.mae import build_autoencoder
from cxrbase_model.plan import FinetuneStage, PretrainStage
from cxrbase_model.predict import predict, reconstruct
from cxrbase_model.relevance import relevance_maps
from cxrbase_model.runtime import Runtime
from cxrbase_model.state import load_state
from server.store import RunStore

_SHOWN = 3  # findings of a picture
_COLOUR = np.array([255, 140, 0], np.float32)

Triple = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]  # original, masked, reconstruction


@dataclass(frozen=True)
class Examples:
    """Public pictures, uint8 [N, S, S], and what is known to be in each."""

    pictures: NDArray[np.uint8]
    captions: tuple[str, ...]

    def keep(self, file: Path) -> None:
        """Write them to a file."""
        np.savez(file, pictures=self.pictures, captions=np.array(self.captions))

    @classmethod
    def kept(cls, file: Path) -> Examples | None:
        """Those of a file, None where it is not there."""
        if not file.exists():
            return None
        with np.load(file, allow_pickle=False) as found:
            return cls(found["pictures"], tuple(found["captions"].tolist()))


@dataclass(frozen=True)
class Look:
    """A picture, uint8 [S, S], what is known to be in it, and the findings that the model holds likeliest, first the likeliest: name, probability, and the picture
    with what counts for the finding in colour, uint8 [S, S, 3].
    """

    picture: NDArray[np.uint8]
    caption: str
    findings: list[tuple[str, float, NDArray[np.uint8]]]


def reconstructions(store: RunStore, stage_name: str, pictures: NDArray[np.uint8]) -> list[Triple]:
    """Each picture, what the encoder sees of it, and what a finished pretraining makes of that; none of one that predicts features."""
    plan, stage = store.plan, store.plan.stage(stage_name)
    if not isinstance(stage, PretrainStage) or stage.objective != "mae":
        return []
    model = build_autoencoder(plan)
    load_state(model, store.stage_state(stage_name))
    masked, complete = reconstruct(model, torch.from_numpy(pictures), stage, plan.seed)
    return list(zip(pictures, masked.numpy(), complete.numpy(), strict=True))


def looks(store: RunStore, stage_name: str, examples: Examples) -> list[Look]:
    """Where a finished classifier looks in each picture."""
    plan, stage = store.plan, store.plan.stage(stage_name)
    assert isinstance(stage, FinetuneStage)  # the caller names one
    model, images = build_classifier(plan, stage), torch.from_numpy(examples.pictures)
    load_state(model, store.stage_state(stage_name))
    scores = predict(model, [images], Runtime(torch.device("cpu"))).numpy()
    maps = relevance_maps(model, images).numpy()
    found = []
    for index, picture in enumerate(examples.pictures):
        chances, own = scores[index], maps[index]
        likeliest = [(plan.data.findings[c], float(chances[c]), overlay(picture, own[c])) for c in _likeliest(chances)]
        found.append(Look(picture, examples.captions[index], likeliest))
    return found


def overlay(image_HW: NDArray[np.uint8], map_SS: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The picture, darkened, with the map over it in orange, uint8 [H, W, 3]; the map's largest value is full colour."""
    map_11SS = torch.from_numpy(map_SS / max(map_SS.max(), 1e-12))[None, None]
    heat_HW1 = F.interpolate(map_11SS, image_HW.shape, mode="bilinear", align_corners=False)[0, 0].numpy()[:, :, None]
    mixed: NDArray[np.float32] = image_HW[:, :, None] * (0.85 - 0.45 * heat_HW1) + _COLOUR * heat_HW1 * 0.6
    return mixed.clip(0, 255).astype(np.uint8)


def _likeliest(chances_C: NDArray[np.float32]) -> Sequence[int]:
    found: list[int] = np.argsort(-chances_C, kind="stable")[:_SHOWN].tolist()
    return found
