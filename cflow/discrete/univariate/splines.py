"""Splines of degree one, two and three, with the box and the tails of the rational-quadratic one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.discrete.univariate.knots import Spline, affine, check_slope, pick, within
from cflow.discrete.univariate.rational_quadratic import solve
from cflow.registry import register

__all__ = ["CubicSpline", "LinearSpline", "QuadraticSpline"]

BOXES = ("linear", "box")
# The smallest slope at a learned edge of a cubic, in units of the mean slope of the outer bin.
LEAST = 1e-3
# Bracketed steps of the inverse of a cubic, before the two with gradients.
STEPS = 3


@register("discrete.LinearSpline")
class LinearSpline(Spline):
    r"""Maps a box onto itself by a straight line in each of ``bins`` bins of equal width: the density of a histogram.

    .. math:: z = z_0 + (x - x_0)\, \delta, \qquad \frac{dz}{dx} = \delta = h / w

    The density jumps at every knot, so maximum likelihood has no gradient for the positions of knots; therefore widths
    are not learned. Raw numbers: ``bins`` heights, through a softmax. For ``raw = 0`` the function is the identity.

    Args:
        bins, bound, minimum_bin: see :class:`RationalQuadratic`.
        tails: ``"linear"``, the identity outside, or ``"box"``, which continues with the slopes of the outer bins.

    Shapes: ``x [...]``, ``raw [..., bins]``.

    Raises:
        ValueError: if ``tails`` is unknown, ``bins`` is below 2, ``bound`` is not positive, or the minimum leaves no
            room.

    Source: Müller et al., Neural Importance Sampling, 2018, arXiv:1808.03856.

    Example:
        >>> z, ladj = LinearSpline(bins=2, bound=1.0).encode(torch.tensor([0.5]), torch.tensor([[0.0, 1.0]]))
        >>> z, ladj.exp()
        (tensor([0.2694]), tensor([1.4612]))
    """

    def __init__(self, bins: int = 16, bound: float = 5.0, tails: str = "linear", minimum_bin: float = 1e-3):
        super().__init__(bins, bound, tails, minimum_bin, allowed=BOXES)
        self.size, self._parts = bins, [bins]

    def _bins(self, rows: tuple[Tensor, ...]) -> Tensor:
        heights = self._shares(rows[0][None])
        return torch.cat((torch.full_like(heights, 2 * self.bound / self.bins), heights))

    def _slopes(self, rows: tuple[Tensor, ...], table: Tensor, index: Tensor) -> Tensor:
        slope = pick(table[1], index, 0) * (self.bins / (2 * self.bound))
        return slope.expand(2, *slope.shape[1:])

    def _up(self, step: Tensor, low: Tensor, size: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        return torch.addcmul(low, size[1], within(step / size[0])), slopes[0].log()

    def _down(self, step: Tensor, low: Tensor, size: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        return torch.addcmul(low, size[0], within(step / size[1])), -slopes[0].log()


@register("discrete.QuadraticSpline")
class QuadraticSpline(Spline):
    r"""Maps a box onto itself by a parabola in each bin: a density that is linear between knots and has no jumps.

    With the slopes :math:`s_0, s_1` at the ends of a bin of width :math:`w` and :math:`\theta = (x - x_0) / w`,

    .. math::
        \frac{dz}{dx} = s(\theta) = s_0 (1 - \theta) + s_1 \theta,
        \qquad z = z_0 + (x - x_0)\, \frac{s_0 + s(\theta)}{2}

    and back, since the square of the slope is linear in z,

    .. math:: s = \sqrt{s_0^2 (1 - \eta) + s_1^2 \eta}, \qquad x = x_0 + \frac{2 (z - z_0)}{s_0 + s}, \qquad
        \eta = \frac{z - z_0}{h}, \quad h = w\, \frac{s_0 + s_1}{2}

    Heights follow from slopes, which are scaled so that heights fill the box; with linear tails the slopes at the
    edges are one, and the inner ones are scaled to fill the rest. Raw numbers: ``bins`` widths (through a softmax),
    then slopes (through an exponential): inner knots for linear tails, all for a box. For ``raw = 0`` the function is
    the identity.

    Args:
        bins, bound: see :class:`RationalQuadratic`.
        tails: ``"linear"`` or ``"box"``.
        minimum_bin: smallest width, as a fraction of the box.
        minimum_slope: smallest slope.

    Shapes: ``x [...]``, ``raw [..., size]`` with ``size`` of ``2 bins - 1`` for linear tails, ``2 bins + 1`` for a box.

    Raises:
        ValueError: if ``tails`` is unknown, ``bins`` is below 2, ``bound`` is not positive, or a minimum leaves no
            room.

    Source: Müller et al., Neural Importance Sampling, 2018, arXiv:1808.03856.

    Example:
        >>> family = QuadraticSpline(bins=4)
        >>> z, ladj = family.encode(torch.tensor([0.5]), torch.zeros(1, family.size))
        >>> torch.allclose(z, torch.tensor([0.5]))
        True
    """

    def __init__(
        self,
        bins: int = 8,
        bound: float = 5.0,
        tails: str = "linear",
        minimum_bin: float = 1e-3,
        minimum_slope: float = 1e-3,
    ):
        super().__init__(bins, bound, tails, minimum_bin, allowed=BOXES)
        check_slope(self, minimum_slope)
        self.minimum_slope = minimum_slope
        self._parts = [bins, bins - 1 if tails == "linear" else bins + 1]
        self.size = sum(self._parts)

    def _bins(self, rows: tuple[Tensor, ...]) -> Tensor:
        widths = self._shares(rows[0][None])[0]
        knots = self._knots(rows, widths)
        heights = widths * (knots[1:] + knots[:-1]) / 2
        return torch.stack((widths, heights))

    def _knots(self, rows, widths: Tensor) -> Tensor:
        """Returns the slopes at all knots, scaled so that the heights fill the box for the given widths."""
        share = rows[1].softmax(0)
        if self.tails == "linear":
            room = (widths[1:] + widths[:-1]) / 2
        else:
            room = torch.cat((widths[:1], widths[1:] + widths[:-1], widths[-1:])) / 2
        knots = share * (room.sum(0) / (share * room).sum(0))
        knots = knots * (1 - self.minimum_slope) + self.minimum_slope
        if self.tails == "linear":
            edge = torch.ones_like(widths[:1])
            knots = torch.cat((edge, knots, edge))
        return knots

    def _slopes(self, rows: tuple[Tensor, ...], table: Tensor, index: Tensor) -> Tensor:
        knots = self._knots(rows, table[0])
        return torch.cat((pick(knots, index, 0), pick(knots, index + 1, 0)))

    def _up(self, step: Tensor, low: Tensor, size: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        theta = within(step / size[0])
        slope = torch.lerp(slopes[0], slopes[1], theta)
        return torch.addcmul(low, size[0] * theta, (slopes[0] + slope) / 2), slope.log()

    def _down(self, step: Tensor, low: Tensor, size: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        eta, square = within(step / size[1]), slopes.square()
        square = torch.lerp(square[0], square[1], eta)
        return low + size[1] * eta * 2 / (slopes[0] + square.sqrt()), square.log() / -2


@register("discrete.CubicSpline")
class CubicSpline(Spline):
    r"""Maps a box onto itself by a cubic in each bin (Steffen's monotone interpolation); the density is a parabola.

    With the slopes at the ends in units of the mean slope, :math:`a = s_0 / \delta, b = s_1 / \delta`, and
    :math:`\theta = (x - x_0) / w`,

    .. math:: z = z_0 + h\, \theta \bigl(a + \theta (3 - 2 a - b + \theta (a + b - 2))\bigr), \qquad
        \frac{dz}{dx} = \delta \bigl(a (1 - \theta)^2 + 2 (3 - a - b) \theta (1 - \theta) + b \theta^2\bigr)

    Slopes at inner knots follow from the neighbouring bins,
    :math:`s = \min(2 \delta_-, 2 \delta_+, (\delta_- w_+ + \delta_+ w_-) / (w_- + w_+))`.
    At the edges of a box they are learned, between zero and three times the mean slope of the bin; with linear tails
    they are one, or three times the mean slope of an outer bin where that is less (only then does the density jump at
    the edge). Raw numbers: ``bins`` widths, ``bins`` heights (through a softmax each), and the two slopes of a box. For
    ``raw = 0`` the function is the identity.

    ``decode`` starts from the rational-quadratic curve with the same slopes, which is close, never degenerate and
    inverted in closed form. It takes a fixed number of bracketed steps of Laguerre's method, then two Newton steps with
    a graph, which make gradients exact to third order. (Formulas with cosines or roots lose all digits where the cubic
    is nearly a parabola or a line.)

    Args:
        bins, bound, minimum_bin: see :class:`RationalQuadratic`.
        tails: ``"linear"`` or ``"box"``.

    Shapes: ``x [...]``, ``raw [..., size]`` with ``size`` of ``2 bins`` for linear tails, ``2 bins + 2`` for a box.

    Raises:
        ValueError: if ``tails`` is unknown, ``bins`` is below 2, ``bound`` is not positive, or the minimum leaves no
            room.

    Source: Durkan et al., Cubic-Spline Flows, 2019, arXiv:1906.02145; Steffen, A simple method for monotonic
    interpolation in one dimension, 1990.

    Example:
        >>> family = CubicSpline(bins=4)
        >>> z, ladj = family.encode(torch.tensor([0.5]), torch.zeros(1, family.size))
        >>> torch.allclose(z, torch.tensor([0.5]))
        True
    """

    def __init__(self, bins: int = 8, bound: float = 5.0, tails: str = "linear", minimum_bin: float = 1e-3):
        super().__init__(bins, bound, tails, minimum_bin, allowed=BOXES)
        self._parts = [2 * bins, 2 if tails == "box" else 0]
        self.size = sum(self._parts)

    def _bins(self, rows: tuple[Tensor, ...]) -> Tensor:
        return self._shares(rows[0].unflatten(0, (2, self.bins)))

    def _slopes(self, rows: tuple[Tensor, ...], table: Tensor, index: Tensor) -> Tensor:
        near = [
            pick(table, each, 1) for each in ((index - 1).clamp(min=0), index, (index + 1).clamp(max=self.bins - 1))
        ]
        widths, heights = torch.cat(near, 1).unbind()
        mean = heights / widths
        if self.tails == "linear":
            edges = (3 * mean[1]).clamp(max=1.0).expand(2, *mean.shape[1:])
        else:
            # With this shift the sigmoid starts at a slope of one.
            share = torch.sigmoid(rows[1] + math.log((1 - LEAST) / 2))
            edges = mean[1] * affine(share, 3 - LEAST, LEAST)
        low, high = mean[:-1], mean[1:]
        knots = (low * widths[1:] + high * widths[:-1]) / (widths[1:] + widths[:-1])
        knots = torch.minimum(knots, 2 * torch.minimum(low, high))
        first, last = index == 0, index == self.bins - 1
        return torch.where(torch.cat((first, last)), edges, knots)

    def _up(self, step: Tensor, low: Tensor, size: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        (width, height), delta = size.unbind(), size[1] / size[0]
        a, b = (slopes / delta).unbind()
        theta = within(step / width)
        return torch.addcmul(low, height, _cubic(theta, a, b)), (delta * _rise(theta, a, b)).log()

    def _down(self, step: Tensor, low: Tensor, size: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        (width, height), delta = size.unbind(), size[1] / size[0]
        a, b = (slopes / delta).unbind()
        eta = within(step / height)
        theta = _root(*(each.detach() for each in (eta, a, b)))
        for _ in range(2):
            theta = within(theta - (_cubic(theta, a, b) - eta) / _rise(theta, a, b))
        return torch.addcmul(low, width, theta), -(delta * _rise(theta, a, b)).log()


def _cubic(theta: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return theta * (a + theta * (3 - 2 * a - b + theta * (a + b - 2)))


def _rise(theta: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Computes the derivative of the cubic; only its middle term may be negative."""
    rest = 1 - theta
    return a * rest.square() + 2 * (3 - a - b) * theta * rest + b * theta.square()


def _root(eta: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Solves the cubic for ``eta`` within a bracket by Laguerre's method: order three, and robust far from the root."""
    theta, _ = solve(eta, torch.ones_like(eta), a, b)
    left, right = torch.zeros_like(eta), torch.ones_like(eta)
    for _ in range(STEPS):
        gap, slope = _cubic(theta, a, b) - eta, _rise(theta, a, b)
        bend = 2 * (3 - 2 * a - b) + 6 * theta * (a + b - 2)
        left, right = torch.where(gap <= 0, theta, left), torch.where(gap >= 0, theta, right)
        step = theta - 3 * gap / (slope + (4 * slope.square() - 6 * gap * bend).clamp(min=0).sqrt())
        theta = torch.where((step >= left) & (step <= right), step, (left + right) / 2)
    return theta
