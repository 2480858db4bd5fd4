"""The rational-quadratic spline: flexible, smooth, with an inverse in closed form."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from cflow.discrete.univariate.knots import FRAME, Spline, affine, check_slope, pick, within
from cflow.registry import register

__all__ = ["RationalQuadratic"]


@register("discrete.RationalQuadratic")
class RationalQuadratic(Spline):
    r"""Maps a box onto itself by a monotone rational-quadratic spline.

    In a bin of width :math:`w`, height :math:`h`, mean slope :math:`\delta = h / w` and slopes :math:`s_0, s_1` at its
    ends, with the relative position :math:`\theta = (x - x_0) / w \in [0, 1]`,

    .. math::
        z = z_0 + h \frac{\delta \theta^2 + s_0 \theta (1 - \theta)}{D},
        \qquad D = \delta + (s_0 + s_1 - 2 \delta)\, \theta (1 - \theta), \qquad
        \frac{dz}{dx} = \frac{\delta^2}{D^2}
        \bigl(s_0 (1 - \theta)^2 + 2 \delta \theta (1 - \theta) + s_1 \theta^2\bigr)

    and back, with the relative height :math:`\eta = (z - z_0) / h \in [0, 1]`,

    .. math::
        \theta = \frac{2 \delta \eta}{2 \delta \eta + p + r}, \qquad p = s_0 (1 - \eta) - s_1 \eta,
        \qquad r = \sqrt{p^2 + 4 \delta^2 \eta (1 - \eta)}, \qquad \frac{dx}{dz} = \frac{D}{\delta r}

    In this form the discriminant is a sum of squares and cannot become negative; for :math:`p < 0`, the mirrored
    formula for :math:`1 - \theta` is used. No difference here cancels.

    Raw numbers: ``bins`` widths and ``bins`` heights (through a softmax), then the slopes at the knots (through a
    softplus that is one at zero): inner knots for ``"linear"`` tails, all but the last for ``"circular"``, all for
    ``"box"`` and ``"affine"``. ``"circular"`` tails add the phase; ``"affine"`` tails add the position of the box in
    data and latents and its two log-scales. For ``raw = 0`` the function is the identity.

    Args:
        bins: number of bins, 2 or more.
        bound: half the length of the box.
        tails: the map outside the box: ``"linear"`` is the identity; ``"box"`` continues with the slopes at the edges,
            for densities on the box; ``"affine"`` is ``"box"`` with a learned box for every entry; ``"circular"`` is a
            map of the circle of length ``2 bound``.
        minimum_bin: smallest width and height, as a fraction of the box.
        minimum_slope: smallest slope at a knot, below 1.
        kernel: ``"eager"``, or ``"triton"`` for one fused kernel in place of about fifty operations: float32, linear
            tails, only first derivatives (no scores of scores, no ``vmap(grad)``), on a GPU. It has been checked on a
            CPU, through Triton's interpreter (``TRITON_INTERPRET=1``), and has not run on a GPU yet.

    Shapes: ``x [...]``, ``raw [..., size]`` with ``size`` of ``3 bins - 1`` for linear tails, ``3 bins + 1`` for
    circular ones and a box, ``3 bins + 5`` for affine ones.

    Precision: in float32 the error of ``decode(encode(x))`` is a few units of rounding times
    :math:`\max(|x|, |z|, \texttt{bound})\,(1 + 1 / g'(x))`; for ``encode(decode(z))``, replace :math:`1 / g'(x)` by
    :math:`g'(x)`.

    Raises:
        ValueError: if tails or kernel are unknown, ``bins`` is below 2, ``bound`` is not positive, or a minimum leaves
            no room; with ``kernel="triton"`` also for other tails, for dtypes other than float32, and on a CPU.
        ImportError: at the first call of the triton kernel, if Triton is not installed.

    Source: Durkan et al., Neural Spline Flows, 2019, arXiv:1906.04032; Gregory and Delbourgo, Piecewise rational
    quadratic interpolation to monotonic data, 1982; circles: Rezende et al., Normalizing Flows on Tori and Spheres,
    2020, arXiv:2002.02428.

    Example:
        >>> family = RationalQuadratic(bins=4)
        >>> x, raw = torch.tensor([-7.0, 0.5, 5.0]), torch.zeros(3, family.size)
        >>> z, ladj = family.encode(x, raw)
        >>> torch.allclose(z, x), torch.allclose(ladj, torch.zeros(3), atol=1e-6)
        (True, True)
    """

    def __init__(
        self,
        bins: int = 8,
        bound: float = 5.0,
        tails: str = "linear",
        minimum_bin: float = 1e-3,
        minimum_slope: float = 1e-3,
        kernel: Literal["eager", "triton"] = "eager",
    ):
        super().__init__(bins, bound, tails, minimum_bin)
        check_slope(self, minimum_slope)
        if kernel not in ("eager", "triton") or (kernel == "triton" and tails != "linear"):
            raise ValueError(
                f"RationalQuadratic(kernel={kernel!r}, tails={tails!r}): a kernel is 'eager', or 'triton' with linear "
                f"tails; pass kernel='eager'."
            )
        self.minimum_slope, self.kernel = minimum_slope, kernel
        self._parts = [2 * bins, {"linear": bins - 1, "circular": bins}.get(tails, bins + 1), FRAME[tails]]
        self.size = sum(self._parts)

    def _map(self, value: Tensor, raw: Tensor, side: int) -> tuple[Tensor, Tensor]:
        if self.kernel == "eager":
            return super()._map(value, raw, side)
        from cflow.discrete.univariate.spline_kernel import fused

        return fused(self, value, raw.to(value.dtype), inverse=side == 1)

    def _bins(self, rows: tuple[Tensor, ...]) -> Tensor:
        return self._shares(rows[0].unflatten(0, (2, self.bins)))

    def _slopes(self, rows: tuple[Tensor, ...], table: Tensor, index: Tensor) -> Tensor:
        knots = rows[1]
        if self.tails == "linear":
            knots = pad(knots, (0, 0) * (knots.dim() - 1) + (1, 1))
        elif self.tails == "circular":
            knots = torch.cat((knots, knots[:1]))
        knots = torch.cat((pick(knots, index, 0), pick(knots, index + 1, 0)))
        slopes = softplus(knots, beta=math.log(2), threshold=40.0)
        return affine(slopes, 1 - self.minimum_slope, self.minimum_slope)

    def _up(self, step: Tensor, low: Tensor, size: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        (width, height), (s0, s1) = size.unbind(), slopes.unbind()
        theta, delta = within(step / width), height / width
        share = delta / _denominator(theta, delta, s0, s1)
        # De Casteljau's scheme: means of positive numbers, each as accurate as its ends.
        left = torch.lerp(s0, delta, theta)
        slope = torch.lerp(left, torch.lerp(delta, s1, theta), theta)
        return torch.addcmul(low, width * theta, left * share), torch.add(slope.log(), share.log(), alpha=2)

    def _down(self, step: Tensor, low: Tensor, size: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        (width, height), (s0, s1) = size.unbind(), slopes.unbind()
        eta, delta = within(step / height), height / width
        theta, root = solve(eta, delta, s0, s1)
        ladj = (_denominator(theta, delta, s0, s1) / delta / root).log()
        return torch.addcmul(low, width, theta), ladj


def _denominator(theta: Tensor, delta: Tensor, s0: Tensor, s1: Tensor) -> Tensor:
    return torch.addcmul(delta, torch.sub(s0 + s1, delta, alpha=2), torch.addcmul(theta, theta, theta, value=-1))


def solve(eta: Tensor, delta: Tensor, s0: Tensor, s1: Tensor) -> tuple[Tensor, Tensor]:
    """Inverts a bin with slopes ``s0``, ``s1`` and mean slope ``delta``: ``(theta, root of the discriminant)``."""
    rest, twice = 1 - eta, 2 * delta
    up, down = twice * eta, twice * rest
    p = torch.addcmul(s0 * rest, s1, eta, value=-1)
    root = torch.addcmul(up * down, p, p).sqrt()
    first, other = p >= 0, p.abs() + root
    done = torch.where(first, up, other)
    return done / (done + torch.where(first, other, down)), root
