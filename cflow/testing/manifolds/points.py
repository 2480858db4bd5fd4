"""Points and tangent vectors on which manifolds are tested, and how they are compared."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.manifolds import Manifold
from cflow.manifolds.wrapped import metric_frame
from cflow.testing.checks import close, demand

__all__ = ["Sample", "expand"]


class Sample:
    """Draws points and tangent vectors of a manifold in one dtype, and compares results up to rounding.

    Points are uniform where the volume is finite, and moved towards the origin where there is a boundary. Elsewhere
    they are ends of geodesics from the origin, about one long.
    """

    def __init__(self, manifold: Manifold, dtype: torch.dtype, rounding: float):
        self.manifold, self.dtype = manifold, dtype
        self.generator = torch.Generator().manual_seed(0)
        self.tolerance = rounding * torch.finfo(dtype).eps
        self.event = manifold.event_shape

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=self.dtype)

    def points(self, *batch: int) -> Tensor:
        start = self.manifold.origin(dtype=self.dtype)
        if math.isfinite(self.manifold.log_volume):
            x = self.manifold.uniform(batch, generator=self.generator, dtype=self.dtype)
            return x if self.manifold.injectivity else self.manifold.geodesic(start, x, x.new_tensor(0.7))[0]
        z = self.normal(*batch, self.manifold.dim) / self.manifold.dim**0.5
        return self.manifold.exp(start, torch.tensordot(z, metric_frame(self.manifold, start), 1))

    def tangents(self, x: Tensor) -> Tensor:
        return self.manifold.to_tangent(x, self.normal(*x.shape))

    def directions(self, x: Tensor) -> Tensor:
        u = self.tangents(x)
        return u / expand(self.length(x, u), u)

    def length(self, x: Tensor, u: Tensor) -> Tensor:
        return self.manifold.inner(x, u, u).clamp(min=0).sqrt()

    def same(self, left: Tensor, right: Tensor, message: str, times: float = 1.0) -> None:
        """Demands that two tensors agree up to rounding, relative to the largest entry, one at least."""
        size = 1 + (float(right.detach().abs().max()) if right.numel() else 0.0)
        close(left, right, times * size * self.tolerance, f"{message} ({self.dtype})")

    def same_points(self, left: Tensor, right: Tensor, message: str) -> None:
        """Demands that two points are close, by their distance: a point may have several coordinates."""
        demand(left.shape == right.shape, f"{message}: shapes {tuple(left.shape)} and {tuple(right.shape)} differ")
        size = 1 + (float(right.detach().abs().max()) if right.numel() else 0.0)
        gap = self.manifold.dist(left, right)
        close(gap, torch.zeros_like(gap), size * self.tolerance, f"{message} ({self.dtype})")


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Adds dimensions at the end."""
    return value.reshape(*value.shape, *([1] * (like.dim() - value.dim())))
