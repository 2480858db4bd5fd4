"""Wasserstein distances between two samples: exact by optimal transport, and sliced."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.metrics.estimate import Estimate, mean_estimate, two_samples

__all__ = ["sliced_wasserstein2", "wasserstein1", "wasserstein2"]


def wasserstein2(x: Tensor, y: Tensor, *, iterations: int = 50_000_000) -> float:
    r"""Computes the 2-Wasserstein distance between two samples exactly.

    .. math:: W_2 = \Bigl(\min_{\pi} \sum_{ij} \pi_{ij} \lVert x_i - y_j \rVert^2\Bigr)^{1/2}

    over plans with uniform marginals. Between samples of one distribution it is positive, and decreases slowly with
    their number: compare it with the distance between two samples of the data.

    Args:
        x: ``[N, D]``, the first sample.
        y: ``[M, D]``, the second.
        iterations: largest number of iterations of the network simplex.

    Cost: memory for N x M float64; time about cubic in N, on the CPU: seconds for 2,000 points, minutes for 10,000.

    Raises:
        ValueError: if the samples are not ``[N, D]`` and ``[M, D]``, are empty, or have values that are not finite.
        RuntimeError: if the network simplex does not end within ``iterations``.

    Source: Bonneel et al., Displacement Interpolation Using Lagrangian Mass Transport, 2011 (the network simplex).

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> round(wasserstein2(x, x + torch.tensor([3.0, 4.0])), 6)
        5.0
    """
    x, y = two_samples("wasserstein2", x, y)
    return math.sqrt(max(optimal_plan("wasserstein2", x, y, power=2, iterations=iterations)[1], 0.0))


def wasserstein1(x: Tensor, y: Tensor, *, iterations: int = 50_000_000) -> float:
    r"""Computes the 1-Wasserstein distance (earth mover's distance) between two samples exactly.

    .. math:: W_1 = \min_{\pi} \sum_{ij} \pi_{ij} \lVert x_i - y_j \rVert

    over plans with uniform marginals, with Euclidean distances. Between samples of one distribution it is positive, and
    decreases slowly with their number: compare it with the distance between two samples of the data.

    Args:
        x: ``[N, D]``, the first sample.
        y: ``[M, D]``, the second.
        iterations: largest number of iterations of the network simplex.

    Cost: that of :func:`wasserstein2`.

    Raises:
        ValueError: if the samples are not ``[N, D]`` and ``[M, D]``, are empty, or have values that are not finite.
        RuntimeError: if the network simplex does not end within ``iterations``.

    Source: Bonneel et al., Displacement Interpolation Using Lagrangian Mass Transport, 2011 (the network simplex).

    Example:
        >>> wasserstein1(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]]))
        1.0
    """
    x, y = two_samples("wasserstein1", x, y)
    return max(optimal_plan("wasserstein1", x, y, power=1, iterations=iterations)[1], 0.0)


def optimal_plan(name: str, x: Tensor, y: Tensor, power: int, iterations: int) -> tuple[Tensor, float]:
    """Computes the optimal plan ``[N, M]`` between checked samples, for a power of the distance, and its cost."""
    import ot

    # Differences, not inner products, which would lose small distances to rounding.
    cost = torch.cdist(x.cpu(), y.cpu(), compute_mode="donot_use_mm_for_euclid_dist")
    cost = cost.square_() if power == 2 else cost
    plan, log = ot.emd([], [], cost.numpy(), numItermax=iterations, log=True)
    if log["warning"] is not None:
        raise RuntimeError(
            f"{name} of {len(x)} and {len(y)} samples: {log['warning']}; raise iterations, or pass fewer samples."
        )
    return torch.from_numpy(plan), float(log["cost"])


def sliced_wasserstein2(
    x: Tensor, y: Tensor, projections: int = 512, *, generator: torch.Generator | None = None
) -> Estimate:
    r"""Estimates the sliced 2-Wasserstein distance between two samples from random directions.

    .. math:: SW_2 = \bigl(\mathbb E_{\theta} W_2^2(\theta^\top x, \theta^\top y)\bigr)^{1/2}, \qquad
        \theta \text{ uniform on the sphere}

    The standard error is that of the random directions, for fixed samples.

    Args:
        x: ``[N, D]``, the first sample.
        y: ``[M, D]``, the second.
        projections: number of random directions, 2 or more.
        generator: source of the directions. Default: torch's default generator.

    Cost: one sort per direction, memory for (N + M) x projections float64.

    Raises:
        ValueError: if the samples are not ``[N, D]`` and ``[M, D]``, are empty, or have values that are not finite; if
            there are fewer than two projections.

    Source: Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures, 2015.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> float(sliced_wasserstein2(x, x + 2.0, generator=torch.Generator().manual_seed(0)))
        2.0
    """
    if projections < 2:
        raise ValueError(f"sliced_wasserstein2(projections={projections}): pass at least 2, such as 512.")
    x, y = two_samples("sliced_wasserstein2", x, y)
    directions = torch.randn(x.shape[1], projections, generator=generator, device=x.device, dtype=x.dtype)
    directions = directions / directions.norm(dim=0)
    x, y = (x @ directions).sort(0).values, (y @ directions).sort(0).values
    # Both quantile functions are step functions, with steps at multiples of 1/N and 1/M: integers in units of 1/(N M).
    n, m = len(x), len(y)
    steps = [torch.arange(count + 1, device=x.device) * (n * m // count) for count in (n, m)]
    ends = torch.unique(torch.cat(steps))
    starts, widths = ends[:-1], ends.diff().to(x.dtype) / (n * m)
    squared = ((x[starts // m] - y[starts // n]).square() * widths[:, None]).sum(0)
    mean = mean_estimate(squared)
    value = math.sqrt(mean.value)
    return Estimate(value, mean.standard_error / (2 * value) if value > 0 else 0.0)
