"""Kernel densities on the sphere and on tori, the baseline of ``earth.py`` and ``angles.py``.

This module is not a recipe. The kernels are von Mises-Fisher densities on the sphere, and products of von Mises
densities on a torus. Both are Gaussians of the ambient space, which scikit-learn sums, with another normalisation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import i0e, logsumexp
from sklearn.neighbors import KernelDensity

SHARES = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3)  # of the uniform density, so that a place far from all has a density


@dataclass(frozen=True)
class Kernels:
    """A kernel density, mixed with the uniform one.

    Attributes:
        width: the width of the kernels, in radians.
        share: the share of the uniform density.
        log_prob: computes log-densities ``[N]`` of points ``[N, n]``.
    """

    width: float
    share: float
    log_prob: Callable[[np.ndarray], np.ndarray]


def sphere(train: np.ndarray, validation: np.ndarray) -> Kernels:
    """Fits kernels on unit vectors ``[N, 3]``; width and share are those that are best for the validation part."""
    integral = lambda kappa: math.log(2 * math.pi / kappa) + math.log(-math.expm1(-2 * kappa))
    return _fitted(train, validation, integral, math.log(4 * math.pi))


def torus(train: np.ndarray, validation: np.ndarray) -> Kernels:
    """Fits kernels on angles ``[N, D]`` in radians; width and share are those that are best for the validation part."""
    dim = train.shape[1]
    integral = lambda kappa: dim * math.log(2 * math.pi * i0e(kappa))
    found = _fitted(_circles(train), _circles(validation), integral, dim * math.log(2 * math.pi))
    return Kernels(found.width, found.share, lambda x: found.log_prob(_circles(x)))


def _circles(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.cos(x), np.sin(x)], 1)


def _fitted(train: np.ndarray, validation: np.ndarray, integral, log_volume: float) -> Kernels:
    """Chooses the width, then the share. ``integral`` is the logarithm of that of exp(kappa (<x, y> - 1))."""

    def kernels(width: float):
        model = KernelDensity(bandwidth=width, rtol=1e-4).fit(train)
        # |x - y|^2 / 2 = 1 - <x, y>, so the sums are the same, and only the normalisation differs.
        shift = train.shape[1] / 2 * math.log(2 * math.pi * width**2) - integral(width**-2)
        return lambda x: model.score_samples(x) + shift

    def mixed(scores: np.ndarray, share: float) -> np.ndarray:
        return logsumexp([scores + math.log1p(-share), np.full_like(scores, math.log(share) - log_volume)], axis=0)

    seen = {width: kernels(width)(validation) for width in np.geomspace(0.003, 0.6, 14)}
    width, share = max(
        ((width, share) for width in seen for share in SHARES), key=lambda pair: mixed(seen[pair[0]], pair[1]).mean()
    )
    chosen = kernels(width)
    return Kernels(float(width), share, lambda x: mixed(chosen(x), share))
