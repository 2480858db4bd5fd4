"""Flat tori: vectors of angles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Size

from cflow.arguments import check_integer
from cflow.manifolds.manifold import Manifold
from cflow.manifolds.wrapped import log_normal
from cflow.registry import register

__all__ = ["FlatTorus"]


@register("manifolds.FlatTorus")
@dataclass(frozen=True)
class FlatTorus(Manifold):
    r"""The flat torus: ``dim`` angles, each on a circle of length ``period``.

    .. math:: \log_x y = y - x - L \left\lfloor \frac{y - x}{L} + \frac12 \right\rfloor

    Every real number is accepted as its class; results of ``exp``, ``geodesic`` and ``project`` lie in
    ``[-period / 2, period / 2)``, up to rounding. A field on a torus must be periodic:
    :class:`cflow.fields.PeriodicMLP` reads sines and cosines.

    Shapes: points ``[*batch, dim]``.

    Args:
        dim: the number of angles.
        period: the length of each circle. Default: 2 pi, for radians.

    Raises:
        ValueError: if ``dim`` is not a positive integer, or ``period`` is not positive and finite.

    Example:
        >>> torus = FlatTorus(2)
        >>> torus.dist(torch.tensor([3.0, 0.0]), torch.tensor([-3.0, 0.0]))
        tensor(0.2832)
    """

    dim: int
    period: float = 2 * math.pi

    def __post_init__(self):
        check_integer("FlatTorus", "dim", self.dim, 1, "a torus has one angle or more; pass 2 for pairs of angles.")
        if not 0 < self.period < math.inf:
            raise ValueError(
                f"FlatTorus(period={self.period}): a circle has a positive length; pass 360.0 for angles in degrees."
            )

    @property
    def event_shape(self) -> Size:
        return Size([self.dim])

    @property
    def picture(self) -> tuple[str, dict] | None:
        """Squares of two angles each."""
        return ("torus", {"period": self.period}) if self.dim > 1 else None

    @property
    def log_volume(self) -> float:
        """The logarithm of the volume, ``period ** dim``."""
        return self.dim * math.log(self.period)

    @property
    def injectivity(self) -> float:
        """Half a period."""
        return self.period / 2

    def _exp(self, x, u):
        return self._project(x + u)

    def _log(self, x, y):
        return self._project(y - x)

    def _project(self, x):
        return x - self.period * (x / self.period + 0.5).floor()

    def _to_tangent(self, x, u):
        return u.expand(torch.broadcast_shapes(x.shape, u.shape))

    def _transport(self, x, y, u):
        return u.expand(torch.broadcast_shapes(x.shape, y.shape, u.shape))

    def _geodesic(self, x0, x1, t):
        u = self._log(x0, x1)
        return self._project(x0 + t.unsqueeze(-1) * u), u.expand(*t.shape, self.dim)

    def deviation(self, x):
        """Returns zero: all numbers are angles.

        Args:
            x: points ``[*batch, dim]``.
        """
        return torch.zeros_like(x.sum(-1))

    def frame(self, x):
        """Returns the axes.

        Args:
            x: points ``[*batch, dim]``.
        """
        return torch.eye(self.dim, dtype=x.dtype, device=x.device).expand(*x.shape, self.dim)

    def preimages(self, x, y, count):
        """Returns all turns of all angles, ``[(2 * count + 1) ** dim, *batch, dim]``, the shortest first.

        Args:
            x: points ``[*batch, dim]``.
            y: points ``[*batch, dim]``.
            count: the largest number of full turns of each angle.
        """
        u = self._log(x, y)
        turns = torch.arange(-count, count + 1, dtype=u.dtype, device=u.device)
        all_of_them = torch.cartesian_prod(*[turns] * self.dim).reshape(-1, self.dim)
        order = all_of_them.square().sum(1).argsort()
        return u + self.period * all_of_them[order].reshape(-1, *[1] * (u.dim() - 1), self.dim)

    def log_det_exp(self, x, u):
        """Returns zero: exp is a translation.

        Args:
            x: points ``[*batch, dim]``.
            u: tangent vectors at ``x``.
        """
        return torch.zeros_like((x + u).sum(-1))

    def log_wrapped_normal(self, loc, x, scale, turns):
        """Sums the log-densities of the angles, each a sum over its turns.

        Args:
            loc: the centre, points ``[*batch, dim]``.
            x: points ``[*batch, dim]``.
            scale: standard deviations ``[*batch, dim]``.
            turns: the largest number of full turns.
        """
        u = self._log(loc, x)
        around = self.period * torch.arange(-turns, turns + 1, dtype=u.dtype, device=u.device)
        return log_normal(u.unsqueeze(-1) + around, scale.unsqueeze(-1)).logsumexp(-1).sum(-1)

    def uniform(self, shape, *, generator=None, dtype=None, device=None):
        """Draws angles uniformly.

        Args:
            shape: the shape of the batch.
            generator: the source of random numbers. Default: None, torch's default generator.
            dtype: the dtype of the points. Default: None, torch's default dtype.
            device: the device of the points. Default: None, torch's default device.
        """
        u = torch.rand((*shape, self.dim), generator=generator, dtype=dtype, device=device)
        return self.period * (u - 0.5)
