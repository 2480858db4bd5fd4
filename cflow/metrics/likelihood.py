"""Log-likelihoods in the units of the literature."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

__all__ = ["bits_per_dim"]


def bits_per_dim(log_prob: Tensor, event_shape: int | Sequence[int], levels: int | None = None) -> Tensor:
    r"""Converts log-densities in nats to bits per dimension.

    .. math:: -\frac{\log p(x)}{D \log 2} \quad (+ \log_2 L \text{ where } p \text{ is a density on } x / L)

    Args:
        log_prob: log-densities ``[*batch]`` in nats.
        event_shape: shape of one event, such as ``(3, 32, 32)``, or its number of dimensions D.
        levels: number of integer levels L, only if ``log_prob`` is the density of images scaled to [0, 1]. Omit it for
            a flow with :class:`cflow.bijections.Dequantise`, whose ``log_prob`` is that of the integer levels.

    Returns:
        Bits per dimension ``[*batch]``; lower is better.

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
            f"bits_per_dim(event_shape={event_shape}): an event without dimensions; pass for example (3, 32, 32)."
        )
    if levels is not None and levels < 2:
        raise ValueError(f"bits_per_dim(levels={levels}): pass at least 2, such as 256 for 8-bit images.")
    bits = -log_prob / (size * math.log(2))
    return bits if levels is None else bits + math.log2(levels)
