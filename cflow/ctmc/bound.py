"""One draw of the bound on the log-likelihood of tokens."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cflow.ctmc.rates import Rate
from cflow.draws import Source, draw_rows
from cflow.shapes import rows

__all__ = ["draw_bound", "levels"]


def levels(count: int, generator: Source, device: torch.device) -> Tensor:
    """Draws quantiles of times, ``[count]`` in float64, one in each of ``count`` strata in random order.

    With a list of generators each row has its own draw, so it does not depend on the other rows.
    """
    if generator is None or isinstance(generator, torch.Generator):
        stratum = torch.randperm(count, generator=generator, device=device)
        return (stratum + torch.rand(count, generator=generator, dtype=torch.float64, device=device)) / max(count, 1)
    return draw_rows(torch.rand, (count,), generator, dtype=torch.float64, device=device)


def draw_bound(
    path: Any,
    predict: Callable[[Tensor, Tensor], Tensor],
    x1: Tensor,
    rate: Rate | None,
    level: Tensor,
    generator: Source,
    antithetic: bool = False,
    counted: Tensor | None = None,
) -> Tensor:
    r"""Computes one draw of a lower bound on the log-likelihood, ``[B]`` in nats.

    Its mean is :math:`-\int_0^1 \mathbb E \, \sum_i \ell_i \, dt` with the integrand of
    :func:`cflow.ctmc.losses.nats_per_time`. The number of tokens of the source is drawn first, with equal
    probabilities, then the time (:class:`cflow.ctmc.Mixture`), so that the variance is finite. For sources that move
    and schedules by position, times are denser at the data instead.

    Args:
        path: the path, bound to its source.
        predict: the network, ``(t [B], x [B, *event]) -> logits [B, *event, K]``.
        x1: tokens of the data ``[B, *event]``.
        rate: the rate. Default: None, that of the path.
        level: the quantiles of the times ``[B]``, in [0, 1).
        generator: the source of random numbers, or a list with one for each row.
        antithetic: whether a draw is the average over two points with mirrored noise: two evaluations, less variance.
        counted: the positions that count, bool ``[B, *event]``. Default: None, all of them.
    """
    chosen = path.checked(rate, path.default_rate)
    if not math.prod(x1.shape[1:]):
        return torch.zeros(len(x1), device=x1.device)
    exact = copy.copy(path)
    exact.minimised, exact.rate = "elbo", chosen
    u = draw_rows(torch.rand, x1.shape, generator, dtype=torch.float64, device=x1.device)
    start = _start(path, x1, generator)
    sample = exact.sample(start, x1, level, mask=counted, noise=u)
    loss = exact.loss(predict(sample.t, sample.xt), sample)
    if antithetic:
        level, u = exact.mirror(level, u)
        sample = exact.sample(start, x1, level, mask=counted, noise=u)
        loss = (loss + exact.loss(predict(sample.t, sample.xt), sample)) / 2
    return -(rows(x1).shape[1] if counted is None else rows(counted).sum(1)) * loss


def _start(path: Any, x1: Tensor, generator: Source) -> Tensor:
    """Draws the source for a batch of data; a mask needs no draws."""
    if path.source.absorbing:
        return torch.full_like(x1, path.source.mask)
    return path.source.sample((len(x1),), generator=generator)
