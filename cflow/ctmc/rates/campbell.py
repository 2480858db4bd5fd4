"""The rate that follows from the marginals alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cflow.ctmc.rates.rate import Coefficients, Moment, Rate, like, off_diagonal, own_of, pad, zeros
from cflow.registry import register

__all__ = ["CampbellRate"]


@register("ctmc.CampbellRate")
@dataclass(frozen=True)
class CampbellRate(Rate):
    r"""Computes the rate :math:`R^*` of Campbell et al., which follows from the marginals alone.

    .. math:: R^*_t(x, j \mid x_1) = \frac{\mathrm{ReLU}(\partial_t p_t(j \mid x_1) - \partial_t p_t(x \mid x_1))}
              {Z_t \, p_t(x \mid x_1)}

    where :math:`Z_t` is the number of states j with a positive probability.

    For mask and uniform sources it is :class:`MinimalJump`. For others, tokens also jump from likely states of the
    source to unlikely ones. Steps have no closed form; use ``ctmc.Euler``.

    Source: Campbell et al., Generative Flows on Discrete State-Spaces, 2024, arXiv:2402.04997.
    """

    def reshuffles(self, source: Any) -> bool:
        return not source.absorbing

    def coefficients(self, at: Moment) -> Coefficients:
        raise TypeError("CampbellRate has no coefficients; call conditional or expected.")

    def check(self, source: Any, schedule: Any) -> None:
        super().check(source, schedule)
        if not source.absorbing and bool((source.probs() <= 0).any()):
            raise ValueError(
                f"{self!r} with {type(source).__name__}: a token has probability zero in the source; add a pseudocount."
            )

    def _parts(self, at: Moment, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the rates to the data's token j, and to other states j, where x is not that of the data."""
        own = like(at.own, x).unsqueeze(-1)
        count = 2 if float(table.max()) == 1 else table.shape[-1]
        unit = (at.d_kappa / at.remaining).unsqueeze(-1) / (count * own)
        unit = torch.where(own > 0, unit, 0.0)
        return unit * (1 - table + own), unit * torch.relu(own - table)

    def conditional(self, at: Moment, x: Tensor, x1: Tensor, table: Tensor) -> Tensor:
        data, other = self._parts(at, x, table)
        is_data = zeros(x, table, torch.bool).scatter(-1, x1.unsqueeze(-1), True)
        reachable = is_data | (table > 0)
        rates = torch.where(is_data, data, other) * reachable
        return off_diagonal(rates * (x != x1).unsqueeze(-1), x)

    def expected(self, at: Moment, x: Tensor, p: Tensor, table: Tensor) -> Tensor:
        data, other = (each.to(p.dtype) for each in self._parts(at, x, table))
        full = pad(p, table.shape[-1])
        # Other data than j and x: they send x to j as a state of the source.
        rest = 1 - full - own_of(p, x).unsqueeze(-1)
        return off_diagonal(full * data + rest.clamp(min=0) * other * (table > 0), x)
