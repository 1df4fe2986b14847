"""Radiograph-safe augmentation, a whole batch at a time on the training device, from uint8.

One affine grid does crop, rotation and flip together, so each picture is resampled once. Every draw comes from an explicit
generator on the CPU, so that a seed gives the same batch on every device up to rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cxrbase_model.plan import Augmentation

MEAN, DEVIATION = 0.5056, 0.252  # of NIH ChestX-ray14 in [0, 1] (medical_mae, WACV 2023)


def normalise(images_BHW: Tensor) -> Tensor:
    """uint8 pictures [B, H, W] to float32 of about zero mean and unit deviation."""
    return (images_BHW.float() / 255 - MEAN) / DEVIATION


def augment(images_BHW: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """uint8 pictures [B, H, W] to augmented, normalised float32 [B, H, W] on the same device."""
    images = images_BHW.float() / 255
    images = _warp(images, settings, generator)
    images = _intensity(images, settings, generator)
    images = _erase(images, settings, generator)
    return (images - MEAN) / DEVIATION


def _uniform(count: int, low: float, high: float, generator: torch.Generator, device: torch.device) -> Tensor:
    return (low + (high - low) * torch.rand(count, generator=generator)).to(device)


def _warp(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Random resized crop (area share from `crop` to 1, aspect 3:4 to 4:3), rotation and flip in one resampling."""
    count, device = len(images), images.device
    area = _uniform(count, settings.crop, 1.0, generator, device)
    aspect = torch.exp(_uniform(count, math.log(3 / 4), math.log(4 / 3), generator, device))
    width, height = (area * aspect).sqrt().clamp(max=1.0), (area / aspect).sqrt().clamp(max=1.0)
    shift_x = _uniform(count, -1, 1, generator, device) * (1 - width)
    shift_y = _uniform(count, -1, 1, generator, device) * (1 - height)
    angle = _uniform(count, -settings.rotation, settings.rotation, generator, device) * (math.pi / 180)
    mirror = torch.ones(count, device=device)
    if settings.flip:
        mirror = torch.where(torch.rand(count, generator=generator).to(device) < 0.5, -1.0, 1.0)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    rows = [cosine * width * mirror, -sine * height, shift_x, sine * width * mirror, cosine * height, shift_y]
    theta = torch.stack(rows, dim=1).reshape(count, 2, 3)
    grid = F.affine_grid(theta, [count, 1, *images.shape[1:]], align_corners=False)
    return F.grid_sample(images[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]


def _intensity(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Gamma, contrast and brightness around mid-grey, and noise: other detectors, windows and doses."""
    count, device = len(images), images.device
    gamma = torch.exp(_uniform(count, -settings.gamma, settings.gamma, generator, device))[:, None, None]
    contrast = 1 + _uniform(count, -settings.contrast, settings.contrast, generator, device)[:, None, None]
    brightness = _uniform(count, -settings.contrast, settings.contrast, generator, device)[:, None, None] / 2
    images = images.clamp(1e-4, 1).pow(gamma)
    images = (images - 0.5) * contrast + 0.5 + brightness
    if settings.noise > 0:
        deviation = _uniform(count, 0.0, settings.noise, generator, device)[:, None, None]
        images = images + deviation * torch.randn(images.shape, generator=generator).to(device)
    return images.clamp(0, 1)


def _erase(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """With chance `erase`, a rectangle of 2 to 15 % of the area is set to the picture's mean."""
    if settings.erase == 0:
        return images
    count, height, width = images.shape
    chosen = torch.rand(count, generator=generator) < settings.erase
    share = (0.02 + 0.13 * torch.rand(count, generator=generator)).sqrt()
    top, left = (
        torch.rand(count, generator=generator) * (1 - share),
        torch.rand(count, generator=generator) * (1 - share),
    )
    y, x = torch.arange(height)[None, :, None] / height, torch.arange(width)[None, None, :] / width
    rows = (y >= top[:, None, None]) & (y < (top + share)[:, None, None])
    columns = (x >= left[:, None, None]) & (x < (left + share)[:, None, None])
    inside = rows & columns & chosen[:, None, None]
    return torch.where(inside.to(images.device), images.mean(dim=(1, 2), keepdim=True), images)
