"""Nearest neighbours: a test for copies of the training data among samples."""

from __future__ import annotations

import torch
from torch import Tensor

from cflow.metrics.estimate import two_samples

__all__ = ["nearest_distances"]

PAIRS_AT_ONCE = 1 << 20  # 8 MB of float64


def nearest_distances(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    r"""Finds each sample's nearest neighbour in a reference set.

    .. math:: d_i = \min_j \lVert x_i - r_j \rVert

    Compare the distances of generated samples with those of held-out data: copies of the training set are much closer.

    Args:
        x: ``[N, D]``, the samples.
        reference: ``[M, D]``, such as the training data.

    Returns:
        Distances ``[N]`` in float64, and indices ``[N]`` of the neighbours in ``reference``.

    Cost: N x M distances by matrix products, in blocks of 8 MB. The smallest ones are computed again from differences,
    so the distance of a copy is exactly zero.

    Raises:
        ValueError: if the samples are not ``[N, D]`` and ``[M, D]``, are empty, or have values that are not finite.

    Example:
        >>> nearest_distances(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 1.0], [0.0, 3.0]]))
        (tensor([2.], dtype=torch.float64), tensor([1]))
    """
    x, reference = two_samples("nearest_distances", x, reference)
    half = reference.square().sum(1) / 2
    block = max(1, PAIRS_AT_ONCE // len(reference))
    index = torch.cat([(half - part @ reference.T).argmin(1) for part in x.split(block)])
    return (x - reference[index]).norm(dim=1), index
