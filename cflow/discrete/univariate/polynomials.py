"""Monotone polynomials: in the Bernstein basis, and as integrals of sums of squares."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from cflow.discrete.univariate.family import Univariate
from cflow.discrete.univariate.quadrature import legendre, real
from cflow.discrete.univariate.rootfinding import invert
from cflow.registry import register

__all__ = ["Bernstein", "SumOfSquares"]

ONE = math.log(math.e - 1)  # softplus of it is 1
# The largest raw number of a slope: far from the data a network's output may be very large, and layers multiply slopes.
MOST = 50.0


@register("discrete.Bernstein")
class Bernstein(Univariate):
    r"""Maps by a polynomial in the Bernstein basis with increasing coefficients, and by its tangents outside a box.

    .. math:: z = \sum_{i=0}^{M} \theta_i \binom{M}{i} t^i (1 - t)^{M - i}, \qquad t = \frac{x + B}{2 B}, \qquad
        \theta_{i+1} - \theta_i = \frac{2B}{M} m_i,
        \qquad m_i = \epsilon + (1 - \epsilon) \operatorname{softplus}(\cdot)

    The slope is a mean of the :math:`m_i`, weighted by the basis of degree M - 1: it is never below :math:`\epsilon`.
    For raw numbers of zero all :math:`m_i` are 1, and the function is the identity. At the edges of the box the slopes
    are :math:`m_0` and :math:`m_{M-1}`; the function continues with them, so the density is continuous.

    Raw numbers: ``(middle, M for the slopes from left to right)``; ``size = M + 1``.

    Values and slopes come from de Casteljau's algorithm, which only computes means of neighbours and is stable at any
    degree. ``decode`` has a closed form outside the box, and uses Newton's method inside.

    Args:
        degree: degree of the polynomial, M.
        bound: half the width of the box, B.
        floor: smallest slope, in (0, 1).

    Cost: M steps of arithmetic on at most 2 (M + 1) numbers per entry; ``decode`` takes as much per iteration.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Sick et al., Deep transformation models: Tackling complex regression problems with neural network based
    transformation models, 2020, arXiv:2004.00464; Ramasinghe et al., Robust normalizing flows using Bernstein-type
    polynomials, 2021, arXiv:2102.03509.

    Example:
        >>> family = Bernstein(degree=4)
        >>> family.encode(torch.tensor([-2.0, 9.0]), torch.zeros(2, family.size))
        (tensor([-2.,  9.]), tensor([0., 0.]))
    """

    def __init__(self, degree: int = 16, bound: float = 5.0, *, floor: float = 1e-3):
        super().__init__()
        if degree < 1 or not 0 < bound < math.inf or not 0 < floor < 1:
            raise ValueError(
                f"Bernstein(degree={degree}, bound={bound}, floor={floor}): degree and bound must be positive and "
                f"floor in (0, 1); pass Bernstein(16)."
            )
        self.degree, self.bound, self.floor = degree, bound, floor
        self.size = degree + 1

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._evaluate(x, *self._parts(raw, x.dtype))

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        levels, slopes = self._parts(raw, z.dtype)
        with torch.no_grad():
            left, right, bound = z - levels[..., 0], z - levels[..., -1], self.bound
            low, high = torch.where(left < 0, -math.inf, -bound), torch.where(right > 0, math.inf, bound)
            start = bound * (left + right) / (left - right)
            start = torch.where(left < 0, left / slopes[..., 0] - bound, start)
            start = torch.where(right > 0, right / slopes[..., -1] + bound, start)
        low, high = low.to(z.dtype), high.to(z.dtype)
        return invert(lambda x: self._evaluate(x, levels, slopes), z, start, low=low, high=high)

    def _parts(self, raw: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        raw = raw.to(dtype)
        slopes = self.floor + (1 - self.floor) * softplus(raw[..., 1:].clamp(max=MOST) + ONE, threshold=40.0)
        rise = slopes.cumsum(-1)
        levels = 2 * self.bound / self.degree * (pad(rise, (1, 0)) - rise[..., -1:] / 2) + raw[..., :1]
        return levels, slopes

    def _evaluate(self, x: Tensor, levels: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-self.bound, self.bound)
        t = (inside / (2 * self.bound) + 0.5)[..., None, None]
        both = torch.stack((levels, pad(slopes, (0, 1))), -2)
        for _ in range(self.degree - 1):
            both = torch.lerp(both[..., :-1], both[..., 1:], t)
        ends, slope = both[..., 0, :], both[..., 1, 0]
        value = torch.lerp(ends[..., 0], ends[..., 1], t[..., 0, 0])
        return torch.addcmul(value, slope, x - inside), slope.log()

    def extra_repr(self) -> str:
        return f"degree={self.degree}, bound={self.bound}"


@register("discrete.SumOfSquares")
class SumOfSquares(Univariate):
    r"""Maps by the integral of a sum of squared polynomials, and by its tangents outside a box.

    .. math::
        z = c + \int_0^x \epsilon + (1 - \epsilon) \sum_{k=1}^{K} p_k(u)^2 \, du,
        \qquad p_k(u) = \frac{1}{\sqrt K} + \sum_{l=0}^{L} a_{kl} \Bigl(\frac{k}{K} \frac{u}{B}\Bigr)^l

    For raw numbers of zero this is the identity. Each squared polynomial has its own length scale; otherwise all would
    learn the same. This is the function within [-B, B]; outside, it continues with its slopes at the edges. (In the
    paper it grows like :math:`x^{2L + 1}`; with three layers of degree 4 that exceeds the range of float32 at five
    standard deviations.)

    Raw numbers: ``(c, a [K, L + 1])``; ``size = K (L + 1) + 1``.

    The integral is computed by the Gauss-Legendre rule with L + 1 nodes, which is exact here and adds only positive
    terms. ``decode`` has a closed form outside the box, and uses Newton's method inside.

    Args:
        degree: degree of the polynomials that are squared, L.
        polynomials: number of polynomials, K; two suffice for every positive polynomial.
        bound: half the width of the box, B.
        floor: smallest slope, in (0, 1).

    Cost: L + 2 evaluations of K polynomials per entry; ``decode`` takes as much per iteration.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Jaini et al., Sum-of-Squares Polynomial Flow, 2019, arXiv:1905.02325.

    Example:
        >>> family = SumOfSquares(degree=1, polynomials=1, bound=3.0, floor=1e-6)
        >>> z, _ = family.encode(torch.tensor([3.0, 4.0]), torch.tensor([[0.0, -1.0, 3.0]] * 2))  # the integral of u^2
        >>> z.round(decimals=3)
        tensor([ 9., 18.])
    """

    def __init__(self, degree: int = 4, polynomials: int = 3, *, bound: float = 5.0, floor: float = 1e-3):
        super().__init__()
        if degree < 0 or polynomials < 1 or not 0 < bound < math.inf or not 0 < floor < 1:
            raise ValueError(
                f"SumOfSquares(degree={degree}, polynomials={polynomials}, bound={bound}, floor={floor}): degree must "
                f"be 0 or more, polynomials and bound positive, floor in (0, 1); pass SumOfSquares()."
            )
        self.degree, self.polynomials, self.bound, self.floor = degree, polynomials, bound, floor
        self.size = polynomials * (degree + 1) + 1
        self.register_buffer("rule", legendre(degree + 1), persistent=False)

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._evaluate(x, *self._parts(raw, x.dtype))

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        constant, coefficients = self._parts(raw, z.dtype)
        with torch.no_grad():
            bound = torch.full_like(z, self.bound)
            (least, first), (most, last) = (self._evaluate(x, constant, coefficients) for x in (-bound, bound))
            left, right = z - least, z - most
            low, high = torch.where(left < 0, -math.inf, -bound), torch.where(right > 0, math.inf, bound)
            start = bound * (left + right) / (left - right)
            start = torch.where(left < 0, left * (-first).exp() - bound, start)
            start = torch.where(right > 0, right * (-last).exp() + bound, start)
        return invert(lambda x: self._evaluate(x, constant, coefficients), z, start, low=low, high=high)

    def _parts(self, raw: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        raw, count = raw.to(dtype), self.polynomials
        scales = torch.arange(1, count + 1, dtype=dtype, device=raw.device) / (count * self.bound)
        powers = scales[:, None] ** torch.arange(self.degree + 1, dtype=dtype, device=raw.device)
        coefficients = raw[..., 1:].clamp(-MOST, MOST).unflatten(-1, powers.shape) * powers
        return raw[..., 0], coefficients + pad(raw.new_full((1,), count**-0.5), (0, self.degree))

    def _evaluate(self, x: Tensor, constant: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        nodes, weights = real(self.rule, x.dtype)
        inside = x.clamp(-self.bound, self.bound)
        u = (inside[..., None] * pad(nodes, (0, 1), value=1.0))[..., None]
        value = torch.zeros_like(u)
        for each in reversed(coefficients.unbind(-1)):
            value = torch.addcmul(each[..., None, :], value, u)
        slopes = self.floor + (1 - self.floor) * value.square().sum(-1)
        value = torch.addcmul(constant, inside, (slopes[..., :-1] * weights).sum(-1))
        return torch.addcmul(value, slopes[..., -1], x - inside), slopes[..., -1].log()

    def extra_repr(self) -> str:
        return f"degree={self.degree}, polynomials={self.polynomials}"
