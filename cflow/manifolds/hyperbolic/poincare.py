"""The Poincaré ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Size

from cflow.manifolds.hyperbolic.minkowski import Hyperbolic, dot, in_float64, lift
from cflow.manifolds.numerics import asinhc, norm, tanhc
from cflow.registry import register

__all__ = ["Poincare"]


@register("manifolds.Poincare")
@dataclass(frozen=True)
class Poincare(Hyperbolic):
    r"""The Poincaré ball: hyperbolic space of ``dim`` dimensions as the open unit ball.

    .. math:: \langle u, v \rangle_x = \lambda_x^2 \, u \cdot v, \quad \lambda_x = \frac{2}{1 - |x|^2}, \qquad
              \sinh^2 \tfrac{d(x, y)}{2} = \frac{|x - y|^2}{(1 - |x|^2)(1 - |y|^2)}

    The curvature is -1. Methods compute in float64 for every dtype, but a point close to the rim has only the digits of
    its dtype: in float32 the largest distance from the origin is about 15.9, and distances of points 8 from it have
    errors up to 1e-4. ``project`` brings points outside to the largest distance. Far out, use :class:`Lorentz`.

    Shapes: points ``[*batch, dim]``.

    Args:
        dim: the number of dimensions.

    Raises:
        ValueError: if ``dim`` is not a positive integer.

    Source: Ganea et al., Hyperbolic Neural Networks, 2018, arXiv:1805.09112, for exp and log; Ungar, A Gyrovector Space
    Approach to Hyperbolic Geometry, 2009, for transport by gyrations.

    Example:
        >>> plane = Poincare(2)
        >>> plane.dist(torch.zeros(2), torch.tensor([0.5, 0.0]))  # 2 atanh(0.5)
        tensor(1.0986)
    """

    dim: int

    @property
    def event_shape(self) -> Size:
        return Size([self.dim])

    def _exp(self, x, u):
        return self._project(self._translate(x, u))

    @in_float64
    def _translate(self, x, u):
        room = 1 - dot(x, x)
        # v = tanh(|u| / (1 - |x|^2)) u / |u|; the sum of Möbius of x and v.
        v = tanhc(dot(u, u) / room.square()) * u / room
        xv, vv = dot(x, v), dot(v, v)
        return ((1 + 2 * xv + vv) * x + room * v) / (1 + 2 * xv + dot(x, x) * vv)

    @in_float64
    def _log(self, x, y):
        step, room = y - x, 1 - dot(x, x)
        far = dot(step, step)
        space = room * (1 - dot(y, y))
        w = (room * step - far * x) / (far + space)  # the sum of Möbius of -x and y
        q = far / space
        return room * asinhc(q) * (1 + q).sqrt() * w

    @in_float64
    def _dist(self, x, y):
        q = (x - y).square().sum(-1) / ((1 - x.square().sum(-1)) * (1 - y.square().sum(-1)))
        return 2 * norm(q.unsqueeze(-1), lambda each: each.sum(-1)) * asinhc(q)

    def _project(self, x):
        largest = 1 - 2 * torch.finfo(x.dtype).eps
        length = norm(x, keepdim=True)
        outside = length > largest
        return torch.where(outside, x * (largest / torch.where(outside, length, 1.0)), x)

    def _to_tangent(self, x, u):
        return u.expand(torch.broadcast_shapes(x.shape, u.shape))

    @in_float64
    def _transport(self, x, y, u):
        # The gyration of y and -x, times the ratio of the scales.
        a, b = y, -x
        ab, au, bu, aa, bb = dot(a, b), dot(a, u), dot(b, u), dot(a, a), dot(b, b)
        first = -au * bb + bu + 2 * ab * bu
        second = -bu * aa - au
        step = y - x
        turned = u + 2 * (first * a + second * b) / (dot(step, step) + (1 - aa) * (1 - bb))
        return turned * (1 - aa) / (1 - bb)

    @in_float64
    def _inner(self, x, u, v):
        return 4 * (u * v).sum(-1) / (1 - x.square().sum(-1)).square()

    def deviation(self, x):
        """Computes how far points are outside the ball, ``[*batch]``.

        Args:
            x: points ``[*batch, dim]``.
        """
        return (norm(x) - 1).clamp(min=0)

    def frame(self, x):
        """Returns the axes.

        Args:
            x: points ``[*batch, dim]``.
        """
        return torch.eye(self.dim, dtype=x.dtype, device=x.device).expand(*x.shape, self.dim)

    @in_float64
    def log_volume_element(self, x):
        r"""Computes :math:`d \log \lambda_x`.

        Args:
            x: points ``[*batch, dim]``.
        """
        return self.dim * (2 / (1 - x.square().sum(-1))).log()

    @in_float64
    def to_lorentz(self, x):
        """Returns the points of the hyperboloid, ``[*batch, dim + 1]``.

        Args:
            x: points ``[*batch, dim]``.
        """
        return lift(torch.cat([x[..., :1], 2 * x / (1 - dot(x, x))], -1))
