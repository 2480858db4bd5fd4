"""The flat space of all tensors of one shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Size

from cflow.manifolds.manifold import Manifold
from cflow.registry import register
from cflow.shapes import as_shape

__all__ = ["Euclidean"]


@register("manifolds.Euclidean")
@dataclass(frozen=True)
class Euclidean(Manifold):
    r"""The flat space: tensors of one shape, at the distance :math:`|x - y|`.

    Use it as a part of a :class:`Product`, such as positions next to rotations. A flow on it is a usual flow.

    Args:
        shape: the shape of one point, an int or a tuple.

    Raises:
        ValueError: if a size is not a positive integer.

    Example:
        >>> Euclidean((2, 3)).log(torch.zeros(2, 3), torch.ones(2, 3)).sum()
        tensor(6.)
    """

    shape: int | tuple[int, ...]

    flat = True

    def __post_init__(self):
        if 0 in as_shape(self.shape):
            raise ValueError(f"Euclidean({self.shape}): sizes must be positive; pass an int or a tuple such as (5, 3).")
        object.__setattr__(self, "shape", tuple(as_shape(self.shape)))

    @property
    def event_shape(self) -> Size:
        return Size(self.shape)

    @property
    def dim(self) -> int:
        return self.event_shape.numel()

    def _exp(self, x, u):
        return x + u

    def _log(self, x, y):
        return y - x

    def _project(self, x):
        return x

    def _to_tangent(self, x, u):
        return u.expand(torch.broadcast_shapes(x.shape, u.shape))

    def _transport(self, x, y, u):
        return u.expand(torch.broadcast_shapes(x.shape, y.shape, u.shape))

    def _geodesic(self, x0, x1, t):
        u = x1 - x0
        return x0 + t.reshape(*t.shape, *[1] * len(self.shape)) * u, u.expand(*t.shape, *self.shape)

    def frame(self, x):
        """Returns the axes.

        Args:
            x: points ``[*batch, *shape]``.
        """
        axes = torch.eye(self.dim, dtype=x.dtype, device=x.device).reshape(self.dim, *self.shape)
        return axes.expand(*x.shape[: x.dim() - len(self.shape)], *axes.shape)

    def cost(self, x0, x1):
        """Computes squared distances between all pairs, ``[B0, B1]``, without tensors ``[B0, B1, *shape]``.

        Args:
            x0: points ``[B0, *shape]``.
            x1: points ``[B1, *shape]``.
        """
        # The plain mode: products of matrices would lose small distances.
        x0, x1 = x0.reshape(len(x0), self.dim), x1.reshape(len(x1), self.dim)
        return torch.cdist(x0, x1, compute_mode="donot_use_mm_for_euclid_dist").square()

    def log_det_exp(self, x, u):
        """Returns zero: exp is a translation.

        Args:
            x: points ``[*batch, *shape]``.
            u: tangent vectors at ``x``.
        """
        return torch.zeros_like(self._sum(x + u))
