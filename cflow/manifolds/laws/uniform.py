"""The uniform distribution on a manifold of finite volume."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.bases.base import Base
from cflow.manifolds.manifold import Manifold
from cflow.registry import register

__all__ = ["Uniform"]


@register("manifolds.Uniform")
class Uniform(Base):
    r"""Draws points uniformly with respect to the Riemannian volume of a manifold.

    .. math:: \log p(x) = -\log \operatorname{vol}(M)

    Args:
        manifold: the manifold, of finite volume.

    Shapes: ``sample`` returns ``[*shape, *event]``, ``log_prob`` returns ``[*batch]``; it is -inf for points that are
    not on the manifold (``manifold.holds``).

    Raises:
        ValueError: if the volume is infinite.

    Example:
        >>> from cflow import manifolds
        >>> base = Uniform(manifolds.Sphere(2))
        >>> base.log_prob(base.sample((2,)))
        tensor([-2.5310, -2.5310])
    """

    def __init__(self, manifold: Manifold):
        super().__init__(manifold.event_shape)
        if not math.isfinite(manifold.log_volume):
            raise ValueError(
                f"Uniform({manifold!r}): its volume is infinite, so there is no uniform distribution; use "
                f"manifolds.WrappedNormal."
            )
        self.manifold = manifold

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return self.manifold.uniform(shape, generator=generator, dtype=self.dtype, device=self.device)

    def _log_prob(self, x: Tensor) -> Tensor:
        inside = self.manifold.holds(x)
        return torch.where(
            inside, -self.manifold.log_volume, torch.full(inside.shape, -torch.inf, dtype=x.dtype, device=x.device)
        )

    def extra_repr(self) -> str:
        return repr(self.manifold)
