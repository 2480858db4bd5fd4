"""The Fréchet distance between features of two samples (FID, given Inception's features)."""

from __future__ import annotations

import torch
from torch import Tensor

from cflow.metrics.estimate import two_samples

__all__ = ["frechet_distance"]


def frechet_distance(features_x: Tensor, features_y: Tensor) -> float:
    r"""Computes the squared 2-Wasserstein distance between normals fitted to two sets of features.

    .. math:: \lVert \mu_x - \mu_y \rVert^2
        + \operatorname{tr}\bigl(S_x + S_y - 2 (S_x^{1/2} S_y S_x^{1/2})^{1/2}\bigr)

    It is computed in float64, from eigenvalues of symmetric matrices. The value has an upward bias of about D^2 / N:
    report the feature extractor and both numbers of samples with it.

    Args:
        features_x: ``[N, D]``, features of the first sample.
        features_y: ``[M, D]``, features of the second.

    Cost: two D x D eigendecompositions.

    Raises:
        ValueError: if the features are not ``[N, D]`` and ``[M, D]``, have values that are not finite, or have no more
            rows than D (the covariances are then singular, and the value depends mostly on N).

    Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, 2017,
    arXiv:1706.08500; Dowson and Landau, The Fréchet distance between multivariate normal distributions, 1982.

    Example:
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(x, x + 2.0), 4)
        12.0
    """
    x, y = two_samples("frechet_distance", features_x, features_y)
    fewest, dimension = min(len(x), len(y)), x.shape[1]
    if fewest <= dimension:
        raise ValueError(
            f"frechet_distance(features of shapes {list(features_x.shape)} and {list(features_y.shape)}): a covariance "
            f"of {dimension} features needs more samples; draw more, or pass fewer features."
        )
    shift = x.mean(0) - y.mean(0)
    x, y = x - x.mean(0), y - y.mean(0)
    cov_x, cov_y = x.T @ x / (len(x) - 1), y.T @ y / (len(y) - 1)
    values, vectors = torch.linalg.eigh(cov_x)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_y @ root).clamp(min=0).sqrt().sum()
    distance = shift.square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross
    return max(float(distance), 0.0)  # for equal features, rounding errors of either sign remain
