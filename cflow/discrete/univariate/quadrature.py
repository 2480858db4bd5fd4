"""Gauss-Legendre nodes on the unit interval, stored so that no change of dtype rounds them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["legendre", "real"]

SCALE = 2**62


def legendre(count: int) -> Tensor:
    r"""Computes nodes and weights of :math:`\int_0^1 f \approx \sum_i w_i f(t_i)`, exact to degree ``2 count - 1``.

    It returns fixed-point integers ``[2, count]`` for a buffer: a floating-point buffer would be rounded to float32 by
    ``module.float().double()``. :func:`real` converts them.

    Example:
        >>> nodes, weights = real(legendre(3), torch.float64)
        >>> round((weights * nodes**5).sum().item() * 6, 12)
        1.0
    """
    nodes, weights = np.polynomial.legendre.leggauss(count)
    table = [[int(value * SCALE) for value in (nodes + 1) / 2], [int(value * SCALE) for value in weights / 2]]
    return torch.tensor(table, dtype=torch.int64, device="cpu")


def real(table: Tensor, dtype: torch.dtype) -> Tensor:
    """Converts a fixed-point table to a dtype."""
    return table.to(dtype) / SCALE
