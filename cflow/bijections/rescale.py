"""Linear maps of an interval to [-1, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.bijections.map import Bijection, check_table
from cflow.registry import register

__all__ = ["Rescale"]


@register("bijections.Rescale")
class Rescale(Bijection):
    r"""Maps the interval [low, high] to [-1, 1], for instance grey levels 0 to 255.

    .. math:: z = \frac{2 x - \text{low} - \text{high}}{\text{high} - \text{low}}, \qquad
        \log |\det| = D \log \frac{2}{\text{high} - \text{low}}

    Use it where the ends of the interval are known, and :class:`Standardise` where mean and scale are measured. The
    ends are Python floats, which no dtype rounds, so that they map to -1 and 1 exactly. Values outside the interval
    are mapped by the same formula.

    Args:
        event_shape: shape of an event, of any rank.
        low, high: ends of the interval.

    Shapes: ``x [B, *event_shape]``, also whole numbers of any dtype. Cost: two operations.

    Raises:
        ValueError: if ``low`` is not below ``high``.

    Example:
        >>> Rescale(2, 0, 255).encode(torch.tensor([[0, 255]], dtype=torch.uint8))
        (tensor([[-1.,  1.]]), tensor([-9.6962]))
    """

    takes_integers = True

    def __init__(self, event_shape: int | Sequence[int], low: float = 0.0, high: float = 1.0):
        super().__init__(event_shape)
        if not low < high or not math.isfinite(high - low):
            raise ValueError(f"Rescale(low={low}, high={high}): pass finite numbers with low < high.")
        self.low, self.high = low, high

    @classmethod
    def fit(cls, data: Tensor) -> Rescale:
        """Returns the map of the smallest and largest number of ``data [N, *event]`` to -1 and 1, for all entries.

        Raises:
            TypeError: if ``data`` is not a tensor.
            ValueError: if ``data`` has no two different numbers, or a NaN.

        Example:
            >>> Rescale.fit(torch.tensor([[0.0, 4.0], [8.0, 2.0]]))
            Rescale((2,), low=0.0, high=8.0)
        """
        check_table("Rescale", data)
        low, high = (float(each) for each in torch.aminmax(data))
        return cls(tuple(data.shape[1:]), low, high)

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        return (x - self.low) * (2 / (self.high - self.low)) - 1, self._ladj(x, 2 / (self.high - self.low))

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        return (z + 1) * ((self.high - self.low) / 2) + self.low, self._ladj(z, (self.high - self.low) / 2)

    def _ladj(self, value: Tensor, slope: float) -> Tensor:
        return value.new_full((), self.event_shape.numel() * math.log(slope)).expand(value.shape[0])

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}, low={self.low}, high={self.high}"
