"""Batch and event dimensions: checked at the door, one batch dimension inside.

Every function takes a tensor with an event shape, or a dict of tensors with a dict of event shapes (joint flows).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable

import torch
from torch import Size, Tensor

__all__ = ["as_shape", "batch_of", "broadcast", "expand_like", "flatten", "on_tensors", "rows", "shown", "unflatten"]

Shape = Size | dict[str, Size]
Value = Tensor | dict[str, Tensor]


def as_shape(shape: int | Iterable[int] | dict | None) -> Shape | None:
    """Normalises an int, a tuple or a dict of such to ``torch.Size``; ``None`` stays ``None``."""
    if shape is None:
        return None
    if isinstance(shape, dict):
        return {name: as_shape(part) for name, part in shape.items()}
    try:
        sizes = tuple(operator.index(size) for size in (shape if isinstance(shape, Iterable) else (shape,)))
    except TypeError:
        sizes = (-1,)
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape {shape!r}: a shape is an int or a tuple of non-negative ints such as (3, 32, 32).")
    return Size(sizes)


def batch_of(x: Value, shape: Shape, what: str) -> Size:
    """Gives the batch dimensions of ``x`` and raises where ``x`` does not end in ``shape``."""
    if isinstance(shape, dict):
        if not isinstance(x, dict) or set(x) != set(shape):
            got = sorted(x) if isinstance(x, dict) else type(x).__name__
            raise ValueError(f"{what}: expected a dict with the parts {sorted(shape)}, not {got}.")
        return torch.broadcast_shapes(*(batch_of(x[name], shape[name], f"{what}[{name!r}]") for name in shape))
    if not isinstance(x, Tensor):
        raise TypeError(f"{what} is a {type(x).__name__}; pass a torch.Tensor of shape {_wanted(shape)}.")
    rank = len(shape)
    if x.dim() < rank or x.shape[x.dim() - rank :] != shape:
        raise ValueError(
            f"{what} has shape {tuple(x.shape)}, which does not end in {tuple(shape)}; "
            f"pass a tensor of shape {_wanted(shape)}."
        )
    return x.shape[: x.dim() - rank]


def _wanted(shape: Size) -> str:
    return "[" + ", ".join(["...", *map(str, shape)]) + "]"


def broadcast(what: str, *batches: Size) -> Size:
    """Broadcasts batch shapes; the error names the batches that do not fit."""
    try:
        return torch.broadcast_shapes(*batches)
    except RuntimeError:
        shown = " and ".join(str(tuple(batch)) for batch in batches)
        raise ValueError(
            f"{what}: the batch shapes {shown} of x and context do not broadcast; make them equal, or size 1."
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
    """Shapes ``[]`` or ``[B]`` so that it multiplies ``x [B, *event]`` row by row."""
    return coefficient if coefficient.dim() == 0 else coefficient.reshape(-1, *(1,) * (x.dim() - 1))


def shown(shape: Shape) -> list | dict:
    """Gives a shape as messages show it."""
    return {name: shown(part) for name, part in shape.items()} if isinstance(shape, dict) else list(shape)


def rows(value: Tensor) -> Tensor:
    """Merges all but the first dimension: ``[B, *event]`` to ``[B, D]``."""
    return value.reshape(value.shape[0], math.prod(value.shape[1:]))
