"""Hyperbolic spaces of curvature -1, in two charts."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from cflow.arguments import check_integer
from cflow.manifolds.manifold import Manifold
from cflow.manifolds.numerics import asinhc, cosh_sinhc, norm, tanhc
from cflow.manifolds.sphere import Sphere
from cflow.registry import register

__all__ = ["Lorentz", "Poincare"]


def in_float64(method):
    """Computes in float64, and returns the dtype of the arguments: coordinates grow as the exponential of distances."""

    @functools.wraps(method)
    def computed(self, *tensors: Tensor):
        dtype = functools.reduce(torch.promote_types, (each.dtype for each in tensors))
        result = method(self, *(each.double() for each in tensors))
        return tuple(each.to(dtype) for each in result) if isinstance(result, tuple) else result.to(dtype)

    return computed


class _Hyperbolic(Manifold):
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


@register("manifolds.Lorentz")
@dataclass(frozen=True)
class Lorentz(_Hyperbolic):
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
        x = _lift(x)
        u = _tangent(x, u)
        cosh, sinh = cosh_sinhc(_minkowski_square(x, u).unsqueeze(-1))
        return _lift(cosh * x + sinh * u)

    @in_float64
    def _log(self, x, y):
        x, y = _lift(x), _lift(y)
        q = _quarter(x, y).unsqueeze(-1)
        # d / sinh(d) (y - cosh(d) x), with sinh(d / 2)^2 = q.
        return _tangent(x, asinhc(q) / (1 + q).sqrt() * (y - x - 2 * q * x))

    @in_float64
    def _dist(self, x, y):
        q = _quarter(_lift(x), _lift(y))
        return 2 * norm(q.unsqueeze(-1), lambda each: each.sum(-1)) * asinhc(q)

    @in_float64
    def _project(self, x):
        # A Newton step, whose derivative on the manifold is the projection onto the tangent space, then the height.
        square = x.square()
        excess = 1 - square[..., :1] + square[..., 1:].sum(-1, keepdim=True)
        slope = torch.cat([-x[..., :1], x[..., 1:]], -1)
        length = square.sum(-1, keepdim=True)
        return _lift(x - excess / torch.where(length == 0, 1.0, 2 * length) * slope)

    @in_float64
    def _to_tangent(self, x, u):
        normal = _normal(x)
        return u - (normal * u).sum(-1, keepdim=True) * normal

    @in_float64
    def _transport(self, x, y, u):
        x, y = _lift(x), _lift(y)
        u = _tangent(x, u)
        q = _quarter(x, y).unsqueeze(-1)
        return _tangent(y, u + _minkowski(y - x, u).unsqueeze(-1) / (2 + 2 * q) * (x + y))

    @in_float64
    def _inner(self, x, u, v):
        x = _lift(x)
        return _minkowski_inner(x, u, v)

    def frame(self, x):
        """Returns vectors orthonormal in the ambient space, and orthogonal to the normal of the hyperboloid.

        Args:
            x: points ``[*batch, dim + 1]``.
        """
        return Sphere(self.dim).frame(_normal(x.double())).to(x.dtype)

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
        x = _lift(x)
        return x[..., 1:] / (1 + x[..., :1])


@register("manifolds.Poincare")
@dataclass(frozen=True)
class Poincare(_Hyperbolic):
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
        room = 1 - _dot(x, x)
        # v = tanh(|u| / (1 - |x|^2)) u / |u|; the sum of Möbius of x and v.
        v = tanhc(_dot(u, u) / room.square()) * u / room
        xv, vv = _dot(x, v), _dot(v, v)
        return ((1 + 2 * xv + vv) * x + room * v) / (1 + 2 * xv + _dot(x, x) * vv)

    @in_float64
    def _log(self, x, y):
        step, room = y - x, 1 - _dot(x, x)
        far = _dot(step, step)
        space = room * (1 - _dot(y, y))
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
        ab, au, bu, aa, bb = _dot(a, b), _dot(a, u), _dot(b, u), _dot(a, a), _dot(b, b)
        first = -au * bb + bu + 2 * ab * bu
        second = -bu * aa - au
        step = y - x
        turned = u + 2 * (first * a + second * b) / (_dot(step, step) + (1 - aa) * (1 - bb))
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
        return _lift(torch.cat([x[..., :1], 2 * x / (1 - _dot(x, x))], -1))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def _lift(x: Tensor) -> Tensor:
    """Computes the first coordinate from the others."""
    return torch.cat([(1 + x[..., 1:].square().sum(-1, keepdim=True)).sqrt(), x[..., 1:]], -1)


def _tangent(x: Tensor, u: Tensor) -> Tensor:
    """Computes the first coordinate of a tangent vector from the others."""
    return torch.cat([_dot(x[..., 1:], u[..., 1:]) / x[..., :1], u[..., 1:].expand_as(u[..., 1:] + x[..., 1:])], -1)


def _normal(x: Tensor) -> Tensor:
    """Returns the unit normal of the hyperboloid in the ambient space."""
    x = _lift(x)
    normal = torch.cat([-x[..., :1], x[..., 1:]], -1)
    return normal / norm(normal, keepdim=True)


def _minkowski(u: Tensor, v: Tensor) -> Tensor:
    return (u[..., 1:] * v[..., 1:]).sum(-1) - u[..., 0] * v[..., 0]


def _minkowski_inner(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Computes the inner product of tangent vectors from the coordinates after the first."""
    along = lambda each: (x[..., 1:] * each[..., 1:]).sum(-1)
    return (u[..., 1:] * v[..., 1:]).sum(-1) - along(u) * along(v) / x[..., 0].square()


def _minkowski_square(x: Tensor, u: Tensor) -> Tensor:
    return _minkowski_inner(x, u, u).clamp(min=0)


def _quarter(x: Tensor, y: Tensor) -> Tensor:
    """Computes a quarter of the squared chord, the square of sinh(d / 2)."""
    step, whole = x[..., 1:] - y[..., 1:], x[..., 1:] + y[..., 1:]
    rise = (step * whole).sum(-1) / (x[..., 0] + y[..., 0])  # the difference of the first coordinates
    return (0.25 * (step.square().sum(-1) - rise.square())).clamp(min=0)
