"""The local loop: batches in, trained weights out. Reads top to bottom; knows no Flower, no DICOM and no hospital."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cxrbase_model.augment import DEVIATION, MEAN, augment, normalise
from cxrbase_model.classifier import Classifier, masked_bce
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.optim import adamw, learning_rate, load_moments, moments_of, parameter_groups, set_rate
from cxrbase_model.plan import FinetuneStage, PretrainStage
from cxrbase_model.seeds import generator
from cxrbase_model.state import State
from cxrbase_model.vit import gather, unpatchify

CHECK_EVERY = 20  # steps between looks at the loss: each look waits for the device


class TrainingDiverged(ArithmeticError):
    """The loss was not finite; the weights are those of the last step whose loss was."""


@dataclass(frozen=True)
class Runtime:
    """Where and how to compute; `precision` is float32, or bf16 for autocast to bfloat16."""

    device: torch.device
    precision: str = "float32"

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context of a forward pass."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


@dataclass(frozen=True)
class Progress:
    """Where this hospital's steps of a round lie in its steps of the whole stage."""

    first_step: int
    total_steps: int


@dataclass(frozen=True)
class LocalResult:
    """What local training did; `loss` is the mean over all examples seen, `moments` are the optimizer's where they are kept."""

    steps: int
    examples: int
    loss: float
    seconds: float
    moments: State = field(default_factory=dict)


def pretrain(
    model: MaskedAutoencoder,
    batches: Iterable[Tensor],
    stage: PretrainStage,
    progress: Progress,
    seed: int,
    runtime: Runtime,
    moments: Mapping[str, Tensor] | None = None,
) -> LocalResult:
    """Train on uint8 pictures [B, H, W]; TrainingDiverged where the loss is not finite.

    `moments` are those of an earlier `LocalResult` of the same stage; ValueError where they are not this model's.
    """
    draws, masks = generator(seed, "augmentation"), generator(seed, "masks")

    def loss_of(images_BHW: Tensor) -> Tensor:
        images = augment(images_BHW.to(runtime.device, non_blocking=True), stage.augmentation, draws)
        visible, hidden = model.random_masking(len(images), stage.mask_ratio, masks, runtime.device)
        loss: Tensor = model(images, visible, hidden, stage.normalize_targets).mean()
        return loss

    groups = parameter_groups(model, stage.optimizer.weight_decay, 1.0, len(model.encoder.blocks))
    steps = ((len(images), lambda images=images: loss_of(images)) for images in batches)
    return _train(model, steps, groups, stage, progress, seed, runtime, moments)


def finetune(
    model: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    stage: FinetuneStage,
    positive_weights_C: Tensor,
    progress: Progress,
    seed: int,
    runtime: Runtime,
    moments: Mapping[str, Tensor] | None = None,
) -> LocalResult:
    """Train on uint8 pictures [B, H, W] and targets [B, C], NaN where unknown; TrainingDiverged as in `pretrain`."""
    draws = generator(seed, "augmentation")
    weights = positive_weights_C.to(runtime.device)

    def loss_of(images_BHW: Tensor, targets_BC: Tensor) -> Tensor:
        images = augment(images_BHW.to(runtime.device, non_blocking=True), stage.augmentation, draws)
        return masked_bce(model(images), targets_BC.to(runtime.device, non_blocking=True), weights)

    groups = parameter_groups(model, stage.optimizer.weight_decay, stage.layer_decay, len(model.encoder.blocks))
    steps = ((len(pair[0]), lambda pair=pair: loss_of(*pair)) for pair in batches)
    return _train(model, steps, groups, stage, progress, seed, runtime, moments)


