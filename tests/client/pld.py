"""An accountant that shares nothing with the one in client/: numerical integration of what the definitions say.

The sampled Gaussian mechanism: with chance `rate` a unit adds 1 to a sum, to which noise of deviation `noise` is added. P is the sum's
distribution with the unit, Q without.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import logsumexp, ndtr

History = Sequence[tuple[float, float, int]]  # noise, rate, steps


def renyi_epsilon(history: History, delta: float) -> float:
    """Epsilon by Renyi divergences integrated over x, minimised over real orders (Mironov 2017, proposition 3, as improved in 2004.00010)."""

    def bound(order: float) -> float:
        total = sum(steps * _renyi(noise, rate, order) for noise, rate, steps in history)
        return float(total + np.log1p(-1 / order) - (np.log(delta) + np.log(order)) / (order - 1))

    return float(minimize_scalar(bound, bounds=(1.05, 200.0), method="bounded", options={"xatol": 1e-4}).fun)


def _renyi(noise: float, rate: float, order: float) -> float:
    x = np.linspace(-30 * noise, 30 * noise + order + 2, 60_001)
    log_q = -(x**2) / (2 * noise**2) - np.log(noise * np.sqrt(2 * np.pi))
    log_ratio = _loss(x, noise, rate)
    return float((logsumexp(log_q + order * log_ratio) + np.log(x[1] - x[0])) / (order - 1))


def _loss(x: NDArray[np.float64], noise: float, rate: float) -> NDArray[np.float64]:
    shifted = (2 * x - 1) / (2 * noise**2)
    return shifted if rate == 1 else np.logaddexp(np.log1p(-rate), np.log(rate) + shifted)


def loss_epsilon(history: History, delta: float, step: float = 4e-5, size: int = 1 << 20) -> float:
    """Epsilon by the distribution of the privacy loss, on a grid, composed by FFT (Koskela et al. 2020, arXiv 1906.03049).

    Losses are rounded up, so that the result is never too small; by at most `step` for each step of the history.
    """
    return max(_one_side(history, delta, step, size, removed) for removed in (True, False))


def _one_side(history: History, delta: float, step: float, size: int, removed: bool) -> float:
    losses = np.asarray((np.arange(size) - size // 2) * step, np.float64)
    spectrum, infinite = np.ones(size // 2 + 1, complex), 0.0
    for noise, rate, steps in history:
        below = _below(losses, noise, rate, removed)
        masses = np.diff(below, prepend=0.0)
        infinite += steps * max(0.0, 1 - below[-1])
        spectrum *= np.fft.rfft(np.fft.ifftshift(masses)) ** steps
    composed = np.fft.fftshift(np.fft.irfft(spectrum, size))

    def excess(epsilon: float) -> float:
        above = losses > epsilon
        return infinite + float((composed[above] * -np.expm1(epsilon - losses[above])).sum()) - delta

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, losses[-1], xtol=1e-6))


def _below(losses: NDArray[np.float64], noise: float, rate: float, removed: bool) -> NDArray[np.float64]:
    """The chance that the loss is at most each value: of log P/Q under P, or of log Q/P under Q."""
    wanted = losses if removed else -losses
    with np.errstate(divide="ignore", invalid="ignore"):
        x = noise**2 * np.log(np.maximum(np.expm1(wanted) + rate, 0.0) / rate) + 0.5
    below: NDArray[np.float64] = ndtr(x / noise)
    if not removed:
        return 1 - below
    with_rate: NDArray[np.float64] = ndtr((x - 1) / noise)
    return (1 - rate) * below + rate * with_rate
