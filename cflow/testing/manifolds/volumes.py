"""Uniform draws, and the volume of the whole manifold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.manifolds.wrapped import metric_frame
from cflow.testing.checks import demand
from cflow.testing.copies import check_draws
from cflow.testing.manifolds.points import Sample, expand

__all__ = ["check_uniform"]

COUNT = 20_000


def check_uniform(sample: Sample) -> None:
    r"""Checks that balls have the share of uniform draws that their volume is of the whole.

    The volume of a ball is the mean over its tangent vectors of the factor by which exp changes volumes:

    .. math:: P(d(x, c) < r) \, V = \int_{|u| < r} \left| \det d \exp_c(u) \right| du

    Both sides are means of draws; a correct manifold fails once in two million comparisons (five standard errors).
    """
    manifold = sample.manifold
    if not math.isfinite(manifold.log_volume):
        try:
            manifold.uniform((2,), generator=sample.generator)
        except ValueError:
            return
        raise AssertionError("uniform raises a ValueError where the volume is infinite")
    check_draws(lambda generator: manifold.uniform((6,), generator=generator, dtype=sample.dtype), "uniform")
    for shape in ((), (0,), (2, 3)):
        drawn = manifold.uniform(shape, generator=sample.generator, dtype=sample.dtype)
        demand(
            drawn.shape == (*shape, *sample.event) and drawn.dtype == sample.dtype, f"uniform({shape}) has its shape"
        )
    radius, dim = manifold.injectivity, manifold.dim
    centres = sample.points(3)
    if not 0 < radius < math.inf or not manifold.has_log_det_exp:
        return
    x = manifold.uniform((COUNT,), generator=sample.generator, dtype=sample.dtype)
    for centre, part in zip(centres, (0.4, 0.7, 1.0)):
        r = part * radius
        inside = (manifold.dist(centre, x) < r).to(sample.dtype)
        factor = manifold.log_det_exp(centre, r * _ball(sample, centre)).exp()
        log_ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1) + dim * math.log(r)
        ratio = math.exp(log_ball - manifold.log_volume)
        left, right = float(inside.mean()), ratio * float(factor.mean())
        error = math.sqrt((float(inside.var()) + ratio**2 * float(factor.var())) / COUNT)
        demand(
            abs(left - right) <= 5 * error + 1e-9,
            f"uniform draws and volume: {left:.4g} of the draws lie in a ball of radius {r:.4g} with {right:.4g} of "
            f"the volume, standard error {error:.2g}",
        )


def _ball(sample: Sample, centre: Tensor) -> Tensor:
    """Draws tangent vectors uniformly in the unit ball at a point, ``[COUNT, *event]``."""
    manifold = sample.manifold
    frame = metric_frame(manifold, centre).reshape(manifold.dim, -1)
    z = sample.normal(COUNT, manifold.dim)
    length = torch.rand(COUNT, generator=sample.generator, dtype=sample.dtype) ** (1 / manifold.dim)
    z = z / z.norm(dim=1, keepdim=True) * expand(length, z)
    return (z @ frame).reshape(COUNT, *sample.event)