def _train(
    model: nn.Module,
    batches: Iterable[tuple[int, Callable[[], Tensor]]],
    groups: list[dict[str, object]],
    stage: PretrainStage | FinetuneStage,
    progress: Progress,
    seed: int,
    runtime: Runtime,
    moments: Mapping[str, Tensor] | None,
) -> LocalResult:
    """The loop itself: schedule, forward, backward, step."""
    started = time.monotonic()
    model.to(runtime.device).train()
    optimizer = adamw(groups, stage.optimizer, runtime.device)
    if moments:
        load_moments(model, optimizer, moments)
    total, examples, steps = torch.zeros((), dtype=torch.float64, device=runtime.device), 0, 0
    with torch.random.fork_rng(devices=[runtime.device] if runtime.device.type == "cuda" else []):
        torch.manual_seed(seed)  # stochastic depth draws from torch's global generator
        for count, loss_of in batches:
            rate = learning_rate(progress.first_step + steps, progress.total_steps, stage.optimizer, stage.batch_size)
            set_rate(optimizer, rate)
            with runtime.autocast():
                loss = loss_of()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own signature has no types
            optimizer.found_inf = (~torch.isfinite(loss.detach())).float()  # type: ignore[attr-defined]  # skips the step on the device
            if stage.optimizer.clip_grad is not None:
                nn.utils.clip_grad_norm_(model.parameters(), stage.optimizer.clip_grad)
            optimizer.step()
            total, examples, steps = total + loss.detach().double() * count, examples + count, steps + 1
            if steps % CHECK_EVERY == 0:
                _check(total)
    _check(total)
    if steps == 0:
        raise ValueError("batches: expected at least one batch, found none")
    kept = moments_of(model, optimizer) if stage.optimizer.state == "keep" else {}
    return LocalResult(steps, examples, float(total) / examples, time.monotonic() - started, kept)


def _check(total: Tensor) -> None:
    if not bool(torch.isfinite(total)):
        raise TrainingDiverged("the loss is not finite")


@torch.no_grad()
def pretrain_loss(
    model: MaskedAutoencoder, batches: Iterable[Tensor], stage: PretrainStage, seed: int, runtime: Runtime
) -> float:
    """The mean loss over uint8 pictures [B, H, W] without augmentation, with masks that depend on the seed alone."""
    model.to(runtime.device).eval()
    masks, total, count = generator(seed, "masks"), 0.0, 0
    for images_BHW in batches:
        visible, hidden = model.random_masking(len(images_BHW), stage.mask_ratio, masks, runtime.device)
        with runtime.autocast():
            losses = model(normalise(images_BHW.to(runtime.device)), visible, hidden, stage.normalize_targets)
        total, count = total + float(losses.sum()), count + len(images_BHW)
    return total / count


@torch.no_grad()
def predict(model: Classifier, batches: Iterable[Tensor], runtime: Runtime) -> Tensor:
    """Probabilities [N, C], float32 on the CPU, of uint8 pictures that come in batches [B, H, W]."""
    model.to(runtime.device).eval()
    scores = []
    for images_BHW in batches:
        with runtime.autocast():
            logits = model(normalise(images_BHW.to(runtime.device)))
        scores.append(torch.sigmoid(logits.float()).cpu())
    return torch.cat(scores)


@torch.no_grad()
def reconstruct(model: MaskedAutoencoder, images_BHW: Tensor, stage: PretrainStage, seed: int) -> tuple[Tensor, Tensor]:
    """What the model sees of uint8 pictures [B, H, W] and what it makes of them, both uint8 [B, H, W], on the CPU.

    Where the stage's targets are normalised, predictions are given the brightness and contrast of the patches they stand for;
    visible patches are shown as they are.
    """
    model.to("cpu").eval()
    images = normalise(images_BHW)
    visible, hidden = model.random_masking(len(images), stage.mask_ratio, generator(seed, "masks"))
    patches = model.patchify(images)
    prediction = model.forward_decoder(model.forward_encoder(patches, visible), visible, hidden)
    target = gather(patches, hidden)
    if stage.normalize_targets:
        prediction = prediction * (target.var(dim=2, keepdim=True) + 1e-6).sqrt() + target.mean(dim=2, keepdim=True)
    index = hidden[:, :, None].expand(-1, -1, patches.shape[2])
    masked = patches.scatter(1, index, torch.zeros_like(prediction))
    complete = patches.scatter(1, index, prediction)
    return _to_uint8(masked, model), _to_uint8(complete, model)


def _to_uint8(patches_BNP: Tensor, model: MaskedAutoencoder) -> Tensor:
    images = unpatchify(patches_BNP, model.encoder.patch) * DEVIATION + MEAN
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
