"""Augmentation keeps what it must and draws the rest from its seed."""

from __future__ import annotations

import pytest
import torch

from cxrbase_model.augment import DEVIATION, MEAN, augment, draw_augmentation, normalise
from cxrbase_model.plan import Augmentation
from cxrbase_model.seeds import generator

STILL = Augmentation(crop=1.0, rotation=0.0, contrast=0.0, gamma=0.0, noise=0.0, erase=0.0)


def augmented(images: torch.Tensor, settings: Augmentation, draws: torch.Generator) -> torch.Tensor:
    return augment(images, draw_augmentation(images.shape, settings, draws))


def pictures(count: int = 4) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 24, 24), dtype=torch.uint8, generator=draw)


def test_normalising_is_reversible() -> None:
    images = pictures()
    back = (normalise(images) * DEVIATION + MEAN) * 255
    assert torch.equal(back.round().to(torch.uint8), images)


def test_with_every_knob_at_rest_a_full_crop_of_aspect_one_changes_nothing_much() -> None:
    image = torch.full((2, 24, 24), 90, dtype=torch.uint8)
    torch.testing.assert_close(augmented(image, STILL, generator(0, "a")), normalise(image), atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_batch_and_another_seed_another() -> None:
    settings = Augmentation(erase=0.5)
    first, again, other = (augmented(pictures(), settings, generator(seed, "a")) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_values_stay_in_the_range_of_a_picture() -> None:
    wild = Augmentation(contrast=0.9, gamma=0.9, noise=0.5, erase=1.0, rotation=45, crop=0.05)
    values = augmented(pictures(16), wild, generator(3, "a")) * DEVIATION + MEAN
    assert float(values.min()) >= -1e-5
    assert float(values.max()) <= 1 + 1e-5


@pytest.mark.parametrize("flip", [False, True])
def test_left_and_right_are_only_swapped_when_asked(flip: bool) -> None:
    image = torch.zeros(64, 24, 24, dtype=torch.uint8)
    image[:, :, 18:] = 255
    settings = Augmentation(crop=1.0, rotation=0.0, contrast=0.0, gamma=0.0, noise=0.0, flip=flip)
    out = augmented(image, settings, generator(0, "a"))
    swapped = (out[:, :, 0] > out[:, :, -1]).any(dim=1)
    assert bool(swapped.any()) == flip
    assert not bool(swapped.all())


def test_an_erased_rectangle_is_of_the_stated_size_and_holds_the_mean() -> None:
    images = pictures(32)
    erased = Augmentation(crop=1.0, rotation=0.0, contrast=0.0, gamma=0.0, noise=0.0, erase=1.0)
    before, after = (augmented(images, s, generator(5, "a")) for s in (STILL, erased))
    share = (before != after).float().mean(dim=(1, 2))
    assert float(share.min()) > 0.0
    assert float(share.max()) < 0.2
