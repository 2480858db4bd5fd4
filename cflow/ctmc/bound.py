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
from cflow.paths import PathSample
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
    complementary: bool = False,
) -> Tensor:
    r"""Computes one draw of a lower bound on the log-likelihood, ``[B]`` in nats.

    Its mean is :math:`-\int_0^1 \mathbb E \, \sum_i \ell_i \, dt` with the integrand of
    :func:`cflow.ctmc.losses.nats_per_time`. With a mask source the number of hidden tokens is uniform in 1 to D
    (:class:`cflow.ctmc.Mixture`); otherwise times are denser at the data, so that the variance is finite.

    Args:
        path: the path, bound to its source.
        predict: the network, ``(t [B], x [B, *event]) -> logits [B, *event, K]``.
        x1: tokens of the data ``[B, *event]``.
        rate: the rate. Default: None, that of the path.
        level: the quantiles of the times ``[B]``, in [0, 1).
        generator: the source of random numbers, or a list with one for each row.
        complementary: whether each draw also uses the complement of its hidden tokens. Two calls, less variance.

    Raises:
        ValueError: for ``complementary`` where tokens are not hidden one by one.
    """
    chosen = path.checked(rate)
    if not math.prod(x1.shape[1:]):
        return torch.zeros(len(x1), device=x1.device)
    exact = copy.copy(path)
    exact.minimised, exact.rate = "elbo", chosen
    u = draw_rows(torch.rand, x1.shape, generator, dtype=torch.float64, device=x1.device)
    sample = exact.sample(_start(path, x1, generator), x1, level, noise=u)
    size = rows(x1).shape[1]
    value = size * exact.loss(predict(sample.t, sample.xt), sample)
    if not complementary:
        return -value
    if not exact.counts:
        raise ValueError(
            f"log_prob(complementary=True): only a mask source with a tight rate has hidden tokens to complement, not "
            f"{type(path.source).__name__} with {chosen!r}; omit it."
        )
    hidden = sample.xt == path.source.mask
    count = rows(hidden).sum(1)
    whole = count == size
    # The smallest number of those that are visible is the largest of the complement, mirrored.
    first = rows(u.masked_fill(hidden, torch.inf)).amin(1)
    time = path.schedule.time_at(first.clamp(max=1.0))
    other = PathSample(x1.masked_fill(~hidden, path.source.mask), time, sample.x0, x1, x1, None)
    second = size * exact.loss(predict(other.t, other.xt), other)
    return -torch.where(whole, value, (value + second) / 2)


def _start(path: Any, x1: Tensor, generator: Source) -> Tensor:
    """Draws the source for a batch of data; a mask needs no draws."""
    if path.source.absorbing:
        return torch.full_like(x1, path.source.mask)
    return path.source.sample((len(x1),), generator=generator)
