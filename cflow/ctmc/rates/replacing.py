"""Rates whose coefficients do not depend on the state; their steps have a closed form."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from cflow.ctmc.rates.rate import Coefficients, Moment, Rate, like
from cflow.registry import register

__all__ = ["Corrector", "DetailedBalance", "MinimalJump", "Replacing"]


class Replacing(Rate):
    r"""Rates of which the coefficients do not depend on the state: tokens are replaced, by the data's or the source's.

    For a fixed posterior a step from t to s has a closed form: a token stays with probability

    .. math:: E = \frac{1 - \kappa_s}{1 - \kappa_t} e^{-\Lambda}

    it becomes a draw of the posterior with probability :math:`\kappa_s - \kappa_t E`, and otherwise a draw of the
    source. Here :math:`\Lambda` is the integral of all rates beyond those of :class:`MinimalJump`.
    """

    @abstractmethod
    def extra(self, schedule: Any, t: Tensor, s: Tensor) -> Tensor | None:
        r"""Computes :math:`\Lambda` of a ``schedule`` between the times ``t`` and ``s [B, *1]``; None for zero."""

    def odds(self, schedule: Any, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the probabilities that a token becomes one of the data, or of the source, from ``t`` to ``s``."""
        before, after = schedule.remaining(t), schedule.remaining(s)
        stays = torch.where(before > 0, after / before, 0.0)
        extra = self.extra(schedule, t, s)
        if extra is not None:
            stays = torch.where(stays > 0, stays * torch.exp(-extra), 0.0)
        to_data = schedule.kappa(s) - schedule.kappa(t) * stays
        return to_data.clamp(0, 1), (after - before * stays).clamp(0, 1)

    def move(self, path: Any, posterior: Any, t: Tensor, s: Tensor, u: Tensor) -> Tensor:
        """Returns the states at time ``s``, given a ``posterior`` at ``t`` on a ``path``.

        Of ``u [B, *event]``, uniform numbers, each token reads one.
        """
        x, pace = posterior.x, posterior.pace
        to_data, to_source = (like(each, x) for each in self.odds(path.schedule, t, s))
        if pace is not None:  # rates that only jump to the data
            to_data = 1 - (1 - to_data) ** pace
        chosen = u < to_data
        if posterior.carries:
            chosen = chosen & (posterior.evidence != torch.inf)
        moved = x.masked_scatter(chosen, posterior.draw(chosen, (u / to_data)[chosen], "denoiser"))
        if self.needs_probs:
            again = ~(u < to_data) & (u < to_data + to_source)
            left = ((u - to_data) / to_source).clamp(0, 1 - 1e-16)
            moved = torch.where(again, path.source.draw(left.where(again, 0.0), s), moved)
        return moved


@register("ctmc.MinimalJump")
@dataclass(frozen=True)
class MinimalJump(Replacing):
    r"""Jumps to the data's token, and never away from it: the rate of Gat et al.

    .. math:: R_t(x, j \mid x_1) = \frac{\dot\kappa_t}{1 - \kappa_t} \mathbf 1[j = x_1]

    It needs nothing of the source, so it works for every coupling of base and data. The bound is tight for a mask
    source. For others it is not: with a uniform source, two tokens of K = 3 and a perfect network, it is 2.33 nats for
    an entropy of 1.78.

    Source: Gat et al., Discrete Flow Matching, 2024, arXiv:2407.15595.
    """

    needs_probs = False

    def reshuffles(self, source: Any) -> bool:
        return False

    def coefficients(self, at: Moment) -> Coefficients:
        return Coefficients(at.d_kappa / at.remaining)

    def extra(self, schedule: Any, t: Tensor, s: Tensor) -> None:
        return None


