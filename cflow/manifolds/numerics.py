"""Functions that stay accurate, with finite gradients, where distances are zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["expand_rows", "norm", "sinc"]


def expand_rows(t: Tensor, like: Tensor) -> Tensor:
    """Adds dimensions at the end of ``t`` so that it broadcasts against ``like``."""
    return t.reshape(*t.shape, *([1] * (like.dim() - t.dim())))


def norm(u: Tensor, square: Callable[[Tensor], Tensor] | None = None, keepdim: bool = False) -> Tensor:
    """Computes the length of vectors, with gradient zero at the zero vector, and without underflow.

    Args:
        u: vectors, along the last dimension unless ``square`` is given.
        square: computes the squared length of a batch of vectors.
        keepdim: whether the last dimension stays, with size one.
    """
    total = u.square().sum(-1, keepdim=keepdim) if square is None else square(u)
    zero = total <= 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, total).sqrt())


def sinc(x: Tensor) -> Tensor:
    """Computes ``sin(x) / x`` entry by entry; one at zero."""
    return torch.sinc(x / torch.pi)
