"""Nearest neighbours: whether samples are copies of the training data."""

from __future__ import annotations

import torch
from torch import Tensor

from cflow.metrics.estimate import two_samples

__all__ = ["nearest_distances"]

PAIRS_AT_ONCE = 1 << 20  # 8 MB of float64


def nearest_distances(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    r"""Finds each sample's nearest neighbour in a reference set.

    .. math:: d_i = \min_j \lVert x_i - r_j \rVert

    Compare the distances of generated samples with those of held-out data: copies of the training set lie much closer.

    Shapes: ``x [N, D]``, ``reference [M, D]``; gives distances ``[N]`` in float64 and indices ``[N]``. Cost: N x M
    distances by matrix products, in blocks of 8 MB; the winners' are computed anew from differences, so a copy is at
    distance zero exactly.

    Raises:
        ValueError: if the samples are not ``[N, D]`` and ``[M, D]``, are empty, or hold values that are not finite.

    Example:
        >>> nearest_distances(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 1.0], [0.0, 3.0]]))
        (tensor([2.], dtype=torch.float64), tensor([1]))
    """
    x, reference = two_samples("nearest_distances", x, reference)
    half = reference.square().sum(1) / 2
    block = max(1, PAIRS_AT_ONCE // len(reference))
    index = torch.cat([(half - part @ reference.T).argmin(1) for part in x.split(block)])
    return (x - reference[index]).norm(dim=1), index
