"""Rows without a density: nothing of them reaches the gradients of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cflow.shapes import Value

__all__ = ["fill_outside", "restore", "set_aside", "set_far_aside"]

FAR = 0.75
"""The power of a dtype's largest number from which on arithmetic overflows on the way (float32: 8e28)."""


def set_aside(x: Value, event_shape, maps: Sequence[Any] = ()) -> tuple[Value, Tensor | None]:
    """Puts a point in place of events that hold an infinity or NaN: ``(x, largest entry of every event [*batch])``.

    No map and no network meets such an event then: an infinity times a gradient of zero is NaN, in every weight. Parts
    of joint flows, whole numbers and empty events are given back as they are, with None. The point is zero, or where
    ``maps`` would refuse that one which they take.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or not math.prod(event_shape):
        return x, None
    size = x.detach().abs()
    if len(event_shape):
        size = size.amax(tuple(range(-len(event_shape), 0)))  # NaN where any entry is
    lost = ~(size < math.inf)
    where = lost.reshape((*lost.shape, *(1,) * len(event_shape)))
    point = _taken(maps, x) if maps and bool(lost.any()) else None
    return x.masked_fill(where, 0.0) if point is None else torch.where(where, point, x), size


@torch.no_grad()
def _taken(maps: Sequence[Any], x: Tensor) -> Tensor | None:
    """Gives an event that maps take of which some refuse data: the middle of the last one's domain, carried back."""
    members = [each for part in maps for each in part.members()]
    last = max(i for i, each in enumerate(members) if each.reads_values and each.domain is not None)
    if any(each.context_shape is not None for each in members[:last]):
        return None  # what such a map does to data is not known without its context
    low, high = members[last].domain
    middle = low + 1 if high == math.inf else (low + high) / 2
    middle = middle if members[last].levels is None else math.floor(middle)
    point = torch.full((1, *members[last].event_shape), middle, dtype=x.dtype, device=x.device)
    # Draws of a map are not to move the state of the caller's generator.
    generator = torch.Generator(x.device).manual_seed(0)
    for each in reversed(members[:last]):
        point = each.decode(point, **({"generator": generator} if each.draws else {}))[0]
    return point[0].to(x.dtype)


def set_far_aside(u: Value, event_shape) -> tuple[Value, Tensor | None]:
    """Does what :func:`set_aside` does, and takes entries so large that networks and squares of them overflow for
    infinite.
    """
    if not isinstance(u, Tensor) or not u.is_floating_point():
        return u, None
    size = u.detach().abs()
    size = size.to(torch.promote_types(size.dtype, torch.float32))  # the dtype of densities
    far = size > torch.finfo(size.dtype).max ** FAR
    return set_aside(u.masked_fill(far, math.inf), event_shape)


def restore(logp: Tensor, size: Tensor | None) -> Tensor:
    """Gives events that were set aside their density: none at infinity, NaN where an entry is NaN.

    Wherever there is no density the result is a constant, which sends no gradient anywhere.
    """
    if size is not None:
        logp = torch.where(size < math.inf, logp, -size.to(logp.dtype))
    return torch.where(logp == -math.inf, -math.inf, logp)


def fill_outside(u: Value, contribution: Tensor | float, fill: float) -> Value:
    """Fills the rows ``u [B, *event]`` that came from outside the domain of a map, whose contribution is -inf."""
    if not isinstance(u, Tensor) or not isinstance(contribution, Tensor):
        return u
    outside = contribution == -math.inf
    return u.masked_fill(outside.reshape((-1, *(1,) * (u.dim() - 1))), fill)
