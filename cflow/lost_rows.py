"""Rows without a density: they must not affect the gradients of the other rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cflow.shapes import Value

__all__ = ["fill_outside", "restore", "set_aside", "set_far_aside"]

FAR = 0.75
"""Numbers above this power of a dtype's largest number overflow in the arithmetic that follows (float32: 8e28)."""


def set_aside(x: Value, event_shape, maps: Sequence[Any] = ()) -> tuple[Value, Tensor | None]:
    """Replaces events that contain an infinity or NaN: ``(x, largest entry of every event [*batch])``.

    So no map and no network gets such an event: an infinity times a gradient of zero is NaN, in every weight. Parts of
    joint flows, integers and empty events are returned unchanged, with None. The replacement is zero, or a point that
    ``maps`` accept if they would refuse zero.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or not math.prod(event_shape):
        return x, None
    size = x.detach().abs()
    if len(event_shape):
        size = size.amax(tuple(range(-len(event_shape), 0)))  # NaN if any entry is NaN
    lost = ~(size < math.inf)
    where = lost.reshape((*lost.shape, *(1,) * len(event_shape)))
    point = _taken(maps, x) if maps and bool(lost.any()) else None
    return x.masked_fill(where, 0.0) if point is None else torch.where(where, point, x), size


@torch.no_grad()
def _taken(maps: Sequence[Any], x: Tensor) -> Tensor | None:
    """Returns an event that all maps accept: the middle of the domain of the last map with a domain, decoded."""
    members = [each for part in maps for each in part.members()]
    last = max(i for i, each in enumerate(members) if each.reads_values and each.domain is not None)
    if any(each.context_shape is not None for each in members[:last]):
        return None  # the effect of such a map is not known without its context
    low, high = members[last].domain
    middle = low + 1 if high == math.inf else (low + high) / 2
    middle = middle if members[last].levels is None else math.floor(middle)
    point = torch.full((1, *members[last].event_shape), middle, dtype=x.dtype, device=x.device)
    # Draws of a map must not change the state of the caller's generator.
    generator = torch.Generator(x.device).manual_seed(0)
    for each in reversed(members[:last]):
        point = each.decode(point, **({"generator": generator} if each.draws else {}))[0]
    return point[0].to(x.dtype)


def set_far_aside(u: Value, event_shape) -> tuple[Value, Tensor | None]:
    """Does the same as :func:`set_aside`, and treats entries as infinite if their squares would overflow."""
    if not isinstance(u, Tensor) or not u.is_floating_point():
        return u, None
    size = u.detach().abs()
    size = size.to(torch.promote_types(size.dtype, torch.float32))  # the dtype of densities
    far = size > torch.finfo(size.dtype).max ** FAR
    return set_aside(u.masked_fill(far, math.inf), event_shape)


def restore(logp: Tensor, size: Tensor | None) -> Tensor:
    """Sets the log-density of replaced events: -inf at infinity, NaN where an entry is NaN.

    Where the log-density is -inf the result is a constant, so its gradient is zero.
    """
    if size is not None:
        logp = torch.where(size < math.inf, logp, -size.to(logp.dtype))
    return torch.where(logp == -math.inf, -math.inf, logp)


def fill_outside(u: Value, contribution: Tensor | float, fill: float) -> Value:
    """Fills the rows of ``u [B, *event]`` that were outside the domain of a map; their contribution is -inf."""
    if not isinstance(u, Tensor) or not isinstance(contribution, Tensor):
        return u
    outside = contribution == -math.inf
    return u.masked_fill(outside.reshape((-1, *(1,) * (u.dim() - 1))), fill)
