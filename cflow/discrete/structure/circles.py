"""Circular features as inputs of a network: their sine and cosine, which are continuous on the circle."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Circles", "periods_of"]


class Circles(nn.Module):
    r"""Computes sine and cosine of every circular column, and returns the others unchanged.

    .. math:: x_i \mapsto \bigl(\sin \tfrac{2 \pi x_i}{P_i}, \cos \tfrac{2 \pi x_i}{P_i}\bigr)

    A network of the angle itself would jump where the angle wraps, and so would the density.

    Args:
        periods: for every column, the period of a circular one or None for others.

    Shapes: ``x [..., n]`` -> ``[..., width]``: the columns in order, two numbers for a circular one.

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
        # Kept as Python floats, so that every call computes in the dtype of the columns.
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
    """Returns the period of every column. Default: that of the family.

    ``moves`` states which columns the family maps. Default: all.

    Raises:
        ValueError: if their number is not that of the features, one is not a positive number, or a column that the
            family maps has another period than the family.
    """
    if periods is None:
        return [family.period] * features
    lengths = [_length(each) for each in periods] if isinstance(periods, Iterable) else [math.nan]
    if len(lengths) != features or not all(each is None or 0 < each < math.inf for each in lengths):
        raise ValueError(
            f"{owner}(features={features}, periods={periods!r}): not one period or None per feature; pass for example "
            f"{[round(2 * math.pi, 4), *[None] * (features - 1)]}."
        )
    moves, own = [True] * features if moves is None else moves, family.period
    off = [i for i, each in enumerate(lengths) if moves[i] and own and not math.isclose(each or 0.0, own, rel_tol=1e-6)]
    if off:
        raise ValueError(
            f"{owner}(periods={periods!r}): {type(family).__name__} has period {own:.7g} for feature {off[0]}, not "
            f"{lengths[off[0]]}; omit periods."
        )
    return lengths


def _length(period: Any) -> float | None:
    """Returns a period as a float: None for None, NaN for what is not a number."""
    if period is None or (isinstance(period, numbers.Real) and not isinstance(period, bool)):
        return None if period is None else float(period)
    return float(period) if isinstance(period, Tensor) and period.numel() == 1 else math.nan
