"""Gauss-Legendre nodes on the unit interval, kept so that no change of dtype rounds them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["legendre", "real"]

SCALE = 2**62


def legendre(count: int) -> Tensor:
    r"""Tabulates nodes and weights of :math:`\int_0^1 f \approx \sum_i w_i f(t_i)`, exact to degree ``2 count - 1``.

    Returns ``[2, count]`` fixed-point integers, for a buffer: ``module.double()`` after ``module.float()`` would leave
    a floating table with the accuracy of float32. :func:`real` reads it.

    Example:
        >>> nodes, weights = real(legendre(3), torch.float64)
        >>> round((weights * nodes**5).sum().item() * 6, 12)
        1.0
    """
    nodes, weights = np.polynomial.legendre.leggauss(count)
    table = [[int(value * SCALE) for value in (nodes + 1) / 2], [int(value * SCALE) for value in weights / 2]]
    return torch.tensor(table, dtype=torch.int64, device="cpu")


def real(table: Tensor, dtype: torch.dtype) -> Tensor:
    """Reads a fixed-point table in a dtype."""
    return table.to(dtype) / SCALE
