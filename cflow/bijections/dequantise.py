"""Dequantisation: uniform noise added to whole numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from cflow.arguments import is_integer
from cflow.bijections.map import Surjection, check_table
from cflow.draws import draw_rows
from cflow.registry import register

__all__ = ["Dequantise"]


@register("bijections.Dequantise")
class Dequantise(Surjection):
    r"""Adds uniform noise to integer levels and scales them to the unit interval; ``decode`` rounds down.

    .. math:: z = \frac{x + \epsilon}{L}, \quad \epsilon \sim \mathcal U[0, 1), \qquad
        \log P(x) \ge \mathbb E_\epsilon [\log p(z)] - D \log L

    so the log-density of a flow with this transform is a lower bound of the log-probability of the integers. The noise
    is drawn on the finest grid on which ``x + noise`` is exact, so ``decode(encode(x))`` is always x.

    Args:
        event_shape: shape of an event, of any rank.
        levels: number of levels, L.

    Shapes: ``x [B, *event_shape]`` holds whole numbers from 0 to ``levels - 1`` in any dtype; ``z`` is float32, or
    float64 where ``x`` or torch's default dtype (for integers) is. ``decode`` returns whole numbers as floats; it has
    no gradient.

    Cost: ``encode`` reads one flag from the device.

    Raises:
        ValueError: if ``levels`` is not a whole number from 2 to 65,536; in ``encode``, if a value is not a whole
            number in range.

    Source: Theis et al., A note on the evaluation of generative models, 2015, arXiv:1511.01844, section 3.1.

    Example:
        >>> x = torch.tensor([[0, 7], [255, 128]], dtype=torch.uint8)
        >>> dequantise = Dequantise(2, levels=256)
        >>> z, contribution = dequantise.encode(x, generator=torch.Generator().manual_seed(0))
        >>> dequantise.decode(z)[0]
        tensor([[  0.,   7.],
                [255., 128.]])
    """

    takes_integers = True
    reads_values = True

    def __init__(self, event_shape: int | Sequence[int], levels: int = 256):
        super().__init__(event_shape)
        if not (is_integer(levels, 2, numpy=True) and levels <= 1 << 16):
            raise ValueError(
                f"Dequantise(levels={levels}): pass a whole number from 2 to 65,536, such as 256 for 8-bit images."
            )
        self.levels, self.domain = levels, (0.0, levels - 1.0)

    @classmethod
    def fit(cls, data: Tensor) -> Dequantise:
        """Returns a map with the levels of ``data [N, *event]``: 256 for bytes, otherwise the largest number plus one.

        Raises:
            TypeError: if ``data`` is not a tensor.
            ValueError: if ``data`` are not whole numbers from 0 on.

        Example:
            >>> Dequantise.fit(torch.tensor([[0.0, 3.0], [1.0, 6.0]])).levels
            7
        """
        check_table("Dequantise", data)
        most = data.max()  # NaN if the data have one
        levels = 256 if data.dtype == torch.uint8 else max(2, int(most) + 1) if bool(most.isfinite()) else 2
        layer = cls(tuple(data.shape[1:]), levels)
        for part in data.split(4096):
            layer.encode(part, generator=torch.Generator(part.device).manual_seed(0))
        return layer

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        valid = (x >= 0) & (x < self.levels) & (x == x.floor())
        if not bool(valid.all()):
            raise ValueError(
                f"Dequantise(levels={self.levels}).encode: {int((~valid).sum())} of {valid.numel()} values (from "
                f"{x.min().item():.4g} to {x.max().item():.4g}) are not whole numbers from 0 to {self.levels - 1}; "
                f"pass unscaled data."
            )
        # One bit less than the mantissa has left for the largest level: the division may round, but never up to the
        # next level.
        mantissa = -int(math.log2(torch.finfo(x.dtype).eps))
        grid = 1 << (mantissa - math.ceil(math.log2(self.levels)) - 1)
        draws = draw_rows(partial(torch.randint, grid), x.shape, generator, device=x.device)
        z = (x + (draws.to(x.dtype) + 0.5) / grid) / self.levels
        return z, self._contribution(z, -1)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        x = torch.floor(z.detach() * self.levels).clamp(0, self.levels - 1)
        return x, self._contribution(x, 1)

    def _contribution(self, value: Tensor, sign: int) -> Tensor:
        return value.new_full((), sign * self.event_shape.numel() * math.log(self.levels)).expand(value.shape[0])

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}, levels={self.levels}"
