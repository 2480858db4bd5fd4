"""Functions that stay accurate, with finite gradients, where distances are zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["asinhc", "cos_sinc", "cosh_sinhc", "expand_rows", "norm", "sinc", "tanhc"]


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


def cos_sinc(square: Tensor) -> tuple[Tensor, Tensor]:
    """Computes ``cos(r)`` and ``sin(r) / r`` from the square of ``r``, with all derivatives at zero."""
    small, r = _root(square)
    cos = torch.where(small, 1 - square / 2 * (1 - square / 12), r.cos())
    return cos, torch.where(small, 1 - square / 6 * (1 - square / 20), r.sin() / r)


def cosh_sinhc(square: Tensor) -> tuple[Tensor, Tensor]:
    """Computes ``cosh(r)`` and ``sinh(r) / r`` from the square of ``r``, with all derivatives at zero."""
    small, r = _root(square)
    cosh = torch.where(small, 1 + square / 2 * (1 + square / 12), r.cosh())
    return cosh, torch.where(small, 1 + square / 6 * (1 + square / 20), r.sinh() / r)


def tanhc(square: Tensor) -> Tensor:
    """Computes ``tanh(r) / r`` from the square of ``r``, with all derivatives at zero."""
    small, r = _root(square)
    return torch.where(small, 1 - square / 3 * (1 - 2 * square / 5), r.tanh() / r)


def asinhc(square: Tensor) -> Tensor:
    """Computes ``asinh(r) / r`` from the square of ``r``, with all derivatives at zero."""
    small, r = _root(square)
    return torch.where(small, 1 - square / 6 * (1 - 9 * square / 20), r.asinh() / r)


def sinc(x: Tensor) -> Tensor:
    """Computes ``sin(x) / x`` entry by entry; one at zero, with finite derivatives there."""
    return cos_sinc(x.square())[1]


def _root(square: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where a series of two terms is accurate, and the root elsewhere (one there)."""
    small = square < 2 * torch.finfo(square.dtype).eps ** (1 / 3)
    return small, torch.where(small, 1.0, square).sqrt()
