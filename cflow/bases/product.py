"""A different base for every column, or group of columns."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from cflow.bases.base import Base
from cflow.registry import register

__all__ = ["Product"]


@register("bases.Product")
class Product(Base):
    r"""Draws columns, or groups of columns, independently, each from its own base.

    .. math:: p(x) = \prod_k p_k(x_{(k)})

    Use it for tables in which some columns are angles or shares (:class:`Uniform`) and some have heavy tails
    (:class:`StudentT`). An event has the columns of the first base, then those of the second, and so on.

    With parts on manifolds, such as ``manifolds.Uniform`` on a sphere, the flow needs the product of the manifolds:
    ``manifold=manifolds.Product({...})``, with a ``manifolds.Euclidean`` for parts without one.

    Args:
        bases: bases of vectors ``(n,)``, or of single numbers ``()``, which make one column.

    Shapes: ``sample`` returns ``[*shape, D]`` for D columns in all, ``log_prob`` returns ``[*batch]``. Cost: that of
    the parts.

    Raises:
        TypeError: if an argument is not a base.
        ValueError: if there are no bases, or one has events of a higher rank or reads a context.

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
                    f"Product(..., {type(each).__name__}): item {i} is not a base; pass bases such as bases.Normal(2), "
                    f"and unpack a list with a star."
                )
            if len(each.event_shape) > 1 or each.context_shape is not None:
                raise ValueError(
                    f"Product(..., {type(each).__name__} with events of shape {list(each.event_shape)}): parts are "
                    f"vectors without a context; pass bases of events (n,) or ()."
                )
        if not bases:
            raise ValueError("Product(): there are no bases; pass at least one.")
        sizes = [each.event_shape.numel() for each in bases]
        super().__init__(sum(sizes))
        self._sizes = sizes
        self.bases = nn.ModuleList(bases)
        self._like = self._like.to(bases[0].device, functools.reduce(torch.promote_types, (b.dtype for b in bases)))
        self.has_density = all(each.has_density for each in bases)

    def is_on(self, manifold: Any) -> bool:
        """Returns whether each base is on its part of ``manifold``: a ``manifolds.Product``, without weights."""
        parts = getattr(manifold, "parts", None)
        if parts is None:
            return all(each.is_on(None) for each in self.bases) and super().is_on(manifold)
        alike = not manifold.weights and len(parts) == len(self.bases)
        return alike and all(
            base.is_on(part) and base.event_shape.numel() == part.event_shape.numel()
            for base, part in zip(self.bases, parts.values())
        )

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        parts = [each.sample(shape, generator=generator) for each in self.bases]
        parts = [part.reshape((*shape, size)) for part, size in zip(parts, self._sizes)]
        return torch.cat(parts, -1).to(self.dtype)

    def _log_prob(self, x: Tensor) -> Tensor:
        parts = x.split(self._sizes, -1)
        parts = [part.reshape((*x.shape[:-1], *each.event_shape)) for part, each in zip(parts, self.bases)]
        return sum(each.log_prob(part) for each, part in zip(self.bases, parts))
