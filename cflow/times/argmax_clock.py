"""Times at which the tokens of a noisy one-hot vector become visible at a constant rate."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.arguments import check_integer
from cflow.registry import register
from cflow.times.law import Times, inside

__all__ = ["ArgmaxClock"]

KNOTS, REACH = 513, 9.5  # REACH: standard deviations of the quadrature; a normal is beyond it once in 1e20 draws


@register("times.ArgmaxClock")
@dataclass(frozen=True)
class ArgmaxClock(Times):
    r"""Draws times uniformly in the share of tokens that the largest entry of a noisy one-hot vector reveals.

    .. math:: \alpha(t) = \frac{P(t) - 1/K}{1 - 1/K},
              \qquad P(t) = \int \varphi\Bigl(u - \frac{t}{1 - t}\Bigr) \Phi(u)^{K - 1} du

    On the linear path from standard normal noise to a one-hot vector with K entries, :math:`P(t)` is the probability
    that the largest entry is the token. For large K it is flat at first and then steep: with uniform times, most draws
    would see pure noise or finished tokens. The times have the distribution function :math:`\alpha`. Use it for
    training, and ``times.quantile_grid(steps, times.ArgmaxClock(K))`` for sampling.

    The function is computed once for each vocabulary, by quadrature in float64 at 513 times, and interpolated by
    monotone rational functions with the right values and slopes there. The error is below 1e-8, also for 50,000 tokens;
    the density is the exact derivative of the interpolation.

    Args:
        vocabulary: the number K of tokens.

    Cost: one uniform draw, a search in a table and a square root per time; the table takes some 40 ms on a CPU.

    Raises:
        ValueError: if ``vocabulary`` is not a whole number of at least 2.

    Source: One-step Language Modeling via Continuous Denoising, 2026, arXiv:2602.16813; interpolation after Gregory and
    Delbourgo, Piecewise Rational Quadratic Interpolation to Monotonic Data, 1982.

    Example:
        >>> ArgmaxClock(27).icdf(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.6694, 1.0000])
    """

    vocabulary: int

    def __post_init__(self):
        why = "a vocabulary has two tokens or more; pass their number, such as 27."
        check_integer("ArgmaxClock", "vocabulary", self.vocabulary, 2, why)

    def icdf(self, u: Tensor) -> Tensor:
        t, alpha, slope = _table(self.vocabulary, u.device)
        wanted = u.double().contiguous()
        k = torch.searchsorted(alpha, wanted, right=True).sub(1).clamp(0, len(t) - 2)
        width, rise = t[k + 1] - t[k], alpha[k + 1] - alpha[k]
        left, right, middle = slope[k], slope[k + 1], rise / width
        # The root in [0, 1] of a quadratic, in a form without cancellation.
        up = wanted - alpha[k]
        bend = up * (left + right - 2 * middle)
        a, b, c = rise * (middle - left) + bend, rise * left - bend, -middle * up
        root = torch.sqrt((b.square() - 4 * a * c).clamp(min=0))
        share = (2 * c / (-b - root)).nan_to_num(0.0).clamp(0, 1)
        # The slope vanishes at the last end, where the root has half of its digits.
        return torch.where(wanted < 1, t[k] + width * share, 1.0).to(u.dtype)

    def log_density(self, t: Tensor) -> Tensor:
        knots, alpha, slope = _table(self.vocabulary, t.device)
        point = t.double().clamp(0, 1).contiguous()
        k = torch.searchsorted(knots, point, right=True).sub(1).clamp(0, len(knots) - 2)
        width = knots[k + 1] - knots[k]
        share, middle = (point - knots[k]) / width, (alpha[k + 1] - alpha[k]) / width
        left, right, both = slope[k], slope[k + 1], share * (1 - share)
        top = right * share.square() + 2 * middle * both + left * (1 - share).square()
        value = 2 * middle.log() + top.log() - 2 * (middle + (left + right - 2 * middle) * both).log()
        return inside(t, value.to(t.dtype))


@functools.lru_cache(maxsize=32)
def _table(vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    r"""Computes times, :math:`\alpha` and its slope at the knots, in float64 on ``device``.

    With :math:`\lambda = t / (1 - t)` and a shift of the variable,
    :math:`P = \int \varphi(z) \Phi(z + \lambda)^{K - 1} dz`. The trapezoidal rule converges exponentially for such
    integrands.
    """
    with torch.device("cpu"):
        others = vocabulary - 1
        # Beyond the last lambda, a token is invisible with probability below 1e-12.
        last = math.sqrt(2) * float(-torch.special.ndtri(torch.tensor(1e-12 / others, dtype=torch.float64)))
        shift = torch.linspace(0, last, KNOTS - 1, dtype=torch.float64)[:, None]
        z = torch.linspace(-REACH, REACH, 1 + round(2 * REACH / 0.02), dtype=torch.float64)
        weight = (z[1] - z[0]) * torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
        below = torch.special.log_ndtr(z + shift)
        hidden = -(weight * torch.expm1(others * below)).sum(1)  # 1 - P, without cancellation near t = 1
        density = torch.exp(-0.5 * (z + shift).square()) / math.sqrt(2 * math.pi)
        slope = others * (weight * torch.exp((others - 1) * below) * density).sum(1)
        shift, scale = shift[:, 0], vocabulary / others
        alpha = 1 - scale * hidden
        alpha[0] = 0.0
        # The last piece ends at t = 1, where the slope vanishes.
        t = torch.cat([shift / (1 + shift), torch.ones(1, dtype=torch.float64)])
        alpha = torch.cat([alpha, torch.ones(1, dtype=torch.float64)])
        slope = torch.cat([scale * slope * (1 + shift).square(), torch.zeros(1, dtype=torch.float64)])
    return tuple(each.to(device) for each in (t, alpha, slope))
