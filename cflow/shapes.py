"""Batch and event dimensions: calls check them and merge the batch into one dimension.

Every function takes a tensor with an event shape, or a dict of tensors with a dict of event shapes (joint flows).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from types import EllipsisType
from typing import overload

import torch
from torch import Size, Tensor

__all__ = [
    "as_shape",
    "batch_of",
    "broadcast",
    "expand_like",
    "flatten",
    "mean_rows",
    "on_tensors",
    "pattern",
    "rows",
    "shown",
    "sum_rows",
    "unflatten",
]

Shape = Size | dict[str, Size]
Value = Tensor | dict[str, Tensor]


@overload
def as_shape(shape: None) -> None: ...
@overload
def as_shape(shape: dict) -> dict[str, Size]: ...
@overload
def as_shape(shape: int | Iterable[int]) -> Size: ...
def as_shape(shape):
    """Converts an int, a tuple or a dict of these to ``torch.Size``; ``None`` stays ``None``."""
    if shape is None:
        return None
    if isinstance(shape, dict):
        return {name: as_shape(part) for name, part in shape.items()}
    if isinstance(shape, Tensor) and shape.dim():
        raise ValueError(
            f"shape tensor of shape {list(shape.shape)}: pass an int or a tuple of ints; a context, such as labels, is "
            f"passed by name: context=..."
        )
    try:
        sizes = tuple(operator.index(size) for size in (shape if isinstance(shape, Iterable) else (shape,)))
    except TypeError:
        sizes = (-1,)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape {shape!r:.80}: pass an int or a tuple of non-negative ints, such as (3, 32, 32).")
    return Size(sizes)


def batch_of(x: Value, shape: Shape, what: str) -> Size:
    """Returns the batch dimensions of ``x``; raises if ``x`` does not end in ``shape``."""
    if isinstance(shape, dict):
        if not isinstance(x, dict) or set(x) != set(shape):
            got = sorted(x) if isinstance(x, dict) else type(x).__name__
            raise ValueError(f"{what}: expected a dict with the parts {sorted(shape)}, not {got}.")
        return torch.broadcast_shapes(*(batch_of(x[name], shape[name], f"{what}[{name!r}]") for name in shape))
    if not isinstance(x, Tensor):
        raise TypeError(f"{what} is a {type(x).__name__}; pass a torch.Tensor of shape {pattern(shape)}.")
    rank = len(shape)
    if x.dim() < rank or x.shape[x.dim() - rank :] != shape:
        raise ValueError(
            f"{what} has shape {tuple(x.shape)}, which does not end in {tuple(shape)}; "
            f"pass a tensor of shape {pattern(shape)}."
        )
    return x.shape[: x.dim() - rank]


def pattern(shape: Shape | EllipsisType, batch: str = "...") -> str:
    """Formats the expected shape of a tensor for an error: ``[..., 3]``, or ``[B, 3]`` for ``batch="B"``."""
    if isinstance(shape, dict):
        return "{" + ", ".join(f"{name!r}: {pattern(part, batch)}" for name, part in shape.items()) + "}"
    return "[" + ", ".join([batch, *(["..."] if shape is ... else map(str, shape))]) + "]"


def shown(shape: Shape | EllipsisType | None) -> tuple | dict | EllipsisType | None:
    """Converts a shape to a tuple, or a dict of tuples, which print plainly."""
    if isinstance(shape, dict):
        return {name: shown(part) for name, part in shape.items()}
    return shape if shape in (None, ...) else tuple(shape)


MASK = "mask"
"""The reserved part name of an event or a context: it marks the members of a set that are present."""


def check_mask(event_shape: Shape | None, context_shape: Shape | None, what: str) -> None:
    """Raises if a part named ``mask`` does not have the leading dimensions of another part of the event."""
    for parts in (event_shape, context_shape):
        if not isinstance(parts, dict) or MASK not in parts:
            continue
        mask = parts[MASK]
        marked = dict(event_shape) if isinstance(event_shape, dict) else {"x": event_shape}
        marked.pop(MASK, None)
        if isinstance(mask, dict) or not any(part[: len(mask)] == mask for part in marked.values()):
            raise ValueError(
                f"{what}: the part 'mask' marks the members of a set, so its shape {mask} must start another part "
                f"({marked}); change or rename it."
            )


def mask_of(x: Value, context: Value | None) -> Tensor | None:
    """Returns the mask of a batch, ``[B, *members]``: the part ``mask`` of the event or of the context."""
    for value in (x, context):
        if isinstance(value, dict) and MASK in value:
            return value[MASK]
    return None


def broadcast(what: str, *batches: Size) -> Size:
    """Broadcasts batch shapes; the error lists the shapes that do not fit."""
    try:
        return torch.broadcast_shapes(*batches)
    except RuntimeError:
        shown = " and ".join(str(tuple(batch)) for batch in batches)
        raise ValueError(
            f"{what}: the batch shapes {shown} of x and context do not broadcast; make them equal, or 1."
        ) from None


def flatten(x: Value, shape: Shape, batch: Size) -> Value:
    """Broadcasts ``x`` to ``[*batch, *shape]`` and merges the batch dimensions into one."""
    if isinstance(shape, dict):
        return {name: flatten(x[name], shape[name], batch) for name in shape}
    return x.expand((*batch, *shape)).reshape(math.prod(batch), *shape)


def unflatten(x: Value, batch: Size) -> Value:
    """Splits the leading dimension of ``x`` back into ``batch``."""
    if isinstance(x, dict):
        return {name: unflatten(part, batch) for name, part in x.items()}
    return x.reshape((*batch, *x.shape[1:]))


def on_tensors(function: Callable, *values: Value | None) -> Value | None:
    """Applies a function to tensors, or part by part to dicts of them; ``None`` stays ``None``."""
    if values[0] is None:
        return None
    if isinstance(values[0], dict):
        return {name: on_tensors(function, *(value[name] for value in values)) for name in values[0]}
    return function(*values)


def expand_like(coefficient: Tensor, x: Tensor) -> Tensor:
    """Reshapes ``[]`` or ``[B]`` so that it multiplies ``x [B, *event]`` row by row."""
    return coefficient if coefficient.dim() == 0 else coefficient.reshape(-1, *(1,) * (x.dim() - 1))


def expand_as_leading(mask: Tensor, x: Tensor) -> Tensor:
    """Reshapes ``[B, *members]`` so that it broadcasts to ``x [B, *members, ...]``."""
    return mask.reshape(*mask.shape, *(1,) * (x.dim() - mask.dim()))


def rows(value: Tensor) -> Tensor:
    """Merges all but the first dimension: ``[B, *event]`` to ``[B, D]``."""
    return value.reshape(value.shape[0], math.prod(value.shape[1:]))


def sum_rows(value: Tensor) -> Tensor:
    """Sums each row: ``[B, *event]`` to ``[B]``."""
    return rows(value).sum(1)


def mean_rows(value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Averages each row, ``[B, *event]`` to ``[B]``, over the entries in ``mask``; zero where there are none.

    Args:
        value: the values ``[B, *event]``.
        mask: the entries that count, broadcastable to ``value``. Default: None, all of them.
    """
    if mask is None:
        return rows(value).mean(1)
    mask = mask.bool().expand_as(value)
    return sum_rows(value.masked_fill(~mask, 0)) / sum_rows(mask).clamp(min=1)
