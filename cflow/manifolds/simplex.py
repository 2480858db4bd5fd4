"""The simplex with the Fisher-Rao metric."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from cflow.arguments import check_integer
from cflow.manifolds.manifold import Manifold
from cflow.manifolds.numerics import norm, sinc
from cflow.manifolds.sphere import Sphere
from cflow.registry import register

__all__ = ["Simplex"]


@register("manifolds.Simplex")
@dataclass(frozen=True)
class Simplex(Manifold):
    r"""Vectors of ``size`` probabilities, with the metric of Fisher and Rao.

    .. math:: \langle u, v \rangle_p = \sum_i \frac{u_i v_i}{p_i},
              \qquad d(p, q) = 2 \arccos \sum_i \sqrt{p_i q_i}

    The roots of the probabilities lie on the unit sphere, where the metric is four times that of the sphere. All
    methods compute there, so distances and geodesics from and to the boundary, where probabilities are zero, are
    finite. Tangent vectors at the boundary are not enough: a geodesic leaves it with velocity zero in these
    coordinates, so ``log`` there loses the direction, and ``inner`` takes 0 / 0 as zero. For flows to one-hot vectors
    use the roots: a :class:`Sphere`, or :class:`cflow.paths.Fisher`.

    The whole volume is :math:`\pi^{n/2} / \Gamma(n/2)`. The uniform distribution is Dirichlet with all parameters 1/2.
    A geodesic that reaches the boundary is reflected there. The velocity of a flow must vanish at the boundary, as
    :math:`p_i` does: points whose way back leads out of the simplex have no density.

    Shapes: points ``[*batch, size]``, not negative, with sum one.

    Args:
        size: the number of probabilities, n.

    Raises:
        ValueError: if ``size`` is below two.

    Source: Davis et al., Fisher Flow Matching for Generative Modeling over Discrete Data, 2024, arXiv:2405.14664; Cheng
    et al., Categorical Flow Matching on Statistical Manifolds, 2024, arXiv:2405.16441.

    Example:
        >>> simplex = Simplex(2)
        >>> simplex.dist(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        tensor(3.1416)
    """

    size: int

    def __post_init__(self):
        check_integer("Simplex", "size", self.size, 2, "there are two probabilities or more; pass 4 for DNA.")

    @property
    def event_shape(self) -> Size:
        return Size([self.size])

    @property
    def dim(self) -> int:
        return self.size - 1

    @property
    def log_volume(self) -> float:
        """The logarithm of the volume."""
        return self.size / 2 * math.log(math.pi) - math.lgamma(self.size / 2)

    @property
    def injectivity(self) -> float:
        """Zero: geodesics reach the boundary."""
        return 0.0

    @property
    def _sphere(self) -> Sphere:
        return Sphere(self.dim)

    def _exp(self, x, u):
        s = _root(x)
        return self._sphere.exp(s, _over(u, 2 * s)).square()

    def _log(self, x, y):
        s = _root(x)
        return 2 * s * self._sphere.log(s, _root(y))

    def _dist(self, x, y):
        return 2 * self._sphere.dist(_root(x), _root(y))

    def _project(self, x):
        x = x - (x.sum(-1, keepdim=True) - 1) / self.size
        x = x.clamp(min=0)
        return x / x.sum(-1, keepdim=True)

    def _to_tangent(self, x, u):
        u = u.expand(torch.broadcast_shapes(x.shape, u.shape))
        return u - u.mean(-1, keepdim=True)

    def _transport(self, x, y, u):
        s, r = _root(x), _root(y)
        return 2 * r * self._sphere.transport(s, r, _over(u, 2 * s))

    def _inner(self, x, u, v):
        s = _root(x)
        return (_over(u, s) * _over(v, s)).sum(-1)

    def _geodesic(self, x0, x1, t):
        s, a = self._sphere.geodesic(_root(x0), _root(x1), t)
        return s.square(), 2 * s * a

    def origin(self, *, dtype=None, device=None):
        """Returns equal probabilities.

        Args:
            dtype: the dtype of the point. Default: None, torch's default dtype.
            device: the device of the point. Default: None, torch's default device.
        """
        return torch.full(self.event_shape, 1 / self.size, dtype=dtype, device=device)

    def frame(self, x):
        """Returns Helmert's contrasts: in row k, the k first probabilities against the next one.

        Args:
            x: points ``[*batch, size]``.
        """
        k = torch.arange(1, self.size, dtype=x.dtype, device=x.device).unsqueeze(1)
        place = torch.arange(self.size, dtype=x.dtype, device=x.device)
        rows = torch.where(place < k, 1.0, torch.where(place == k, -k, 0.0)) / (k * (k + 1)).sqrt()
        return rows.expand(*x.shape[:-1], *rows.shape)

    def log_volume_element(self, x):
        r"""Computes :math:`-\tfrac12 \sum_i \log p_i - \tfrac12 \log n`.

        It is infinite at the boundary, where the smallest positive number of the dtype replaces zero.

        Args:
            x: points ``[*batch, size]``.
        """
        return -0.5 * x.clamp(min=torch.finfo(x.dtype).tiny).log().sum(-1) - 0.5 * math.log(self.size)

    def cost(self, x0, x1):
        """Computes squared distances between all pairs, ``[B0, B1]``, without tensors ``[B0, B1, size]``.

        Args:
            x0: points ``[B0, size]``.
            x1: points ``[B1, size]``.
        """
        return 4 * self._sphere.cost(_root(x0), _root(x1))

    def preimages(self, x, y, count):
        """Returns those of all points of the sphere whose squares are ``y``, with up to ``count`` turns each.

        Args:
            x: points ``[*batch, size]``.
            y: points ``[*batch, size]``.
            count: the largest number of full turns.

        Raises:
            ValueError: if ``size`` exceeds 12: there are ``2 ** size`` points.
        """
        if self.size > 12:
            raise ValueError(
                f"{self!r}.preimages: there are 2 ** {self.size} reflections; use manifolds.Dirichlet as the base."
            )
        s = _root(x)
        signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=x.dtype, device=x.device)] * self.size)
        ends = signs.reshape(-1, *[1] * (max(x.dim(), y.dim()) - 1), self.size) * _root(y)
        return 2 * s * self._sphere.preimages(s, ends, count).flatten(0, 1)

    def log_det_exp(self, x, u):
        r"""Computes :math:`(n - 2) \log |\sin(|u| / 2) / (|u| / 2)|`.

        Args:
            x: points ``[*batch, size]``.
            u: tangent vectors at ``x``.
        """
        return (self.dim - 1) * sinc(0.5 * norm(u, lambda u: self._inner(x, u, u))).abs().log()

    def uniform(self, shape, *, generator=None, dtype=None, device=None):
        """Draws the squares of uniform points of the sphere: Dirichlet with all parameters 1/2.

        Args:
            shape: the shape of the batch.
            generator: the source of random numbers. Default: None, torch's default generator.
            dtype: the dtype of the points. Default: None, torch's default dtype.
            device: the device of the points. Default: None, torch's default device.
        """
        return self._sphere.uniform(shape, generator=generator, dtype=dtype, device=device).square()


def _root(p: Tensor) -> Tensor:
    """Computes the root, with gradient zero at zero and below."""
    empty = p <= 0
    return torch.where(empty, 0.0, torch.where(empty, 1.0, p).sqrt())


def _over(u: Tensor, s: Tensor) -> Tensor:
    """Divides; zero where the divisor is zero."""
    empty = s == 0
    return torch.where(empty, 0.0, u / torch.where(empty, 1.0, s))
