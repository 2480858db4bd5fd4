"""Sets and arrays of points of one manifold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from cflow.manifolds.manifold import Manifold
from cflow.manifolds.numerics import norm
from cflow.registry import register
from cflow.shapes import as_shape

__all__ = ["Power"]


@register("manifolds.Power")
@dataclass(frozen=True)
class Power(Manifold):
    r"""Arrays of points of one manifold: the product of that manifold with itself.

    .. math:: d(x, y)^2 = \sum_i d(x_i, y_i)^2

    Methods accept ``mask`` for sets of different sizes, ``[*batch, *shape]`` expanded over the entries of a point:
    points outside do not move and do not count.

    Shapes: points ``[*batch, *shape, *event]`` with the event of ``manifold``. Cost: one operation on the whole array;
    ``frame`` is ``[*batch, dim, *shape, *event]``, and grows with the square of the number of points.

    Args:
        manifold: the manifold of each point.
        shape: the shape of the array, an int or a tuple.

    Raises:
        ValueError: if a size is not a positive integer.

    Example:
        >>> from cflow.manifolds import Sphere
        >>> spins = Power(Sphere(2), (4, 4))
        >>> spins.event_shape, spins.dim
        (torch.Size([4, 4, 3]), 32)
    """

    manifold: Manifold
    shape: int | tuple[int, ...]

    def __post_init__(self):
        if 0 in as_shape(self.shape):
            raise ValueError(
                f"Power(shape={self.shape}): sizes must be positive; pass an int or a tuple such as (4, 4)."
            )
        object.__setattr__(self, "shape", tuple(as_shape(self.shape)))

    @property
    def event_shape(self) -> Size:
        return Size([*self.shape, *self.manifold.event_shape])

    @property
    def dim(self) -> int:
        return math.prod(self.shape) * self.manifold.dim

    @property
    def flat(self) -> bool:
        """Whether the manifold is flat."""
        return self.manifold.flat

    @property
    def log_volume(self) -> float:
        """The logarithm of the volume of the manifold, times the number of points."""
        return math.prod(self.shape) * self.manifold.log_volume

    @property
    def injectivity(self) -> float:
        """That of the manifold."""
        return self.manifold.injectivity

    def _points(self, value: Tensor) -> Tensor:
        """Sums a value of every point over the array."""
        return value.sum(tuple(range(-len(self.shape), 0))) if self.shape else value

    def _exp(self, x, u):
        return self.manifold.exp(x, u)

    def _log(self, x, y):
        return self.manifold.log(x, y)

    def _project(self, x):
        return self.manifold.project(x)

    def _to_tangent(self, x, u):
        return self.manifold.to_tangent(x, u)

    def _transport(self, x, y, u):
        return self.manifold.transport(x, y, u)

    def _inner(self, x, u, v):
        return self._points(self.manifold.inner(x, u, v))

    def _dist(self, x, y):
        return norm(self.manifold.dist(x, y), lambda each: self._points(each.square()))

    def _geodesic(self, x0, x1, t):
        return self.manifold.geodesic(x0, x1, t.reshape(*t.shape, *[1] * len(self.shape)))

    def deviation(self, x):
        """Computes the root of the sum of the squared deviations of the points, ``[*batch]``.

        Args:
            x: points ``[*batch, *shape, *event]``.
        """
        return norm(self.manifold.deviation(x), lambda each: self._points(each.square()))

    def origin(self, *, dtype=None, device=None):
        """Returns the origin of the manifold, in all places.

        Args:
            dtype: the dtype of the point. Default: None, torch's default dtype.
            device: the device of the point. Default: None, torch's default device.
        """
        return self.manifold.origin(dtype=dtype, device=device).expand(self.event_shape)

    def frame(self, x):
        """Returns the frames of the points, with zeros in the entries of the others.

        Args:
            x: points ``[*batch, *shape, *event]``.
        """
        count, rank = math.prod(self.shape), len(self.manifold.event_shape)
        batch = x.shape[: x.dim() - rank - len(self.shape)]
        frames = self.manifold.frame(x).reshape(*batch, 1, count, self.manifold.dim, *self.manifold.event_shape)
        own = torch.eye(count, dtype=x.dtype, device=x.device).reshape(count, count, 1, *[1] * rank)
        frames = (own * frames).transpose(len(batch) + 1, len(batch) + 2)  # [*batch, count, dim, count, *event]
        return frames.reshape(*batch, self.dim, *self.event_shape)

    def log_volume_element(self, x):
        """Sums those of the points, ``[*batch]``.

        Args:
            x: points ``[*batch, *shape, *event]``.
        """
        return self._points(self.manifold.log_volume_element(x))

    @property
    def has_log_det_exp(self) -> bool:
        return self.manifold.has_log_det_exp

    def log_det_exp(self, x, u):
        """Sums those of the points.

        Args:
            x: points ``[*batch, *shape, *event]``.
            u: tangent vectors at ``x``.
        """
        return self._points(self.manifold.log_det_exp(x, u))

    def log_wrapped_normal(self, loc, x, scale, turns):
        """Sums the log-densities of the points.

        Args:
            loc: the centre, points ``[*batch, *shape, *event]``.
            x: points ``[*batch, *shape, *event]``.
            scale: standard deviations ``[*batch, dim]``.
            turns: the largest number of full turns.
        """
        scale = scale.reshape(*scale.shape[:-1], *self.shape, self.manifold.dim)
        return self._points(self.manifold.log_wrapped_normal(loc, x, scale, turns))

    def uniform(self, shape, *, generator=None, dtype=None, device=None):
        """Draws every point uniformly.

        Args:
            shape: the shape of the batch.
            generator: the source of random numbers. Default: None, torch's default generator.
            dtype: the dtype of the points. Default: None, torch's default dtype.
            device: the device of the points. Default: None, torch's default device.
        """
        return self.manifold.uniform((*shape, *self.shape), generator=generator, dtype=dtype, device=device)
