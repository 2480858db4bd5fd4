"""Log-likelihoods in the units of the literature."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

__all__ = ["bits_per_dim"]


def bits_per_dim(log_prob: Tensor, event_shape: int | Sequence[int], levels: int | None = None) -> Tensor:
    r"""Converts log-densities in nats to bits per dimension.

    .. math:: -\frac{\log p(x)}{D \log 2} \quad (+ \log_2 L \text{ where } p \text{ is a density on } x / L)

    A flow that carries :class:`cflow.bijections.Dequantise` gives the log-probability of the integer levels already:
    leave ``levels`` out. Pass it only where ``log_prob`` is the density of images scaled to [0, 1].

    Shapes: ``log_prob [*batch]`` gives ``[*batch]``, lower is better.

    Raises:
        ValueError: if the event is empty, or ``levels`` is below 2.

    Source: Theis et al., A note on the evaluation of generative models, 2015, arXiv:1511.01844.

    Example:
        >>> import torch
        >>> bits_per_dim(torch.tensor([-3 * 8 * math.log(2)]), event_shape=(1, 3))
        tensor([8.])
    """
    size = event_shape if isinstance(event_shape, int) else math.prod(event_shape)
    if size < 1:
        raise ValueError(
            f"bits_per_dim(event_shape={event_shape}): an event without dimensions has no bits; pass [C, H, W]."
        )
    if levels is not None and levels < 2:
        raise ValueError(f"bits_per_dim(levels={levels}): data have at least two levels; 8-bit images have 256.")
    bits = -log_prob / (size * math.log(2))
    return bits if levels is None else bits + math.log2(levels)
