"""The hyperboloid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Size

from cflow.manifolds.hyperbolic.minkowski import (
    Hyperbolic,
    in_float64,
    lift,
    minkowski,
    minkowski_inner,
    minkowski_square,
    normal,
    quarter,
    tangent,
)
from cflow.manifolds.numerics import asinhc, cosh_sinhc, norm
from cflow.manifolds.sphere import Sphere
from cflow.registry import register

__all__ = ["Lorentz"]


@register("manifolds.Lorentz")
@dataclass(frozen=True)
class Lorentz(Hyperbolic):
    r"""The hyperboloid: hyperbolic space of ``dim`` dimensions as the upper sheet in Minkowski space.

    .. math:: -x_0^2 + x_1^2 + \dots + x_d^2 = -1, \quad x_0 > 0, \qquad
              \sinh^2 \tfrac{d(x, y)}{2} = \tfrac14 \langle x - y, x - y \rangle, \qquad
              \exp_x u = \cosh|u| \, x + \frac{\sinh|u|}{|u|} u

    The metric is :math:`\langle u, v \rangle = -u_0 v_0 + \sum_i u_i v_i`, of curvature -1. Methods read the
    coordinates :math:`x_1, \dots, x_d` and compute :math:`x_0` from them, and compute in float64 for every dtype: in
    float32, points 10 from the origin (coordinates of 11,000) are as accurate as their coordinates. Use
    :class:`Poincare` for pictures.

    Shapes: points ``[*batch, dim + 1]``, the coordinate :math:`x_0` first. The origin is ``(1, 0, ..., 0)``.

    Args:
        dim: the number of dimensions.

    Raises:
        ValueError: if ``dim`` is not a positive integer.

    Source: Law et al., Lorentzian Distance Learning for Hyperbolic Representations, ICML 2019, for the distance; Nagano
    et al., A Wrapped Normal Distribution on Hyperbolic Space for Gradient-Based Learning, 2019, arXiv:1902.02992, for
    transport and the determinant of exp.

    Example:
        >>> space = Lorentz(2)
        >>> x = space.exp(space.origin(), torch.tensor([0.0, 2.0, 0.0]))
        >>> x, space.dist(space.origin(), x)
        (tensor([3.7622, 3.6269, 0.0000]), tensor(2.))
    """

    dim: int

    @property
    def event_shape(self) -> Size:
        return Size([self.dim + 1])

    @in_float64
    def _exp(self, x, u):
        x = lift(x)
        u = tangent(x, u)
        cosh, sinh = cosh_sinhc(minkowski_square(x, u).unsqueeze(-1))
        return lift(cosh * x + sinh * u)

    @in_float64
    def _log(self, x, y):
        x, y = lift(x), lift(y)
        q = quarter(x, y).unsqueeze(-1)
        # d / sinh(d) (y - cosh(d) x), with sinh(d / 2)^2 = q.
        return tangent(x, asinhc(q) / (1 + q).sqrt() * (y - x - 2 * q * x))

    @in_float64
    def _dist(self, x, y):
        q = quarter(lift(x), lift(y))
        return 2 * norm(q.unsqueeze(-1), lambda each: each.sum(-1)) * asinhc(q)

    @in_float64
    def _project(self, x):
        # A Newton step, whose derivative on the manifold is the projection onto the tangent space, then the height.
        square = x.square()
        excess = 1 - square[..., :1] + square[..., 1:].sum(-1, keepdim=True)
        slope = torch.cat([-x[..., :1], x[..., 1:]], -1)
        length = square.sum(-1, keepdim=True)
        return lift(x - excess / torch.where(length == 0, 1.0, 2 * length) * slope)

    @in_float64
    def _to_tangent(self, x, u):
        across = normal(x)
        return u - (across * u).sum(-1, keepdim=True) * across

    @in_float64
    def _transport(self, x, y, u):
        x, y = lift(x), lift(y)
        u = tangent(x, u)
        q = quarter(x, y).unsqueeze(-1)
        return tangent(y, u + minkowski(y - x, u).unsqueeze(-1) / (2 + 2 * q) * (x + y))

    @in_float64
    def _inner(self, x, u, v):
        x = lift(x)
        return minkowski_inner(x, u, v)

    def frame(self, x):
        """Returns vectors orthonormal in the ambient space, and orthogonal to the normal of the hyperboloid.

        Args:
            x: points ``[*batch, dim + 1]``.
        """
        return Sphere(self.dim).frame(normal(x.double())).to(x.dtype)

    @in_float64
    def log_volume_element(self, x):
        r"""Computes :math:`-\tfrac12 \log(x_0^2 + \dots + x_d^2)`.

        Args:
            x: points ``[*batch, dim + 1]``.
        """
        return -0.5 * torch.log1p(2 * x[..., 1:].square().sum(-1))

    @in_float64
    def to_poincare(self, x):
        """Returns the points of the Poincaré ball, ``[*batch, dim]``.

        Args:
            x: points ``[*batch, dim + 1]``.
        """
        x = lift(x)
        return x[..., 1:] / (1 + x[..., :1])
