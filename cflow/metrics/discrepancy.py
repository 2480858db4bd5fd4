"""Discrepancies from mean pairwise kernels: the energy distance and the maximum mean discrepancy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.metrics.estimate import Estimate, two_samples

__all__ = ["energy_distance", "mmd"]

PAIRS_AT_ONCE = 1 << 20  # 8 MB of float64


def energy_distance(x: Tensor, y: Tensor, *, empirical: bool = False) -> Estimate:
    r"""Estimates the energy distance between two distributions from a sample of each.

    .. math:: 2\, \mathbb E \lVert X - Y \rVert - \mathbb E \lVert X - X' \rVert - \mathbb E \lVert Y - Y' \rVert

    It is zero only for equal distributions, and has no scale to choose. The estimate is the unbiased U-statistic (only
    pairs of different samples), so it may be negative if the distributions are equal. (Some papers call its square root
    the energy distance.)

    Args:
        x: ``[N, D]``, a sample of the first distribution.
        y: ``[M, D]``, a sample of the second.
        empirical: whether to return the distance between the two samples themselves, from all pairs (the V-statistic).
            It is never negative, so ratios are meaningful, but it is larger for smaller samples: compare it only
            between samples of one size.

    Cost: (N + M)^2 distances, in blocks of 8 MB.

    Raises:
        ValueError: if the samples are not ``[N, D]`` and ``[M, D]``, have fewer than 4 rows, or have values that are
            not finite.

    Source: Székely and Rizzo, Energy statistics: A class of statistics based on distances, 2013.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(500, 2, generator=generator), torch.randn(500, 2, generator=generator)
        >>> same, apart = energy_distance(x, y), energy_distance(x, y + 1.0)
        >>> abs(same.value) < 3 * same.standard_error, apart.value > 10 * apart.standard_error
        (True, True)
    """
    x, y = two_samples("energy_distance", x, y, at_least=4)
    estimate = _discrepancy(lambda distance: -distance, x, y)
    if not empirical:
        return estimate
    # The distance of a row to itself is zero: it reduces the mean within a sample by a share of one over its size.
    within = sum(_means(torch.abs, part, None).mean / len(part) for part in (x, y))
    return Estimate(estimate.value + within, estimate.standard_error)


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None) -> Estimate:
    r"""Estimates the squared maximum mean discrepancy with a Gaussian kernel.

    .. math::
        \mathbb E\, k(X, X') + \mathbb E\, k(Y, Y') - 2\, \mathbb E\, k(X, Y),
        \qquad k(a, b) = \exp\bigl(-\lVert a - b \rVert^2 / (2 h^2)\bigr)

    The estimate is the unbiased U-statistic, so it may be negative if the distributions are equal.

    Args:
        x: ``[N, D]``, a sample of the first distribution.
        y: ``[M, D]``, a sample of the second.
        bandwidth: h, in the units of the data. Default: the median distance within the pooled samples (at most 1,000 of
            each, evenly spaced). Values are comparable only for one bandwidth: pass it to compare several models.

    Cost: (N + M)^2 kernels, in blocks of 8 MB.

    Raises:
        ValueError: if the samples are not ``[N, D]`` and ``[M, D]``, have fewer than 4 rows, or have values that are
            not finite; if ``bandwidth`` is not positive and finite, the median is zero, or the width is so far
            from all distances that the kernel is constant.

    Source: Gretton et al., A Kernel Two-Sample Test, 2012.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(500, 2, generator=generator), torch.randn(500, 2, generator=generator)
        >>> apart = mmd(x, y + 1.0, bandwidth=1.0)
        >>> apart.value > 10 * apart.standard_error
        True
    """
    x, y = two_samples("mmd", x, y, at_least=4)
    if bandwidth is None:
        pooled = torch.cat([part[:: math.ceil(len(part) / 1000)] for part in (x, y)])
        bandwidth = float(torch.pdist(pooled).median())
    if not 0 < bandwidth < math.inf:
        raise ValueError(
            f"mmd(bandwidth={bandwidth}): the kernel needs a positive width; pass a typical distance in the data."
        )
    estimate = _discrepancy(lambda distance: torch.exp((distance / bandwidth).square() / -2), x, y)
    if max(abs(estimate.value), estimate.standard_error) < 1e-12 and bool(x.any() | y.any()):
        raise ValueError(
            f"mmd(bandwidth={bandwidth}): this kernel is the same for all pairs of rows; pass a typical distance in "
            f"the data."
        )
    return estimate


@dataclass(frozen=True)
class _Kernel:
    """Means of a kernel matrix: of each row, of each column, of all, and the spread of its interaction part."""

    rows: Tensor
    columns: Tensor
    mean: float
    interaction: float


def _discrepancy(kernel: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Estimate:
    """Combines the three mean kernels, with a standard error that is also valid for equal distributions.

    There it is too large rather than too small (by a third, in root mean square): it is never below the contribution of
    the pairs.
    """
    n, m = len(x), len(y)
    xx, yy, xy = _means(kernel, x, None), _means(kernel, y, None), _means(kernel, x, y)
    value = xx.mean + yy.mean - 2 * xy.mean
    # The contribution of single samples (first order of Hoeffding's decomposition). Its measured variance counts the
    # variance of pairs (second order), which alone remains for equal distributions, twice; once is right.
    single = 4 * ((xx.rows - xy.rows).var() / n + (yy.rows - xy.columns).var() / m)
    pairs = 2 * xx.interaction / (n * (n - 1)) + 2 * yy.interaction / (m * (m - 1)) + 4 * xy.interaction / (n * m)
    return Estimate(value, math.sqrt(max(float(single) - pairs, pairs)))


def _means(kernel: Callable[[Tensor], Tensor], x: Tensor, y: Tensor | None) -> _Kernel:
    """Averages the kernel over pairs of rows, block by block; without ``y``, over pairs of different rows of ``x``."""
    other = x if y is None else y
    rows, columns, squares = [], x.new_zeros(len(other)), 0.0
    block = max(1, PAIRS_AT_ONCE // len(other))
    for start in range(0, len(x), block):
        values = kernel(torch.cdist(x[start : start + block], other))
        if y is None:
            values.diagonal(start).zero_()
        rows.append(values.sum(1))
        columns += values.sum(0)
        squares += float(values.square().sum())
    pairs_per_row = len(other) - (y is None)
    rows, columns = torch.cat(rows) / pairs_per_row, columns / (len(x) - (y is None))
    mean = float(rows.mean())
    # The mean square of k_ij - r_i - c_j + mean.
    interaction = squares / (len(x) * pairs_per_row) - float(rows.square().mean() + columns.square().mean()) + mean**2
    return _Kernel(rows, columns, mean, max(interaction, 0.0))
