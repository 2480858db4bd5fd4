"""What the charts share: arithmetic in float64, the determinant of exp, and Minkowski space."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from cflow.arguments import check_integer
from cflow.manifolds.manifold import Manifold
from cflow.manifolds.numerics import cosh_sinhc, norm

__all__ = [
    "Hyperbolic", "dot", "in_float64", "lift", "minkowski", "minkowski_inner", "minkowski_square", "normal", "quarter",
    "tangent",
]  # fmt: skip


def in_float64(method):
    """Computes in float64, and returns the dtype of the arguments: coordinates grow as the exponential of distances."""

    @functools.wraps(method)
    def computed(self, *tensors: Tensor):
        dtype = functools.reduce(torch.promote_types, (each.dtype for each in tensors))
        result = method(self, *(each.double() for each in tensors))
        return tuple(each.to(dtype) for each in result) if isinstance(result, tuple) else result.to(dtype)

    return computed


class Hyperbolic(Manifold):
    """Checks the dimension, and has the determinant of exp, which all charts share."""

    def __post_init__(self):
        name = type(self).__name__
        check_integer(name, "dim", self.dim, 1, "a hyperbolic space has one dimension or more; pass 2 for the plane.")

    def log_det_exp(self, x, u):
        r"""Computes :math:`(d - 1) \log (\sinh|u| / |u|)`.

        Args:
            x: points of the manifold.
            u: tangent vectors at ``x``.
        """
        square = self.inner(x, u, u).clamp(min=0)
        r = norm(square.unsqueeze(-1), lambda each: each.sum(-1))
        # For long vectors sinh would overflow.
        far = r > 5
        long = r + torch.log1p(-torch.exp(-2 * torch.where(far, r, 1.0))) - torch.log(2 * torch.where(far, r, 1.0))
        return (self.dim - 1) * torch.where(far, long, cosh_sinhc(torch.where(far, 1.0, square))[1].log())


def dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def lift(x: Tensor) -> Tensor:
    """Computes the first coordinate from the others."""
    return torch.cat([(1 + x[..., 1:].square().sum(-1, keepdim=True)).sqrt(), x[..., 1:]], -1)


def tangent(x: Tensor, u: Tensor) -> Tensor:
    """Computes the first coordinate of a tangent vector from the others."""
    return torch.cat([dot(x[..., 1:], u[..., 1:]) / x[..., :1], u[..., 1:].expand_as(u[..., 1:] + x[..., 1:])], -1)


def normal(x: Tensor) -> Tensor:
    """Returns the unit normal of the hyperboloid in the ambient space."""
    x = lift(x)
    slope = torch.cat([-x[..., :1], x[..., 1:]], -1)
    return slope / norm(slope, keepdim=True)


def minkowski(u: Tensor, v: Tensor) -> Tensor:
    return (u[..., 1:] * v[..., 1:]).sum(-1) - u[..., 0] * v[..., 0]


def minkowski_inner(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Computes the inner product of tangent vectors from the coordinates after the first."""
    height, x, u, v = x[..., 0].square(), x[..., 1:], u[..., 1:], v[..., 1:]
    size = x.square().sum(-1)
    along_u, along_v = (x * u).sum(-1), (x * v).sum(-1)
    plain = (u * v).sum(-1) - along_u * along_v / height
    # Far from the origin the two terms cancel: there, parts along and across the point are computed one by one.
    far = size > 1
    size = torch.where(far, size, 1.0)
    across = lambda each, along: each - (along / size).unsqueeze(-1) * x
    parts = (across(u, along_u) * across(v, along_v)).sum(-1) + along_u * along_v / (size * height)
    return torch.where(far, parts, plain)


def minkowski_square(x: Tensor, u: Tensor) -> Tensor:
    return minkowski_inner(x, u, u).clamp(min=0)


def quarter(x: Tensor, y: Tensor) -> Tensor:
    """Computes a quarter of the squared chord, the square of sinh(d / 2)."""
    step, whole = x[..., 1:] - y[..., 1:], x[..., 1:] + y[..., 1:]
    height, ahead, size = x[..., 0] + y[..., 0], (step * whole).sum(-1), step.square().sum(-1)
    plain = size - (ahead / height).square()
    # Far from the origin and near each other, the two terms cancel. With a the part of the step along the sum of the
    # points and k = (a / height)^2, it is (|across|^2 + 4 k) / (1 - k), whose error depends on the distance only.
    cancels = plain < 0.1 * size
    length = torch.where(cancels, whole.square().sum(-1), 1.0)
    across = (step - (ahead / length).unsqueeze(-1) * whole).square().sum(-1)
    k = torch.where(cancels, ahead.square() / (length * height.square()), 0.0)
    return 0.25 * torch.where(cancels, (across + 4 * k) / (1 - k), plain)
