"""The uniform distribution on the simplex."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.bases.base import Base
from cflow.registry import register

__all__ = ["Simplex"]

TOLERANCE = 1e-3


@register("bases.Simplex")
class Simplex(Base):
    r"""Draws vectors of probabilities uniformly: the last dimension of an event is positive and sums to one.

    .. math:: \log p(x) = \sum_{\text{positions}} \log \Gamma(K) \quad\text{for } x \ge 0, \; \sum_k x_k = 1

    This is the Dirichlet distribution with all parameters one, a density in the first K - 1 coordinates of every
    position. It is the base of :class:`cflow.paths.Dirichlet`.

    Args:
        event_shape: shape of one event, ``[*positions, K]``.

    Shapes: ``sample`` returns ``[*shape, *event]``, ``log_prob`` returns ``[*batch]``; it is -inf where an entry is
    below -1e-3, or a sum differs from one by more than that: a solver leaves the simplex by its tolerance. Cost: one
    exponential draw per entry.

    Raises:
        ValueError: if K is below 2, or an event has an empty dimension.

    Example:
        >>> base = Simplex((4, 3))
        >>> x = base.sample(generator=torch.Generator().manual_seed(0))
        >>> x.sum(-1), base.log_prob(x)
        (tensor([1.0000, 1.0000, 1.0000, 1.0000]), tensor(2.7726))
    """

    is_uniform_on_simplex = True

    def __init__(self, event_shape: int | Sequence[int]):
        super().__init__(event_shape)
        if not self.event_shape or self.event_shape[-1] < 2:
            raise ValueError(
                f"Simplex({event_shape}): the last dimension has two probabilities or more; pass a shape such as "
                f"(256, 27)."
            )

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        x = torch.empty((*shape, *self.event_shape), dtype=self.dtype, device=self.device)
        x = x.exponential_(generator=generator).clamp(min=torch.finfo(self.dtype).tiny)
        return x / x.sum(-1, keepdim=True)

    def _log_prob(self, x: Tensor) -> Tensor:
        outside = (x < -TOLERANCE).any(-1) | ((x.sum(-1) - 1).abs() > TOLERANCE)
        if len(self.event_shape) > 1:
            outside = outside.any(tuple(range(1 - len(self.event_shape), 0)))
        value = math.prod(self.event_shape[:-1]) * math.lgamma(self.event_shape[-1])
        return torch.where(outside, -torch.inf, torch.full_like(outside, value, dtype=x.dtype))
