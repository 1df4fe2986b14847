"""Radiograph-safe augmentation, a whole batch at a time on the training device, from uint8.

One affine grid does crop, rotation and flip together, so each picture is resampled once. Every draw comes from an explicit
generator on the CPU, so that a seed gives the same batch on every device up to rounding and the noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from cxrbase_model.plan import Augmentation

MEAN, DEVIATION = 0.5056, 0.252  # of NIH ChestX-ray14 in [0, 1] (medical_mae, WACV 2023)


def normalise(images_BHW: Tensor) -> Tensor:
    """uint8 pictures [B, H, W] to float32 of about zero mean and unit deviation."""
    return (images_BHW.float() / 255 - MEAN) / DEVIATION


def draw_augmentation(
    shape: torch.Size, settings: Augmentation, generator: torch.Generator, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Everything random about the augmentation of pictures of shape [B, H, W], a row for each, for `augment`.

    Drawn apart from the pictures so that parts of a batch are augmented as the whole would be. On the CPU, but for the noise,
    which is drawn where it is used; nothing waits for the device here.
    """
    draws = {"affine": _draw_affine(shape[0], settings, generator)}
    draws["gamma"] = torch.exp(_uniform(shape[0], -settings.gamma, settings.gamma, generator))
    draws["contrast"] = 1 + _uniform(shape[0], -settings.contrast, settings.contrast, generator)
    draws["brightness"] = _uniform(shape[0], -settings.contrast, settings.contrast, generator) / 2
    if settings.noise > 0:
        draws["dose"] = _uniform(shape[0], 0.0, settings.noise, generator)
        draws["noise"] = _normal(shape, generator, torch.device(device))
    if settings.erase > 0:
        draws["erase"] = _draw_boxes(shape[0], settings, generator)
    return draws


def augment(images_BHW: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
    """uint8 pictures [B, H, W] to augmented, normalised float32 [B, H, W]; `draws` are on the same device. ValueError for other types."""
    if images_BHW.dtype != torch.uint8:
        raise ValueError(f"pictures: expected uint8 from 0 to 255, found {images_BHW.dtype}")
    images = images_BHW.float() / 255
    images = _warp(images, draws["affine"])
    images = _intensity(images, draws)
    if "erase" in draws:
        images = _erase(images, draws["erase"])
    return (images - MEAN) / DEVIATION


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _normal(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    """Normal numbers drawn on the device, from a seed that the generator on the CPU draws where that is another one."""
    if device.type != "cpu":
        seed = int(torch.randint(2**62, (), generator=generator))
        generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)


def _draw_affine(count: int, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Random resized crop (area share from `crop` to 1, aspect 3:4 to 4:3), rotation and flip as one map, [B, 2, 3]."""
    area = _uniform(count, settings.crop, 1.0, generator)
    aspect = torch.exp(_uniform(count, math.log(3 / 4), math.log(4 / 3), generator))
    width, height = (area * aspect).sqrt().clamp(max=1.0), (area / aspect).sqrt().clamp(max=1.0)
    shift_x = _uniform(count, -1, 1, generator) * (1 - width)
    shift_y = _uniform(count, -1, 1, generator) * (1 - height)
    angle = _uniform(count, -settings.rotation, settings.rotation, generator) * (math.pi / 180)
    mirror = torch.ones(count)
    if settings.flip:
        mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    rows = [cosine * width * mirror, -sine * height, shift_x, sine * width * mirror, cosine * height, shift_y]
    return torch.stack(rows, dim=1).reshape(count, 2, 3)


def _draw_boxes(count: int, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """With chance `erase`, a square of 2 to 15 % of the area: top, left and side as shares of the picture's, [B, 3]."""
    chosen = torch.rand(count, generator=generator) < settings.erase
    side = (0.02 + 0.13 * torch.rand(count, generator=generator)).sqrt()
    top = torch.rand(count, generator=generator) * (1 - side)
    left = torch.rand(count, generator=generator) * (1 - side)
    return torch.stack([top, left, side * chosen], dim=1)


def _warp(images: Tensor, affine_B23: Tensor) -> Tensor:
    grid = F.affine_grid(affine_B23, [len(images), 1, *images.shape[1:]], align_corners=False)
    return F.grid_sample(images[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]


def _intensity(images: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
    """Gamma, contrast and brightness around mid-grey, and noise: other detectors, windows and doses."""
    gamma, contrast, brightness = (draws[name][:, None, None] for name in ("gamma", "contrast", "brightness"))
    images = images.clamp(1e-4, 1).pow(gamma)
    images = (images - 0.5) * contrast + 0.5 + brightness
    if "noise" in draws:
        images = images + draws["dose"][:, None, None] * draws["noise"]
    return images.clamp(0, 1)


def _erase(images: Tensor, boxes_B3: Tensor) -> Tensor:
    """Set each picture's box to the picture's mean; a box of side 0 is none."""
    _, height, width = images.shape
    top, left, side = boxes_B3[:, :, None, None].unbind(dim=1)
    y = torch.arange(height, device=images.device)[None, :, None] / height
    x = torch.arange(width, device=images.device)[None, None, :] / width
    inside = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    return torch.where(inside, images.mean(dim=(1, 2), keepdim=True), images)
