"""How much of a picture an attacker has: peak signal-to-noise ratio and structural similarity, after the fairest pairing.

Pictures are float32 [B, H, W] from 0 (black) to 1 (white).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

_WINDOW, _SIGMA = 11, 1.5  # of the Gaussian window of SSIM
_C1, _C2 = 0.01**2, 0.03**2  # its constants for pictures from 0 to 1


@dataclass(frozen=True)
class Likeness:
    """Of one recovered picture to its original. psnr: dB, at most 80. ssim: at most 1, which is the same picture."""

    psnr: float
    ssim: float


def psnr(one_HW: Tensor, other_HW: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, at most 80 (a mean squared error of 1e-8)."""
    error = float((one_HW - other_HW).double().square().mean())
    return -10 * math.log10(max(error, 1e-8))


def ssim(one_HW: Tensor, other_HW: Tensor) -> float:
    """Mean structural similarity (Wang et al. 2004, doi 10.1109/TIP.2003.819861) by an 11-pixel Gaussian window, no padding.

    ValueError for pictures smaller than the window.
    """
    if min(one_HW.shape) < _WINDOW:
        raise ValueError(f"ssim: expected sides of at least {_WINDOW} pixels, found {tuple(one_HW.shape)}")
    place = torch.arange(_WINDOW, dtype=torch.float64) - (_WINDOW - 1) / 2
    line = torch.exp(-place.square() / (2 * _SIGMA**2))
    window = (line[:, None] * line[None, :] / line.sum() ** 2)[None, None]

    def blurred(picture: Tensor) -> Tensor:
        return F.conv2d(picture[None, None], window)[0, 0]

    x, y = one_HW.double(), other_HW.double()
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    both = blurred(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + _C1) * (2 * both + _C2)
    return float((top / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))).mean())


def paired(originals_BHW: Tensor, found_BHW: Tensor) -> tuple[Tensor, list[Likeness]]:
    """What was found, in the order of the originals that it fits best, and how like them it is.

    A batch has no order, so an attacker is not asked for one: the pairing is the best of all. There may be fewer pictures found
    than originals (a mean of many hospitals): each original is then compared with the one that is most like it.
    """
    scores = torch.tensor([[psnr(one, other) for other in found_BHW] for one in originals_BHW])
    if len(found_BHW) < len(originals_BHW):
        order = scores.argmax(dim=1)
    else:
        _, columns = linear_sum_assignment(-scores.numpy())
        order = torch.as_tensor(columns)
    ordered = found_BHW[order]
    return ordered, [Likeness(psnr(a, b), ssim(a, b)) for a, b in zip(originals_BHW, ordered, strict=True)]
