"""The rate that reverses a noising process; its bound is tight for every source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cflow.ctmc.categorical import invert
from cflow.ctmc.rates.rate import Coefficients, Moment, Rate, like, own_of
from cflow.ctmc.rates.replacing import MinimalJump
from cflow.registry import register

__all__ = ["TimeReversal"]


@register("ctmc.TimeReversal")
@dataclass(frozen=True)
class TimeReversal(Rate):
    r"""Reverses the process that replaces tokens by draws of the source: the rate of D3PM, SEDD and UDLM.

    .. math:: R_t(x, j \mid x_1) = g_t(x) \frac{p_t(j \mid x_1)}{p_t(x \mid x_1)},
              \qquad g_t = \frac{\dot\kappa_t}{\kappa_t} p_0 - (1 - \kappa_t) \dot p_0

    The average over the posterior has a short form with the leave-one-out posterior l:
    :math:`g_t(x) \, q(j) / q(x)` with :math:`q = \kappa_t l + (1 - \kappa_t) p_0`. Its bound is tight for every
    source. For a mask source this is :class:`MinimalJump`. It is the only rate for sources that move.

    Source: Austin et al., 2021, arXiv:2107.03006; Lou et al., Discrete Diffusion Modeling by Estimating the Ratios of
    the Data Distribution, 2023, arXiv:2310.16834.
    """

    tight = True

    def reshuffles(self, source: Any) -> bool:
        return not source.absorbing

    def gain(self, at: Moment) -> Tensor:
        """Computes the rate ``g``, ``at`` a moment, at which the noising process jumps to the present state."""
        gain = torch.where(at.kappa > 0, at.d_kappa / at.kappa, 0.0) * at.own
        return gain if at.slope is None else gain - at.remaining * at.slope

    def coefficients(self, at: Moment) -> Coefficients:
        gain, unknown = self.gain(at), at.remaining * at.own
        over = torch.where(unknown > 0, 1 / unknown, 0.0)
        # The product of gain and kappa, finite at t = 0.
        moved = at.d_kappa * at.own if at.slope is None else at.d_kappa * at.own - at.kappa * at.remaining * at.slope
        known = torch.where(unknown + at.kappa > 0, gain / (unknown + at.kappa), 0.0) * at.remaining
        return Coefficients(moved * over, gain * over * at.remaining, known)

    def check(self, source: Any, schedule: Any) -> None:
        if not source.moves:
            return
        t = torch.linspace(1e-4, 1 - 1e-4, 1001, dtype=torch.float64).reshape(-1, *(1,) * len(source.event_shape))
        table, slope = source.probs(t), source.d_probs(t)
        pace, left = schedule.d_kappa(t) / schedule.kappa(t), schedule.remaining(t)
        gain = pace.unsqueeze(-1) * table - left.unsqueeze(-1) * slope
        if bool((gain < -1e-9).any()):
            raise ValueError(
                f"{source!r} with {schedule!r}: the noising process would need negative rates; use a smaller share, or "
                f"another schedule."
            )

    def move(self, path: Any, posterior: Any, t: Tensor, s: Tensor, u: Tensor) -> Tensor:
        """Returns the states at time ``s``, given a ``posterior`` at ``t`` on a ``path``, by ``u [B, *event]``.

        Of ``u``, uniform numbers, each token reads one.
        The step is exact for a fixed posterior: ``x_s`` given ``x_t`` is proportional to the probability of noising
        from ``x_s`` to ``x_t``, times ``kappa l + (1 - kappa) p_0`` at time s.
        """
        if posterior.paced:
            return MinimalJump().move(path, posterior, t, s, u)  # the same for a mask source
        x, schedule, source = posterior.x, path.schedule, path.source
        before, kappa, left = schedule.kappa(t), schedule.kappa(s), schedule.remaining(s)
        ratio = before / kappa
        own = source.probs_of(x, s)
        fresh = (schedule.remaining(t) * source.probs_of(x, t) - ratio * left * own).clamp(min=0)
        total = fresh + ratio * left * own
        # With the data's part of the probability to stay, fewer leave. So only these are evaluated.
        leave = torch.where(total > 0, fresh / total, 0.0)
        may = u < leave
        moved, leave = _leave(posterior, may, fresh, total, before, kappa, u) if not source.absorbing else (x, leave)
        v = u / leave
        again = may & (v < 1) & (v >= kappa)
        if source.absorbing:
            chosen = may & (v < kappa)
            moved = x.masked_scatter(chosen, posterior.draw(chosen, (v / kappa)[chosen], "leave-one-out"))
        back = ((v - kappa) / left).clamp(0, 1 - 1e-16).where(again, 0.0)
        return torch.where(again, source.draw(back, s), moved)


def _leave(posterior: Any, may: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
    """Draws the tokens of the data that replace those that ``may`` leave; also returns the probabilities to leave."""
    x = posterior.x
    index = may.flatten().nonzero().squeeze(-1)
    alone = lambda each: each.reshape(1).expand(len(index))
    spread = lambda each: like(each, x).reshape(-1)[index]
    fresh, total, before, kappa, u = (alone(each) if each.numel() == 1 else spread(each) for each in values)
    mine, states, shares = x.flatten()[index], [], []
    for part, weights in posterior.weights(index, "leave-one-out"):
        stays = own_of(weights, mine[part]) / weights.sum(-1)
        shares.append(fresh[part] / (total[part] + before[part] * stays))
        aim = u[part] / (shares[-1] * kappa[part])
        hit = aim < 1
        states.append(mine[part].masked_scatter(hit, invert(weights[hit], aim[hit])))
    if not states:
        return x, torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    none = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    return x.masked_scatter(may, torch.cat(states)), none.masked_scatter(may, torch.cat(shares))
