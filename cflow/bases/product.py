"""A law of its own for every column, or for every few of them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from cflow.bases.base import Base
from cflow.registry import register

__all__ = ["Product"]


@register("bases.Product")
class Product(Base):
    r"""Draws columns, or groups of them, independently, each from a law of its own.

    .. math:: p(x) = \prod_k p_k(x_{(k)})

    For tables of which some columns are angles or shares (:class:`Uniform`) and some have heavy tails
    (:class:`StudentT`). The columns of an event are those of the first base, then those of the second, and so on.

    Args:
        bases: the laws, each of vectors ``(n,)`` or of single numbers ``()``, which make one column.

    Shapes: ``sample`` gives ``[*shape, D]``, D the number of all columns; ``log_prob`` gives ``[*batch]``. Cost: that
    of the parts.

    Raises:
        TypeError: for anything that is not a base.
        ValueError: without bases, and for one of events of a higher rank, or that reads a context.

    Example:
        >>> from cflow.bases import Normal, StudentT, Uniform
        >>> base = Product(Uniform(1), StudentT(1, df=1.0), Normal(2))
        >>> base.log_prob(torch.zeros(4)), base.event_shape  # 0 - log(pi) - log(2 pi)
        (tensor(-2.9826), torch.Size([4]))
    """

    def __init__(self, *bases: Base):
        for i, each in enumerate(bases):
            if not isinstance(each, nn.Module) or not callable(getattr(each, "log_prob", None)):
                raise TypeError(
                    f"Product(..., {type(each).__name__}): item {i} is not a base; pass objects such as "
                    f"bases.Normal(2), and unpack a list with a star."
                )
            if len(each.event_shape) > 1 or each.context_shape is not None:
                raise ValueError(
                    f"Product(..., {type(each).__name__} with events of shape {list(each.event_shape)}): columns are "
                    f"those of vectors, without a context; pass bases of events (n,) or ()."
                )
        if not bases:
            raise ValueError("Product(): there are no columns without a law; pass one base or more.")
        sizes = [each.event_shape.numel() for each in bases]
        super().__init__(sum(sizes))
        self._sizes = sizes
        self.bases = nn.ModuleList(bases)
        self._like = self._like.to(bases[0].device, functools.reduce(torch.promote_types, (b.dtype for b in bases)))
        self.has_density = all(each.has_density for each in bases)

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        parts = [each.sample(shape, generator=generator) for each in self.bases]
        parts = [part.reshape((*shape, size)) for part, size in zip(parts, self._sizes)]
        return torch.cat(parts, -1).to(self.dtype)

    def _log_prob(self, x: Tensor) -> Tensor:
        parts = x.split(self._sizes, -1)
        parts = [part.reshape((*x.shape[:-1], *each.event_shape)) for part, each in zip(parts, self.bases)]
        return sum(each.log_prob(part) for each, part in zip(self.bases, parts))
