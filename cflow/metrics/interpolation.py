"""Interpolation between two samples by optimal transport: the baseline for a flow between snapshots."""

from __future__ import annotations

import torch
from torch import Tensor

from cflow.metrics.estimate import two_samples
from cflow.metrics.wasserstein import optimal_plan

__all__ = ["ot_interpolation"]


def ot_interpolation(
    x: Tensor,
    y: Tensor,
    fraction: float,
    count: int | None = None,
    *,
    generator: torch.Generator | None = None,
    iterations: int = 50_000_000,
) -> Tensor:
    r"""Draws from the displacement interpolation of two samples, at a fraction of the way along their optimal plan.

    .. math:: (1 - s) x_i + s y_j, \qquad (i, j) \sim \pi^\star = \arg\min_\pi \sum_{ij} \pi_{ij} \|x_i - y_j\|^2

    It learns no model. If ``x`` and ``y`` are snapshots before and after a missing one, this is the simplest estimate
    of the missing one, and often hard to improve on.

    Pairs are drawn systematically: at ``count`` equal steps through the mass of the plan, from one random offset. The
    number of times that a pair is drawn is ``count`` times its mass, rounded up or down. For samples of equal size N
    and ``count=N``, every pair is drawn once.

    Args:
        x: ``[N, D]``, the first sample.
        y: ``[M, D]``, the second.
        fraction: s, from 0 (the first sample) to 1 (the second).
        count: number of draws. Default: the larger of N and M.
        generator: source of the random offset. Default: torch's default generator.
        iterations: largest number of iterations of the network simplex.

    Returns:
        Draws ``[count, D]``, in the order of ``x``.

    Cost: that of :func:`wasserstein2`.

    Raises:
        ValueError: if the samples are not ``[N, D]`` and ``[M, D]``, are empty, or have values that are not finite; if
            ``fraction`` is not in [0, 1], or ``count`` is not positive.
        RuntimeError: if the network simplex does not end within ``iterations``.

    Source: McCann, A Convexity Principle for Interacting Gases, 1997.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [2.0]])
        >>> ot_interpolation(x, y, 0.5)
        tensor([[1.],
                [3.]])
    """
    centred = two_samples("ot_interpolation", x, y)
    if not 0 <= fraction <= 1:
        raise ValueError(
            f"ot_interpolation(fraction={fraction}): pass a number from 0 (the first sample) to 1 (the second)."
        )
    count = max(len(x), len(y)) if count is None else count
    if count < 1:
        raise ValueError(f"ot_interpolation(count={count}): pass 1 or more.")
    plan, _ = optimal_plan("ot_interpolation", *centred, power=2, iterations=iterations)
    first, second = plan.nonzero(as_tuple=True)
    mass = plan[first, second].cumsum(0)
    offset = torch.rand((), generator=generator, dtype=torch.float64, device=_device(generator)).cpu()
    drawn = torch.searchsorted(mass / mass[-1], (torch.arange(count) + offset) / count, right=True)
    drawn = drawn.clamp(max=len(mass) - 1)
    before, after = x[first[drawn].to(x.device)], y[second[drawn].to(y.device)].to(x.device)
    return before + fraction * (after - before)


def _device(generator: torch.Generator | None) -> torch.device | None:
    return None if generator is None else generator.device
