"""The uniform distribution on the positive part of the unit sphere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.bases.base import Base
from cflow.registry import register

__all__ = ["Orthant"]


@register("bases.Orthant")
class Orthant(Base):
    r"""Draws points uniformly on the part of the unit sphere where every coordinate is positive.

    .. math:: x = |z| / \|z\|, \qquad z \sim \mathcal N(0, I_K)

    The squares of a point are probabilities. It is the base of :class:`cflow.paths.Fisher`. Flows from it have no
    density, since their paths leave the orthant backwards in time (``flow.likelihood == "none"``).

    Args:
        event_shape: shape of one event, ``[*positions, K]``.

    Shapes: ``sample`` returns ``[*shape, *event]``. Cost: one normal draw per entry.

    Raises:
        ValueError: if K is below 2, or an event has an empty dimension; in ``log_prob``.

    Example:
        >>> x = Orthant((4, 3)).sample(generator=torch.Generator().manual_seed(0))
        >>> x.shape, torch.allclose(x.square().sum(-1), torch.ones(4)), bool((x > 0).all())
        (torch.Size([4, 3]), True, True)
    """

    has_density = False
    is_uniform_on_orthant = True

    def __init__(self, event_shape: int | Sequence[int]):
        super().__init__(event_shape)
        if not self.event_shape or self.event_shape[-1] < 2:
            raise ValueError(
                f"Orthant({event_shape}): the last dimension has two coordinates or more; pass a shape such as "
                f"(256, 27)."
            )

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        x = self._draw(torch.randn, shape, generator).abs().clamp(min=torch.finfo(self.dtype).tiny ** 0.5)
        return x / x.norm(dim=-1, keepdim=True)

    def _log_prob(self, x: Tensor) -> Tensor:
        raise ValueError(
            "Orthant.log_prob: flows from this base have no density, as their paths leave it backwards; compare "
            "samples with cflow.metrics, or use bases.Simplex."
        )
