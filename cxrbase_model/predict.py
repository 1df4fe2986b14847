"""What a trained model says of pictures: its loss, probabilities of findings, embeddings, attention, reconstructions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cxrbase_model.augment import DEVIATION, MEAN, normalise
from cxrbase_model.classifier import Classifier
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.plan import PretrainStage
from cxrbase_model.runtime import Runtime
from cxrbase_model.seeds import generator
from cxrbase_model.state import State
from cxrbase_model.vit import gather, patchify, unpatchify

_FLAT = 1e-3  # added to a feature's deviation, so that one that is the same in all pictures stays small


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
def embed(model: Classifier, batches: Iterable[Tensor], runtime: Runtime) -> Tensor:
    """The mean of the encoder's features of uint8 pictures that come in batches [B, H, W]: [N, D], float32 on the CPU."""
    model.to(runtime.device).eval()
    means = []
    for images_BHW in batches:
        with runtime.autocast():
            features = model.encoder(patchify(normalise(images_BHW.to(runtime.device)), model.encoder.patch))
        means.append(features.float().mean(dim=1).cpu())
    return torch.cat(means)


@torch.no_grad()
def feature_statistics(model: Classifier | MaskedAutoencoder, batches: Iterable[Tensor], runtime: Runtime) -> State:
    """Mean and deviation over uint8 pictures [B, H, W], one batch at least, of each patch's features, for `Standardise`: each [N, D].

    ValueError where there are no pictures.
    """
    model.to(runtime.device).eval()
    sums, squares, count = 0.0, 0.0, 0
    for images_BHW in batches:
        with runtime.autocast():
            features = model.encoder(patchify(normalise(images_BHW.to(runtime.device)), model.encoder.patch))
        features_BND = features.double().cpu()
        sums, squares, count = (
            sums + features_BND.sum(dim=0),
            squares + features_BND.square().sum(dim=0),
            count + len(features_BND),
        )
    if count == 0:
        raise ValueError("batches: expected pictures, found none")
    mean, square = torch.as_tensor(sums / count), torch.as_tensor(squares / count)
    deviation = (square - mean.square()).clamp(min=0).sqrt() + _FLAT
    return {"standard.mean": mean.float(), "standard.deviation": deviation.float()}


@torch.no_grad()
def attention_maps(model: Classifier, images_BHW: Tensor) -> Tensor:
    """Where the query of each finding looks in uint8 pictures [B, H, W]: [B, C, S, S], S patches a side, each map's sum is 1.

    The mean over the pooling's heads. ValueError where the model does not pool by attention.
    """
    if model.pool is None:
        raise ValueError("pooling: expected attentive, found mean, which has no attention to show")
    model.to("cpu").eval()
    features = model.encoder(patchify(normalise(images_BHW), model.encoder.patch))
    queries = model.pool.queries.weight[None].expand(len(features), -1, -1)
    maps_BCN: Tensor = model.pool.attn.weights(queries, features)
    return maps_BCN.reshape(*maps_BCN.shape[:2], model.encoder.side, model.encoder.side)


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