@register("ctmc.DetailedBalance")
@dataclass(frozen=True)
class DetailedBalance(Replacing):
    r"""Adds noise in detailed balance to the minimal jumps: tokens are replaced and found again, which corrects errors.

    .. math:: R_t(x, j \mid x_1) = \frac{\dot\kappa_t + \eta \kappa_t}{1 - \kappa_t} \mathbf 1[j = x_1] + \eta \, p_0(j)

    For a mask source the second term hides visible tokens again; the step is that of ReMDM with a remasking probability
    that follows from ``eta``. The marginals stay the same. The bound is looser.

    Args:
        eta: the rate, 0 or more, at which each token is replaced by a draw of the source; per unit of time.

    Raises:
        ValueError: if ``eta`` is negative or not finite.

    Source: Campbell et al., Generative Flows on Discrete State-Spaces, 2024, arXiv:2402.04997; Wang et al., Remasking
    Discrete Diffusion Models with Inference-Time Scaling, 2025, arXiv:2503.00307. The closed form of the step is ours.
    """

    eta: float

    def __post_init__(self):
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"DetailedBalance(eta={self.eta}): a rate is 0 or more; pass 5.0.")

    def coefficients(self, at: Moment) -> Coefficients:
        c = torch.full_like(at.kappa, self.eta)
        return Coefficients((at.d_kappa + self.eta * at.kappa) / at.remaining, c, c)

    def extra(self, schedule: Any, t: Tensor, s: Tensor) -> Tensor:
        # The integral of eta / (1 - kappa) in the variable y = -log(1 - t), in which it is smooth up to the end.
        low, high = (-torch.log1p(-each.clamp(max=1 - 1e-15)) for each in (t, s))

        def integrand(y: Tensor) -> Tensor:
            left = torch.exp(-y)
            return left / schedule.remaining(1 - left)

        return self.eta * integral(integrand, low, high)


@register("ctmc.Corrector")
@dataclass(frozen=True)
class Corrector(Replacing):
    r"""Moves forwards and backwards at once: the corrector sampling of Gat et al.

    .. math:: R_t(x, j \mid x_1) = (1 + \beta_t) \frac{\dot\kappa_t}{1 - \kappa_t} \mathbf 1[j = x_1]
              + \beta_t \frac{\dot\kappa_t}{\kappa_t} p_0(j), \qquad \beta_t = a \, t^b (1 - t)^c

    The backward part diverges at ``t = 0`` unless ``beta`` vanishes there, so ``power`` is positive.

    Args:
        strength: a, 0 or more.
        power: b, positive.
        power_end: c, positive.

    Raises:
        ValueError: if an argument is out of range.

    Source: Gat et al., Discrete Flow Matching, 2024, arXiv:2407.15595, section 3.3.
    """

    strength: float = 5.0
    power: float = 0.5
    power_end: float = 0.5

    def __post_init__(self):
        if not (0 <= self.strength < math.inf and 0 < self.power < math.inf and 0 < self.power_end < math.inf):
            raise ValueError(f"{self!r}: pass a strength of 0 or more and positive powers, such as (5.0, 0.5, 0.5).")

    def beta(self, t: Tensor) -> Tensor:
        """Computes the weight of the backward part at times ``t``."""
        return self.strength * t**self.power * (1 - t) ** self.power_end

    def coefficients(self, at: Moment) -> Coefficients:
        beta = self.beta(at.t)
        c = torch.where(at.kappa > 0, beta * at.d_kappa / at.kappa, 0.0)
        return Coefficients((1 + beta) * at.d_kappa / at.remaining, c, c)

    def extra(self, schedule: Any, t: Tensor, s: Tensor) -> Tensor:
        # The integral of beta / (kappa (1 - kappa)) over kappa, in a variable w in which fractional powers of t and
        # 1 - t are smooth: t = w^4 / (w^4 + (1 - w)^4).
        warp = lambda t: t**0.25 / (t**0.25 + (1 - t) ** 0.25)

        def integrand(w: Tensor) -> Tensor:
            rise, fall = w**4, (1 - w) ** 4
            time = rise / (rise + fall)
            slope = 4 * w**3 * (1 - w) ** 3 / (rise + fall).square()
            kappa, left = schedule.kappa(time), schedule.remaining(time)
            return self.beta(time) * schedule.d_kappa(time) * slope / (kappa * left).clamp(min=1e-300)

        middle = (warp(t) + warp(s)) / 2
        return integral(integrand, warp(t), middle) + integral(integrand, middle, warp(s))


def integral(f: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Integrates a smooth function entry by entry, by 24 Gauss-Legendre nodes."""
    half, middle = (high - low) / 2, (high + low) / 2
    nodes, weights = (half.new_tensor(each).reshape(-1, *(1,) * half.dim()) for each in _gauss())
    return half * (weights * f(middle + half * nodes)).sum(0)


@functools.lru_cache
def _gauss() -> tuple[list[float], list[float]]:
    nodes, weights = numpy.polynomial.legendre.leggauss(24)
    return nodes.tolist(), weights.tolist()
