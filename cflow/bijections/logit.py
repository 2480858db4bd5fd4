"""The logit of data in the unit interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.bijections.functions import EntryMap, log_slope_of_sigmoid, logit
from cflow.bijections.map import check_table
from cflow.registry import register

__all__ = ["Logit"]


@register("bijections.Logit")
class Logit(EntryMap):
    r"""Maps the unit interval to the real line by the logit, after shrinking the interval a little.

    .. math:: z = \operatorname{logit}(p), \quad p = \alpha + (1 - 2 \alpha) x, \qquad
        \log |\det| = \sum_i \log(1 - 2 \alpha) - \log p_i - \log(1 - p_i)

    Use it for data: alpha makes data at 0 and 1 finite, and data outside raise an error. In contrast,
    ``Inverse(Sigmoid(shape))`` returns density zero outside.

    The domain is x from ``-alpha / (1 - 2 alpha)`` to ``1 + alpha / (1 - 2 alpha)``, a little more than [0, 1], so that
    all results of ``decode`` can be encoded. With ``alpha = 0`` it excludes 0 and 1.

    Args:
        event_shape: shape of an event, of any rank.
        alpha: how far the interval is shrunk at each end before the logit.

    Shapes: ``x [B, *event_shape]``. Cost: ``encode`` reads one flag from the device.

    Raises:
        ValueError: if ``alpha`` is not in [0, 1/2); in ``encode``, if a value lies outside the domain.

    Source: Dinh et al., Density estimation using Real NVP, 2016, arXiv:1605.08803, section 4.1 (alpha = 0.05);
    Papamakarios et al., Masked Autoregressive Flow for Density Estimation, 2017, arXiv:1705.07057, section 4.3
    (alpha = 1e-6 for MNIST, 0.05 for CIFAR-10).

    Example:
        >>> Logit(2, alpha=0.0).encode(torch.tensor([[0.5, 0.25]]))
        (tensor([[ 0.0000, -1.0986]]), tensor([3.0603]))
    """

    takes_integers = True
    reads_values = True

    def __init__(self, event_shape: int | Sequence[int], alpha: float = 0.05):
        super().__init__(event_shape)
        if not 0 <= alpha < 0.5:
            raise ValueError(f"Logit(alpha={alpha}): alpha must be in [0, 1/2); pass 0.05.")
        self.alpha = alpha
        self.domain = (-alpha / (1 - 2 * alpha), 1 + alpha / (1 - 2 * alpha))
        self.holds_ends = alpha > 0

    @classmethod
    def fit(cls, data: Tensor, alpha: float = 0.05) -> Logit:
        """Returns the map for ``data [N, *event]`` in [0, 1], with the given ``alpha``.

        Raises:
            TypeError: if ``data`` is not a tensor.
            ValueError: if values are outside [0, 1], or at its ends with ``alpha = 0``.

        Example:
            >>> Logit.fit(torch.rand(100, 3))
            Logit((3,), alpha=0.05)
        """
        check_table("Logit", data)
        layer = cls(tuple(data.shape[1:]), alpha)
        for part in data.split(4096):
            layer.encode(part)
        return layer

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p, q = self.alpha + (1 - 2 * self.alpha) * x, self.alpha + (1 - 2 * self.alpha) * (1 - x)
        # Samples decoded from far out in the tails equal an end of the interval up to rounding; they are clamped to
        # the last number inside. With alpha = 0 an end comes from the data and has no finite z.
        slack = 4 * torch.finfo(x.dtype).eps if self.alpha > 0 else 0.0
        inside = (p > -slack) & (q > -slack) if self.alpha > 0 else (p > 0) & (q > 0)
        if not bool(inside.all()):
            raise ValueError(
                f"Logit(alpha={self.alpha}).encode: {int((~inside).sum())} of {inside.numel()} values are NaN or "
                f"outside [0, 1]{'' if self.alpha > 0 else ' or at its ends'} (from {x.min().item():.4g} to "
                f"{x.max().item():.4g}); scale the data first{'.' if self.alpha > 0 else ', and pass alpha > 0.'}"
            )
        tiny = torch.finfo(x.dtype).tiny
        z, ladj = logit(p.clamp(min=tiny).log(), q.clamp(min=tiny).log())
        return z, ladj + math.log1p(-2 * self.alpha)

    def _unmap(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # Kept inside the open interval where alpha = 0, so that decoded numbers can be encoded.
        bounds = torch.finfo(z.dtype)
        p = torch.sigmoid(z).clamp(bounds.tiny, 1 - bounds.eps)
        return (p - self.alpha) / (1 - 2 * self.alpha), log_slope_of_sigmoid(z) - math.log1p(-2 * self.alpha)

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}, alpha={self.alpha}"
