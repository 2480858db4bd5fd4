"""Nested states (tuples, lists and dicts) as the flat lists of tensors that solvers use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["gather", "join", "like_rows", "per_row", "split", "stack", "tensors_of"]


def split(tree: Any, like: Any, name: str = "the state") -> list[Tensor]:
    """Lists the tensors of ``tree``, which must have the structure of ``like``; dicts are matched by key, not order.

    Raises:
        TypeError: if the structures differ.
    """
    if isinstance(like, Tensor):
        if not isinstance(tree, Tensor):
            raise TypeError(
                f"{name} has a {type(tree).__name__} where the state has a tensor of shape {list(like.shape)}; "
                f"return the structure of the state, and list integrals in quadratures=."
            )
        return [tree]
    if isinstance(like, dict):
        if not isinstance(tree, dict) or tree.keys() != like.keys():
            found = sorted(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
            raise TypeError(
                f"{name} has {found} where the state has a dict of {sorted(map(str, like))}; return the same keys."
            )
        return [part for key in like for part in split(tree[key], like[key], name)]
    if isinstance(like, (tuple, list)):
        if not isinstance(tree, (tuple, list)) or len(tree) != len(like):
            found = f"{len(tree)} entries" if isinstance(tree, (tuple, list)) else f"a {type(tree).__name__}"
            raise TypeError(f"{name} has {found} where the state has {len(like)} entries; return as many tensors.")
        return [part for entry, other in zip(tree, like) for part in split(entry, other, name)]
    raise TypeError(
        f"{name} contains a {type(like).__name__}; pass a tensor, or a nested tuple, list or dict of tensors."
    )


def join(parts: list[Tensor], like: Any) -> Any:
    """Puts a flat list of tensors back into the structure of ``like``."""
    return _join(iter(parts), like)


def _join(parts, like):
    if isinstance(like, Tensor):
        return next(parts)
    if isinstance(like, dict):
        return {key: _join(parts, value) for key, value in like.items()}
    entries = [_join(parts, entry) for entry in like]
    return type(like)(*entries) if hasattr(like, "_fields") else type(like)(entries)


def stack(outputs: list[list[Tensor]], parts: list[Tensor]) -> list[Tensor]:
    """Stacks the stored states along a new leading dimension, part by part."""
    if not outputs:
        return [part.new_empty((0, *part.shape)) for part in parts]
    return [torch.stack(saved) for saved in zip(*outputs)]


def on_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Applies a function to every tensor of a nested structure; everything else stays unchanged."""
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def tensors_of(tree: Any) -> list[Tensor]:
    """Lists the tensors of a nested structure."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def gather(tree: Any, rows: Tensor) -> Any:
    """Selects rows of every tensor in a nested structure."""
    return on_tensors(lambda tensor: tensor.index_select(0, rows), tree)


def per_row(tensor: Tensor) -> Tensor:
    """Flattens all dimensions except the batch, ``[B, *event]`` to ``[B, n]``; a ``[B]`` tensor becomes ``[B, 1]``."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1)


def like_rows(values: Tensor, part: Tensor) -> Tensor:
    """Views one value per row so that it broadcasts against ``part``, ``[B]`` to ``[B, 1, ...]``."""
    return values.reshape(values.shape[0], *([1] * (part.dim() - 1)))
