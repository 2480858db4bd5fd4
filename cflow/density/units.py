"""Where the columns of a table lie and how far they spread, each row as often as its weight says."""

from __future__ import annotations

import math

import numpy as np
import torch

from cflow.bijections import Arcsinh, Map, Standardise
from cflow.bijections.standardise import few_decide
from cflow.density.inputs import warn

__all__ = ["tails", "units_of"]

EDGE = 5.0  # deviations within which a robust unit is left as it is, but for some hundredths


def tails(features: int) -> tuple[Map, ...]:
    r"""Draws in what lies far from the middle: :math:`B \operatorname{arsinh}(x / B)` with B of five deviations."""
    return Standardise(features, 0.0, EDGE), Arcsinh(features), Standardise(features, 0.0, 1 / EDGE)


def units_of(values: np.ndarray, weights: np.ndarray | None, robust: bool, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Measures mean and standard deviation of every column ``[N, D]``, or median and half a distance of quantiles.

    Warns where a few rows decide a standard deviation. Both are those of a normal; a column of which two thirds are
    equal has no such distance, and keeps its standard deviation.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # looked for below
        loc = np.average(values, 0, weights)
        # A power of two leaves every digit as it is, and keeps squares within the range of float64.
        size = np.exp2(np.floor(np.log2(np.abs(values - loc).max(0, initial=np.finfo(float).tiny))))
        scale = size * np.sqrt(np.average(((values - loc) / size) ** 2, 0, weights))
    wild = np.flatnonzero(~(np.isfinite(loc) & (scale > 0) & (scale < np.inf)))
    if len(wild):
        raise ValueError(
            f"{where}.fit: columns {wild[:5].tolist()} have no mean and deviation in float64, which ends at 1.8e308; "
            f"divide their values by a number of their size."
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
            f"{where}.fit: a few rows decide the scale of columns {wrong[:5].tolist()}, up to "
            f"{(scale / width)[wrong].max():.3g} times that of the others, which the flow then sees as one point; look "
            f"at these rows, or pass standardise='robust' (median and quantiles)."
        )
    return loc, scale


def _quantile(values: np.ndarray, weights: np.ndarray | None, share: float) -> np.ndarray:
    """Gives the value of every column below which this share of the weights lies."""
    order = np.argsort(values, 0)
    heights = np.cumsum(np.ones(len(values))[order] if weights is None else weights[order], 0)
    at = (heights < share * heights[-1]).sum(0)
    return np.take_along_axis(np.take_along_axis(values, order, 0), at[None], 0)[0]
