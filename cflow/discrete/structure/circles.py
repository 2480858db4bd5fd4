"""Columns that are circles, as a network sees them: by sine and cosine, which know no seam."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Circles", "periods_of"]


class Circles(nn.Module):
    r"""Gives a network sine and cosine of every column that is a circle, and the others as they are.

    .. math:: x_i \mapsto \bigl(\sin \tfrac{2 \pi x_i}{P_i}, \cos \tfrac{2 \pi x_i}{P_i}\bigr)

    A network of the angle itself would jump where the circle closes, and the density with it.

    Args:
        periods: the length of the circle of every column, None for a line.

    Shapes: ``x [..., n]`` -> ``[..., width]``, the columns in order, two numbers for a circle and one for a line.

    Example:
        >>> Circles([None, 2 * math.pi])(torch.tensor([[3.0, 0.0]]))
        tensor([[3., 0., 1.]])
    """

    fixed_buffers = True

    def __init__(self, periods: Sequence[float | None]):
        super().__init__()
        self.counts = [1 if each is None else 2 for each in periods]
        self.width = sum(self.counts)
        kept = [place for i, count in enumerate(self.counts) for place in range(2 * i, 2 * i + count)]
        # Angles are in units of the dtype of the columns; factors are read in it when they are needed.
        self.factors = [0.0 if each is None else 2 * math.pi / each for each in periods]
        circle = torch.tensor([count == 2 for count in self.counts], device="cpu")
        self.register_buffer("circle", circle, persistent=False)
        self.register_buffer("kept", torch.tensor(kept, dtype=torch.long, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.width == len(self.counts):
            return x
        angle = x * x.new_tensor(self.factors)
        pairs = torch.stack((torch.where(self.circle, angle.sin(), x), angle.cos()), -1).flatten(-2)
        return pairs.index_select(-1, self.kept)


def periods_of(
    owner: str, periods: Sequence[float | None] | None, features: int, family, moves: Sequence[bool] | None = None
) -> list[float | None]:
    """Gives the period of every column: those given, else the family's for all. ``moves`` says which the family moves,
    all unless given.

    Raises:
        ValueError: for another number of them than there are features, one that is not a positive number, or one of a
            column that moves on a circle of another length.
    """
    if periods is None:
        return [family.period] * features
    lengths = [_length(each) for each in periods] if isinstance(periods, Iterable) else [math.nan]
    if len(lengths) != features or not all(each is None or 0 < each < math.inf for each in lengths):
        raise ValueError(
            f"{owner}(features={features}, periods={periods!r}): there is one for each feature, the length of its "
            f"circle, or None for a line; pass for example {[round(2 * math.pi, 4), *[None] * (features - 1)]}."
        )
    moves, own = [True] * features if moves is None else moves, family.period
    off = [i for i, each in enumerate(lengths) if moves[i] and own and not math.isclose(each or 0.0, own, rel_tol=1e-6)]
    if off:
        raise ValueError(
            f"{owner}(periods={periods!r}): {type(family).__name__} moves feature {off[0]} on a circle of length "
            f"{own:.7g}, not {lengths[off[0]]}; pass {own:.7g} there, or omit periods where all are such circles."
        )
    return lengths


def _length(period: Any) -> float | None:
    """Reads a period, NaN where it is no number."""
    if period is None or (isinstance(period, numbers.Real) and not isinstance(period, bool)):
        return None if period is None else float(period)
    return float(period) if isinstance(period, Tensor) and period.numel() == 1 else math.nan
