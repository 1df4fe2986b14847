"""What is audited, a stage of a plan: all that tests and attacks need to know of how fine-tuning and pretraining differ.

Shapes as in `vit.py` and `mae.py`. `facts` of a step are what it is computed from besides pictures: labels, or masks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxrbase_model.augment import normalise
from cxrbase_model.classifier import Classifier, build_classifier
from cxrbase_model.dpsgd import Protection
from cxrbase_model.engine import LocalResult, Progress, finetune, pretrain
from cxrbase_model.losses import classification_costs, known_labels
from cxrbase_model.mae import MaskedAutoencoder, build_autoencoder
from cxrbase_model.parallel import Rows
from cxrbase_model.plan import FinetuneStage, Plan, PretrainStage
from cxrbase_model.runtime import Runtime
from cxrbase_model.seeds import generator
from cxrbase_model.vit import gather, patchify, unpatchify
from sim.audit.sample import Pictures

RUNTIME = Runtime(torch.device("cpu"))
Order = Iterable[NDArray[np.int64]]  # the rows of each step

_LOOKS = 8  # masks through which an attacker looks at a picture; those of its training it cannot tell


@dataclass(frozen=True)
class Finetuning:
    """A fine-tuning stage; an attacker is granted the labels."""

    plan: Plan
    stage: FinetuneStage

    @property
    def layer_decay(self) -> float:
        """Factor of the learning rate from each block to the one below."""
        return self.stage.layer_decay

    def built(self) -> Classifier:
        """The model before its training."""
        return build_classifier(self.plan, self.stage)

    def facts(self, data: Pictures, draws: torch.Generator) -> Rows:
        """The labels of a step."""
        return {"targets": torch.from_numpy(data.labels)}

    def costs(self, model: Any, pictures_BHW: Tensor, facts: Rows) -> Tensor:
        """What each label of normalised pictures costs, [B, C]."""
        return classification_costs(model(pictures_BHW), facts["targets"], None, self.stage.loss)

    def divisor(self, facts: Rows) -> Tensor:
        """What the sum of a step's costs is divided by."""
        return known_labels(facts["targets"])

    def losses(self, model: Any, data: Pictures) -> Tensor:
        """The mean cost of each picture's known labels, float64 [N], with its graph where one is kept."""
        facts = self.facts(data, torch.Generator())
        costs = self.costs(model, normalise(torch.from_numpy(data.images)), facts)
        return costs.double().sum(dim=1) / torch.isfinite(facts["targets"]).sum(dim=1).clamp(min=1)

    def confidence(self, losses_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """About normal numbers of losses, for LiRA: the log of p / (1 - p) for p = exp(-loss)."""
        losses = losses_N.clip(1e-12, 500)
        return np.asarray(-losses - np.log(-np.expm1(-losses)))

    def canaries(self, data: Pictures, rng: np.random.Generator) -> Pictures:
        """Pictures with labels drawn at random: nothing but the picture itself tells them."""
        return Pictures(data.images, rng.integers(0, 2, data.labels.shape).astype(np.float32))

    def trained(
        self, model: Any, data: Pictures, order: Order, progress: Progress, seed: int,
        moments: Mapping[str, Tensor] | None, protection: Protection | None,
    ) -> LocalResult:  # fmt: skip
        """The engine's training by these rows."""
        steps = ((torch.from_numpy(data.images[rows]), torch.from_numpy(data.labels[rows])) for rows in order)
        weights = torch.ones(len(self.plan.data.findings))
        return finetune(model, steps, self.stage, weights, progress, seed, RUNTIME, moments, None, protection)


@dataclass(frozen=True)
class Pretraining:
    """A pretraining stage that predicts pixels, with one mask a picture in a step."""

    plan: Plan
    stage: PretrainStage
    layer_decay = 1.0

    def built(self) -> MaskedAutoencoder:
        """The model before its training."""
        return build_autoencoder(self.plan)

    def facts(self, data: Pictures, draws: torch.Generator) -> Rows:
        """The masks of a step, drawn as the engine draws them."""
        return self._masks(self.built(), len(data), draws)

    def costs(self, model: Any, pictures_BHW: Tensor, facts: Rows) -> Tensor:
        """What each mask of normalised pictures costs, [E]."""
        costs: Tensor = model(pictures_BHW, facts["visible"], facts["hidden"], self.stage.normalize_targets)
        return costs

    def divisor(self, facts: Rows) -> Tensor:
        """What the sum of a step's costs is divided by."""
        return torch.tensor(float(len(facts["visible"])))

    def losses(self, model: Any, data: Pictures) -> Tensor:
        """The mean cost of each picture over some masks, the same for all, float64 [N], with its graph where one is kept."""
        looks = self._masks(model, _LOOKS, generator(0, "audit", "looks"))
        facts = {name: masks.repeat(len(data), 1) for name, masks in looks.items()}
        costs = self.costs(model, normalise(torch.from_numpy(data.images)), facts)
        return costs.double().reshape(len(data), _LOOKS).mean(dim=1)

    def confidence(self, losses_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """About normal numbers of losses, for LiRA: minus their log."""
        return np.asarray(-np.log(losses_N.clip(1e-12)))

    def canaries(self, data: Pictures, rng: np.random.Generator) -> Pictures:
        """Pictures whose patches lie in an order of their own: no other picture tells what is hidden."""
        patch = self.plan.model.patch_size
        tiles_BNP = patchify(torch.from_numpy(data.images), patch)
        order = torch.from_numpy(rng.random(tiles_BNP.shape[:2]).argsort(axis=1))
        return Pictures(unpatchify(gather(tiles_BNP, order), patch).numpy(), data.labels)

    def trained(
        self, model: Any, data: Pictures, order: Order, progress: Progress, seed: int,
        moments: Mapping[str, Tensor] | None, protection: Protection | None,
    ) -> LocalResult:  # fmt: skip
        """The engine's training by these rows."""
        steps = (torch.from_numpy(data.images[rows]) for rows in order)
        return pretrain(model, steps, self.stage, progress, seed, RUNTIME, moments, None, protection)

    def _masks(self, model: Any, count: int, draws: torch.Generator) -> Rows:
        visible, hidden = model.random_masking(count, self.stage.mask_ratio, draws)
        return {"visible": visible, "hidden": hidden[:, : max(1, round(self.stage.decode * hidden.shape[1]))]}


Subject = Finetuning | Pretraining


def with_positions(subject: Subject, positions: str) -> Subject:
    """The same stage of a model with fixed or learned positions."""
    model = dataclasses.replace(subject.plan.model, positions=positions)
    return dataclasses.replace(subject, plan=dataclasses.replace(subject.plan, model=model))
