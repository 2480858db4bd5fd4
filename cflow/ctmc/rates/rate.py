"""The contract of rates: how fast a token jumps to another one, given the token of the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Coefficients", "Moment", "Rate", "like", "off_diagonal", "own_of", "pad", "zeros"]


@dataclass(frozen=True)
class Moment:
    """The schedule and the source at the times of a batch; every entry broadcasts to ``[B, *event]``, in float64.

    Attributes:
        t: the times ``[B, *1]``.
        kappa: the probability that a token is that of the data.
        d_kappa: its derivative in time.
        remaining: ``1 - kappa``.
        own: the source's probability of the present state.
        slope: the derivative of ``own`` in time; None for a source that does not move.
    """

    t: Tensor
    kappa: Tensor
    d_kappa: Tensor
    remaining: Tensor
    own: Tensor
    slope: Tensor | None = None


@dataclass(frozen=True)
class Coefficients:
    """The rates of :class:`Rate`, as coefficients that broadcast to ``[B, *event]``.

    Attributes:
        to_data: a, the rate to the token of the data.
        to_source: c, the rate to draws of the source; None for zero.
        to_source_known: c where the state is that of the data; None for zero.
    """

    to_data: Tensor
    to_source: Tensor | None = None
    to_source_known: Tensor | None = None


class Rate(ABC):
    r"""Computes the rates at which a token jumps from state x to state j: the base class of rates.

    .. math:: R_t(x, j \mid x_1) = a \, \mathbf 1[j = x_1] + c \, p_0(j), \qquad j \ne x

    with coefficients that depend on x alone, except that c may have another value where :math:`x = x_1`. A subclass
    writes :meth:`coefficients`. For every token of the data the rates obey the master equation of the path,

    .. math:: \partial_t p_t(j \mid x_1) = \sum_x p_t(x \mid x_1) R_t(x, j \mid x_1).

    The rates of the process that is simulated are their averages over the denoiser's posterior. States that the path
    cannot have at that time have no jumps.

    Attributes:
        tight: whether the bound on the log-likelihood equals it for a perfect network, with any source.
        needs_probs: whether the rates use the source's probabilities, so that base and data must be independent.
    """

    tight = False
    needs_probs = True

    @abstractmethod
    def coefficients(self, at: Moment) -> Coefficients:
        """Computes the coefficients a, c, and c where the state is that of the data, ``at`` a :class:`Moment`."""

    def reshuffles(self, source: Any) -> bool:
        """Returns whether tokens also jump to states of a ``source``, not only to the data."""
        return True

    def check(self, source: Any, schedule: Any) -> None:
        """Raises a ValueError if the rate does not exist for a ``source`` and a ``schedule``."""
        if source.moves:
            raise ValueError(
                f"{self!r} with {type(source).__name__}: this source moves in time; use ctmc.TimeReversal()."
            )

    def conditional(self, at: Moment, x: Tensor, x1: Tensor, table: Tensor) -> Tensor:
        """Computes the rates from ``x`` to every state, given the data: ``[B, *event, states]``, zero at ``x``.

        Args:
            at: the moment.
            x: the states ``[B, *event]``.
            x1: the tokens of the data ``[B, *event]``.
            table: the source's probabilities, which broadcast to ``[B, *event, states]``.
        """
        found = self.coefficients(at)
        a, c, known = found.to_data, found.to_source, found.to_source_known
        possible = (at.own > 0) | (x == x1)
        rates = zeros(x, table).scatter(-1, x1.unsqueeze(-1), like(a, x).unsqueeze(-1))
        if c is not None:
            rates = rates + torch.where(x == x1, known, c).unsqueeze(-1) * table
        return off_diagonal(rates * possible.unsqueeze(-1), x)

    def expected(self, at: Moment, x: Tensor, p: Tensor, table: Tensor) -> Tensor:
        """Computes the rates of the process, ``[B, *event, states]``, zero at ``x``.

        Args:
            at: the moment.
            x: the states ``[B, *event]``.
            p: the denoiser's probabilities ``[B, *event, K]``.
            table: as in :meth:`conditional`.
        """
        found = self.coefficients(at)
        a, c, known = found.to_data, found.to_source, found.to_source_known
        mine = own_of(p, x)
        possible = (at.own > 0).to(p.dtype)
        rates = pad((like(a, x).to(p.dtype) * possible).unsqueeze(-1) * p, table.shape[-1])
        if c is not None:
            weight = c.to(p.dtype) * possible * (1 - mine) + known.to(p.dtype) * mine
            rates = rates + weight.unsqueeze(-1) * table.to(p.dtype)
        return off_diagonal(rates, x)


def like(value: Tensor, x: Tensor) -> Tensor:
    return value.expand(x.shape)


def own_of(p: Tensor, x: Tensor) -> Tensor:
    """Returns the probabilities of the present states, zero for the mask state."""
    size = p.shape[-1]
    found = p.gather(-1, x.clamp(max=size - 1).unsqueeze(-1)).squeeze(-1)
    return found.masked_fill(x >= size, 0)


def pad(p: Tensor, states: int) -> Tensor:
    return torch.nn.functional.pad(p, (0, states - p.shape[-1]))


def zeros(x: Tensor, table: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros((*x.shape, table.shape[-1]), dtype=dtype, device=x.device)


def off_diagonal(rates: Tensor, x: Tensor) -> Tensor:
    return rates.scatter(-1, x.unsqueeze(-1), 0.0)
