"""Conformance of distributions of training times."""

from __future__ import annotations

import copy
import math

import torch

from cflow.registry import build, configuration
from cflow.testing.checks import close, demand
from cflow.testing.copies import check_draws
from cflow.times import Times

__all__ = ["check_times"]

COUNT = 4000
# The Kolmogorov-Smirnov distance times the root of the count; correct draws exceed this once in a million seeds.
REACH = 2.69


def check_times(law: Times) -> None:
    """Checks a distribution of times.

    Draws must be in [0, 1], have the right number and dtype, raise for a dtype of integers, depend only on the
    generator, and follow ``icdf``. The density must be one over the slope of ``icdf``.

    Args:
        law: the distribution. The test of its draws uses half their number, since draws in mirrored pairs depend on
            each other. It fails for a correct distribution once in a million seeds; the seed is fixed.

    Raises:
        AssertionError: if a property fails; the message states which.

    Example:
        >>> from cflow.times import LogitNormal
        >>> check_times(LogitNormal(0.5, 0.8))
    """
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for count in (COUNT, 1, 0):
            t = law(count, generator=torch.Generator().manual_seed(1), device="cpu", dtype=dtype)
            demand(t.shape == (count,), f"{count} times have shape ({count},), not {tuple(t.shape)}")
            demand(t.dtype == dtype, f"times have the dtype {dtype}, not {t.dtype}")
            demand(((t >= 0) & (t <= 1)).all(), "times lie in [0, 1]")
    demand(law(3, generator=torch.Generator()).dtype == torch.get_default_dtype(), "the dtype is torch's by default")
    for dtype in (torch.int64, torch.bool, torch.complex64):
        try:
            law(4, generator=torch.Generator(), dtype=dtype)
        except TypeError:
            continue
        raise AssertionError(f"times of {dtype} must raise a TypeError")
    check_draws(lambda generator: law(50, generator=generator, dtype=torch.float64), "times")
    _check_function(law)
    _check_draws_follow(law)
    rebuilt = build(type(law), configuration(law))
    for other, what in ((copy.deepcopy(law), "a deep copy"), (rebuilt, "a copy rebuilt from its arguments")):
        same = [each(9, generator=torch.Generator().manual_seed(1)) for each in (law, other)]
        demand(torch.equal(*same), f"{what} draws the same times")


def _check_function(law: Times) -> None:
    """Checks that the inverse distribution function increases from 0 to 1, with slope one over the density."""
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    t = law.icdf(u)
    demand(t.dtype == torch.float64, f"icdf of float64 is float64, not {t.dtype}")
    close(t[[0, -1]], u[[0, -1]], 1e-9, "icdf runs from 0 to 1")
    demand((t.diff() > 0).all(), "icdf increases")
    u, step = u[50:-50], 1e-5
    slope = (law.icdf(u + step) - law.icdf(u - step)) / (2 * step)
    density = law.density(law.icdf(u))
    demand(density.dtype == torch.float64, f"the density of float64 is float64, not {density.dtype}")
    gap = float((density * slope - 1).abs().max())
    demand(gap < 1e-4, f"the density is one over the slope of icdf: off by {gap:.3g}")
    outside = law.log_density(torch.tensor([-0.1, 1.1], dtype=torch.float64))
    demand((outside == -math.inf).all(), "there is no density outside [0, 1]")


def _check_draws_follow(law: Times) -> None:
    t = law(COUNT, generator=torch.Generator().manual_seed(2), dtype=torch.float64).sort().values
    # The distribution function at the draws, computed by bisection of its inverse.
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(50):
        middle = 0.5 * (low + high)
        below = law.icdf(middle) < t
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    rank = torch.arange(COUNT + 1, dtype=torch.float64) / COUNT
    distance = float(torch.maximum((high - rank[:-1]).abs(), (high - rank[1:]).abs()).max())
    demand(distance * (COUNT / 2) ** 0.5 < REACH, f"draws follow icdf: the distributions are {distance:.3g} apart")
    demand(len(t.float().unique()) > COUNT / 2, "times have many different values")
