"""Rows without a density: nothing of them reaches the gradients of the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.shapes import Value

__all__ = ["fill_outside", "restore", "set_aside"]


def set_aside(x: Value, event_shape) -> tuple[Value, Tensor | None]:
    """Puts zeros in place of events that hold an infinity or NaN: ``(x, largest entry of every event [*batch])``.

    No map and no network meets such an event then: an infinity times a gradient of zero is NaN, in every weight. Parts
    of joint flows, whole numbers and empty events are given back as they are, with None.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or not math.prod(event_shape):
        return x, None
    size = x.detach().abs()
    if len(event_shape):
        size = size.amax(tuple(range(-len(event_shape), 0)))  # NaN where any entry is
    lost = ~(size < math.inf)
    return x.masked_fill(lost.reshape((*lost.shape, *(1,) * len(event_shape))), 0.0), size


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
