"""Times and hidden tokens of training points and of bounds, chosen so that losses have little variance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cflow.ctmc.schedules import Average, Schedule
from cflow.shapes import rows

__all__ = ["dense_times", "dense_weight", "hide", "number_weight", "replace"]

CLOSEST = 1e-12
"""How close to both ends the times of bounds are, as a share of tokens: rates may be infinite at the ends."""


def hide(path: Any, u: Tensor, level: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns which tokens are hidden ``[B, *event]``, and the times ``[B]``: the last hidden token appears then.

    Of D tokens, those with the m smallest of D uniform numbers are hidden, and the time is that of the m-th smallest:
    given m, it then has the law of the times at which m tokens are hidden.

    Args:
        path: the path, bound to a mask source.
        u: uniform numbers ``[B, *event]``.
        level: the quantiles of the numbers of visible tokens ``[B]``.
        counted: the positions that count, bool ``[B, *event]``; None for all.
    """
    u = rows(u) if counted is None else rows(u.masked_fill(~counted, torch.inf))
    size = _size(u, counted)
    share = path.schedule.remaining(level) if path.minimised == "cross-entropy" else 1 - level
    count = torch.minimum((share * size).floor() + 1, size).long()
    last = u.sort(1).values.gather(1, (count - 1).clamp(min=0).unsqueeze(1))
    hidden = (u <= last) & (count > 0).unsqueeze(1)
    time = path.schedule.time_at((1 - last.squeeze(1)).clamp(0, 1))
    return hidden.reshape(-1, *path.source.event_shape), time


def replace(path: Any, u: Tensor, level: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns which tokens are of the source ``[B, *event]``, and the times ``[B]``, for bounds of any source.

    Their number m is 0 to D with equal probability. Those with the m smallest of D uniform numbers are of the source,
    and the share of the source at that time is the m-th smallest: the time is densest where the noisy tokens, which
    have the large terms, are m. For m = 0 the share is drawn close to zero.

    Args:
        path: the path, bound to a source with probabilities.
        u: uniform numbers ``[B, *event]``.
        level: the quantiles of the numbers of tokens of the data ``[B]``.
        counted: the positions that count, bool ``[B, *event]``; None for all.
    """
    u = rows(u) if counted is None else rows(u.masked_fill(~counted, torch.inf))
    size = _size(u, counted)
    number = (1 - level) * (size + 1)
    count = torch.minimum(number.floor(), size).long()
    last = u.sort(1).values.gather(1, (count - 1).clamp(min=0).unsqueeze(1))
    hidden = (u <= last) & (count > 0).unsqueeze(1)
    none = -torch.expm1(torch.log1p(-number.clamp(max=1).square()) / (size + 1))
    left = torch.where(count > 0, last.squeeze(1), none).clamp(CLOSEST, 1 - CLOSEST)
    return hidden.reshape(-1, *path.source.event_shape), path.schedule.time_at(1 - left)


def number_weight(path: Any, x: Tensor, x1: Tensor, t: Tensor, counted: Tensor | None) -> Tensor:
    """Computes the inverse density of the points of :func:`replace`, relative to uniform times, ``[B]`` in float64.

    A token of the data may have been drawn from the source. The density is averaged over the number of tokens of the
    source, given the states ``x`` at ``t``, so that no weight is large.
    """
    at = path.moment(x, t)
    noise = at.remaining * at.own
    chance = torch.where(x == x1, noise / (at.kappa + noise), 1.0)
    chance = rows(chance if counted is None else chance.masked_fill(~counted, 0))
    size, left, slope = _size(chance, counted), at.remaining.flatten(), at.d_kappa.flatten()
    none = torch.log1p(-chance).sum(1).exp()
    root = (-torch.expm1((size + 1) * torch.log1p(-left))).sqrt()
    return 1 / ((chance.sum(1) / (left * (size + 1)) + none / (2 * root)) * slope)


def _size(each: Tensor, counted: Tensor | None) -> Tensor:
    """Returns the number of positions that count in every row, ``[B]`` in float64."""
    if counted is None:
        return torch.full((len(each),), float(each.shape[1]), dtype=torch.float64, device=each.device)
    return rows(counted).sum(1).double()


def dense_times(path: Any, level: Tensor) -> Tensor:
    """Returns times that are denser at the data, from uniform numbers ``level [B]``; ``path`` is bound to a source.

    They are for bounds where the number of tokens of the source cannot be drawn first: sources that move, sources
    without probabilities, and schedules by position.
    The share w of noisy tokens has the distribution function ``(1 - r) w + r sqrt(w)``.
    """
    r = _root(path)
    root = 2 * (1 - level) / (r + (r**2 + 4 * (1 - r) * (1 - level)).sqrt())
    return _clock(path).time_at((1 - root.square()).clamp(CLOSEST, 1 - CLOSEST))


def dense_weight(path: Any, t: Tensor) -> Tensor:
    """Computes the inverse density of the times of :func:`dense_times`, ``[B]`` for ``t [B]``, in float64."""
    t, r, clock = t.double(), _root(path), _clock(path)
    root = clock.remaining(t).sqrt()
    return root / ((1 - r) * root + r / 2) / clock.d_kappa(t)


def _root(path: Any) -> float:
    """Returns the weight r of the root in the law of the times.

    The integrand of a bound at w has a second moment of about ``D / w + D^2``, and a density in proportion to its root
    has the smallest variance.
    """
    return 2 / (2 + math.sqrt(path.source.event_shape.numel()))


def _clock(path: Any) -> Schedule:
    """Returns the schedule in which the times are drawn: the average over positions."""
    return Average(path.schedule, path.source.event_shape) if path.schedule.by_position else path.schedule
