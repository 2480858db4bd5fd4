"""Spheres: unit vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from cflow.arguments import check_integer
from cflow.manifolds.manifold import Manifold
from cflow.manifolds.numerics import cos_sinc, norm, sinc
from cflow.registry import register

__all__ = ["Sphere"]


@register("manifolds.Sphere")
@dataclass(frozen=True)
class Sphere(Manifold):
    r"""The unit sphere of ``dim`` dimensions: unit vectors of ``dim + 1`` numbers.

    .. math:: \theta = 2 \operatorname{atan2}(|x - y|, |x + y|), \qquad
              \exp_x u = \cos|u| \, x + \frac{\sin|u|}{|u|} u, \qquad
              \log_x y = \theta \, \frac{y - \langle x, y\rangle x}{|y - \langle x, y\rangle x|}

    Distances are accurate to rounding from 1e-6 to the antipode in float32. From a point to its antipode, ``log`` goes
    along the coordinate axis that is least aligned with the point.

    Shapes: points ``[*batch, dim + 1]``; the circle is ``Sphere(1)``.

    Args:
        dim: the number of dimensions of the sphere.

    Raises:
        ValueError: if ``dim`` is not a positive integer.

    Example:
        >>> sphere = Sphere(2)
        >>> x, y = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0])
        >>> xt, ut = sphere.geodesic(x, y, torch.tensor(0.5))
        >>> xt, ut
        (tensor([0.0000, 0.7071, 0.7071]), tensor([ 0.0000,  1.1107, -1.1107]))
    """

    dim: int

    def __post_init__(self):
        check_integer("Sphere", "dim", self.dim, 1, "a sphere has one dimension or more; pass 2 for that of the earth.")

    @property
    def event_shape(self) -> Size:
        return Size([self.dim + 1])

    @property
    def picture(self) -> tuple[str, dict] | None:
        """A map, for the sphere of two dimensions."""
        return ("sphere", {}) if self.dim == 2 else None

    @property
    def log_volume(self) -> float:
        """The logarithm of the area, :math:`2 \\pi^{n/2} / \\Gamma(n/2)` with ``n = dim + 1``."""
        n = self.dim + 1
        return math.log(2) + n / 2 * math.log(math.pi) - math.lgamma(n / 2)

    @property
    def injectivity(self) -> float:
        """The distance of opposite points."""
        return math.pi

    def _exp(self, x, u):
        cos, sin = cos_sinc(_dot(u, u))
        return cos * x + sin * u

    def _log(self, x, y):
        w = y - x  # exact for near points
        w = w - _dot(x, w) * x
        w = w - _dot(x, w) * x  # near the antipode the first projection leaves a part along x
        length = norm(w, keepdim=True)
        angle = self._dist(x, y).unsqueeze(-1)
        # Within rounding of the antipode there is no direction left.
        away = (length <= 4 * torch.finfo(w.dtype).eps) & (angle > 1)
        w, length = torch.where(away, _orthogonal(x), w), torch.where(away, 1.0, length)
        # Where the points nearly coincide, the angle and the length may both be rounding: their ratio has a series.
        small = angle.square() < 2 * torch.finfo(w.dtype).eps ** 0.5
        ratio = torch.where(small, 1 + angle.square() / 6, angle / torch.where(small, 1.0, length))
        return ratio * w

    def _dist(self, x, y):
        return 2 * torch.atan2(norm(x - y), norm(x + y))

    def _project(self, x):
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        # The centre has no nearest point: it goes to the last axis.
        centre = (r == 0).to(x.dtype)
        return (x + torch.nn.functional.pad(centre, (self.dim, 0))) / (r + centre)

    def _to_tangent(self, x, u):
        return u - _dot(x, u) * x

    def _transport(self, x, y, u):
        # Reflections: along the geodesic u turns with it. Opposite points take the geodesic of ``log``.
        e = self._log(x, y)
        angle = norm(e, keepdim=True)
        e = torch.where(angle == 0, e, e / torch.where(angle == 0, 1.0, angle))
        along = _dot(e, u)
        return u + along * ((angle.cos() - 1) * e - angle.sin() * x)

    def _geodesic(self, x0, x1, t):
        e = self._log(x0, x1)
        square, t = _dot(e, e), t.unsqueeze(-1)
        cos, sin = cos_sinc(t.square() * square)
        sin = t * sin
        return cos * x0 + sin * e, cos * e - square * sin * x0

    def frame(self, x):
        """Returns the images of the first ``dim`` axes under the reflection that takes the last axis to ``x``.

        Args:
            x: points ``[*batch, dim + 1]``.
        """
        # Householder: the reflection takes the last axis to s x, with the sign s that avoids cancellation.
        n = self.dim + 1
        sign = torch.where(x[..., -1:] > 0, -torch.ones_like(x[..., -1:]), 1.0)
        w = -sign * x
        w = torch.cat([w[..., :-1], w[..., -1:] + 1], -1)  # last axis - s x
        units = torch.eye(n, dtype=x.dtype, device=x.device)[:-1]
        return units - 2 * w[..., :-1, None] * (w / w.square().sum(-1, keepdim=True)).unsqueeze(-2)

    def normal_velocity(self, x, y, v):
        r"""Returns the velocity in normal coordinates: parallel transport, times r / sin r across the geodesic.

        Args:
            x: points ``[*batch, dim + 1]``, where the coordinates are zero.
            y: points ``[*batch, dim + 1]``.
            v: tangent vectors at ``y``.
        """
        u, w = self._log(x, y), self._transport(y, x, v)
        square = _dot(u, u)
        stretch = 1 / sinc(norm(u, keepdim=True))
        near = square <= torch.finfo(x.dtype).eps
        curvature = torch.where(near, -1 / 6, (1 - stretch) / torch.where(near, 1.0, square))
        return stretch * w + curvature * _dot(u, w) * u

    def cost(self, x0, x1):
        """Computes squared distances between all pairs, ``[B0, B1]``, without tensors ``[B0, B1, dim + 1]``.

        Args:
            x0: points ``[B0, dim + 1]``.
            x1: points ``[B1, dim + 1]``.
        """
        # The plain mode: products of matrices would lose small distances.
        far = lambda a, b: torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        return (2 * torch.atan2(far(x0, x1), far(x0, -x1))).square()

    def preimages(self, x, y, count):
        """Returns the geodesics in both directions that go around up to ``count`` times, ``[2 * count + 1, ...]``.

        Args:
            x: points ``[*batch, dim + 1]``.
            y: points ``[*batch, dim + 1]``.
            count: the largest number of full turns.
        """
        u = self._log(x, y)
        angle = norm(u, keepdim=True)
        e = torch.where(angle == 0, _orthogonal(x), u / torch.where(angle == 0, 1.0, angle))
        turns = [0.0] + [sign * k for k in range(1, count + 1) for sign in (-1.0, 1.0)]
        return torch.stack([u if k == 0 else (angle + 2 * math.pi * k) * e for k in turns])

    def log_det_exp(self, x, u):
        r"""Computes :math:`(d - 1) \log |\sin|u| / |u||`.

        Args:
            x: points ``[*batch, dim + 1]``.
            u: tangent vectors at ``x``.
        """
        return (self.dim - 1) * sinc(norm(u)).abs().log()

    def uniform(self, shape, *, generator=None, dtype=None, device=None):
        """Draws points uniformly: normal vectors divided by their lengths.

        Args:
            shape: the shape of the batch.
            generator: the source of random numbers. Default: None, torch's default generator.
            dtype: the dtype of the points. Default: None, torch's default dtype.
            device: the device of the points. Default: None, torch's default device.
        """
        return self._project(torch.randn((*shape, self.dim + 1), generator=generator, dtype=dtype, device=device))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def _orthogonal(x: Tensor) -> Tensor:
    """Returns a unit vector orthogonal to each of ``x``: the projection of the axis that is least aligned with it."""
    axis = torch.nn.functional.one_hot(x.detach().abs().argmin(-1), x.shape[-1]).to(x.dtype)
    w = axis - _dot(x, axis) * x
    return w / norm(w, keepdim=True)
