"""Given samples as a base: flows from data to data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cflow.bases.base import Base, show
from cflow.registry import register

__all__ = ["Empirical"]


@register("bases.Empirical")
class Empirical(Base):
    r"""Draws rows of given samples, with replacement.

    .. math:: p = \frac1N \sum_{i=1}^N \delta_{x_i}

    Use it as the base of a flow between two data sets (matching, bridges). It has no density, so the flow has none
    (``flow.likelihood == "none"``); ``encode`` and ``decode`` work. The samples are in model space. A flow with
    transforms applies them only to its data, so apply them to the samples first. The samples are saved with the flow.

    Args:
        samples: ``[N, *event]``.

    Shapes: ``sample`` returns ``[*shape, *event]``. Cost: one gather; memory for the samples.

    Raises:
        ValueError: if there are no samples, or some are NaN or infinite; in ``log_prob``, always.

    Source: Tong et al., Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, 2023,
    arXiv:2302.00482, for flows with any source.

    Example:
        >>> base = Empirical(torch.arange(6.0).reshape(3, 2))
        >>> base.sample((4,), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([4, 2])
    """

    has_density = False

    def __init__(self, samples: Tensor):
        if not isinstance(samples, Tensor) or samples.dim() == 0 or samples.shape[0] == 0:
            given = show(samples) if isinstance(samples, Tensor) else type(samples).__name__
            raise ValueError(
                f"Empirical(samples={given}): draws are rows of the samples; pass a tensor [N, *event], N at least 1."
            )
        super().__init__(tuple(samples.shape[1:]))
        self._keep(samples=samples)

    def _apply(self, fn, recurse: bool = True):
        """Moves and casts as modules do, but keeps the samples in float32 at least: half precision changes them."""
        before = self.samples
        super()._apply(fn, recurse)
        if self.samples.dtype in (torch.bfloat16, torch.float16):
            self.samples = before.to(self.samples.device)
        return self

    def is_on(self, manifold: Any) -> bool:
        """Returns whether all samples are points of ``manifold``; None is the Euclidean space."""
        return manifold is None or bool(manifold.holds(self.samples).all())

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        rows = torch.randint(len(self.samples), shape, generator=generator, device=self.device)
        return self.samples[rows].to(self.dtype)

    def _log_prob(self, x: Tensor) -> Tensor:
        raise ValueError(
            f"Empirical.log_prob(x of shape {list(x.shape)}): samples have no density; use a base such as "
            f"bases.Normal({tuple(self.event_shape)})."
        )
