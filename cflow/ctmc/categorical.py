"""Exact draws from categorical distributions, in float64.

Gumbel noise in float32 is at most 16.6, so it never draws tokens of small probability: it acts as a lower temperature.
Here a uniform number in float64 is compared with cumulative sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cflow.draws import Source, draw_rows

__all__ = ["CACHED", "CHUNK", "invert", "uniforms"]

CHUNK = 1 << 22
"""The number of probabilities that are in memory at once beside the logits."""

CACHED = 1 << 16
"""The number of probabilities that a processor's cache holds with what is computed from them."""


def uniforms(shape, generator: Source, device: torch.device) -> Tensor:
    """Draws uniform numbers in [0, 1) in float64, each row from its own generator where there is a list of them."""
    return draw_rows(torch.rand, tuple(shape), generator, dtype=torch.float64, device=device)


def invert(weights: Tensor, u: Tensor) -> Tensor:
    """Returns the categories at which the cumulative sums of ``weights`` pass ``u [*batch]`` in [0, 1).

    The weights ``[*batch, K]``, or ``[K]`` for all, need not be normalised. Categories of weight zero are never
    returned.

    Example:
        >>> invert(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 0.24, 0.26], dtype=torch.float64))
        tensor([0, 0, 2])
    """
    sums = weights.cumsum(-1, dtype=torch.float64)
    total = sums[..., -1]
    # A product that rounds up to the total belongs to the last category with a positive weight.
    aim = torch.minimum(u * total, torch.nextafter(total, torch.full_like(total, -torch.inf)))
    alone = sums.dim() == 1
    found = torch.searchsorted(sums, aim if alone else aim.unsqueeze(-1), right=True).clamp(max=sums.shape[-1] - 1)
    return found if alone else found.squeeze(-1)
