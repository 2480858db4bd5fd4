"""Location and scale of the columns of a table, with weights."""

from __future__ import annotations

import math

import numpy as np
import torch

from cflow.bijections import Arcsinh, Map, Standardise
from cflow.bijections.standardise import few_decide
from cflow.density.inputs import warn

__all__ = ["tails", "units_of"]

EDGE = 5.0  # deviations; values well inside hardly change, values far outside enter by their logarithm


def tails(features: int) -> tuple[Map, ...]:
    r"""Returns maps that move far values towards the middle.

    .. math:: z = B \operatorname{arsinh}(x / B), \qquad B = 5

    Values well inside of B deviations hardly change, values far outside enter by their logarithm.

    Args:
        features: the number of columns, which have deviation 1.

    Example:
        >>> from cflow.bijections import Compose
        >>> Compose(*tails(1)).encode(torch.tensor([[1.0], [1000.0]]))[0].flatten().round(decimals=1)
        tensor([ 1., 30.])
    """
    return Standardise(features, 0.0, EDGE), Arcsinh(features), Standardise(features, 0.0, 1 / EDGE)


def units_of(values: np.ndarray, weights: np.ndarray | None, robust: bool, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Computes the mean and standard deviation of every column ``[N, D]``, or (robust) median and quantile distance.

    The robust scale is half the distance between two quantiles, chosen such that it equals the standard deviation of a
    normal distribution. Where it is zero (two thirds of the values are equal), the standard deviation is kept. Warns
    if a few rows decide the standard deviation.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        loc = np.average(values, 0, weights)
        # A power of two leaves every digit as it is, and keeps squares within the range of float64.
        size = np.exp2(np.floor(np.log2(np.abs(values - loc).max(0, initial=np.finfo(float).tiny))))
        scale = size * np.sqrt(np.average(((values - loc) / size) ** 2, 0, weights))
    wild = np.flatnonzero(~(np.isfinite(loc) & (scale > 0) & (scale < np.inf)))
    if len(wild):
        raise ValueError(
            f"{where}.fit: columns {wild[:5].tolist()} are too large or too small for a deviation in float64; divide "
            f"them by a typical value."
        )
    fourth = torch.from_numpy(np.average(((values - loc) / scale) ** 4, 0, weights))
    few = few_decide(fourth, len(values)).numpy()
    if not robust and not few.any():
        return loc, scale
    side = 0.5 * math.erfc(1 / math.sqrt(2))
    low, middle, high = (_quantile(values, weights, share) for share in (side, 0.5, 1 - side))
    width = (high - low) / 2
    if robust:
        return middle, np.where(width > 0, width, scale)
    wrong = np.flatnonzero(few & (width > 0) & (scale > 5 * width))
    if len(wrong):
        warn(
            f"{where}.fit: a few rows decide the scale of columns {wrong[:5].tolist()}, which is up to "
            f"{(scale / width)[wrong].max():.3g} times that of the other rows; check these rows, or pass "
            f"standardise='robust' (median and quantiles)."
        )
    return loc, scale


def _quantile(values: np.ndarray, weights: np.ndarray | None, share: float) -> np.ndarray:
    """Returns the value of every column below which this share of the weights lies."""
    order = np.argsort(values, 0)
    heights = np.cumsum(np.ones(len(values))[order] if weights is None else weights[order], 0)
    at = (heights < share * heights[-1]).sum(0)
    return np.take_along_axis(np.take_along_axis(values, order, 0), at[None], 0)[0]
