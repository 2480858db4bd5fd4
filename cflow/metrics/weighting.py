"""How well samples of one law stand for another: effective size, evidence and the tail of their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cflow.metrics.estimate import Estimate

__all__ = ["Importance", "importance"]

LEAST = 25  # a fifth of them is the tail, and five values are the fewest that a law is fitted to


@dataclass(frozen=True)
class Importance:
    """Holds what importance weights say.

    Attributes:
        log_evidence: the logarithm of the mean weight, an estimate of ``log Z``, with its standard error (delta
            method, from the variance of the weights: worth nothing where ``pareto_k`` is above 0.7).
        effective_sample_size: from 1 to N, of the weights as they are.
        pareto_k: the shape of the law of the largest weights; moments of order below ``1 / k`` exist. Below 0.5 the
            variance is finite; up to 0.7 estimates are still good; above, do not use them. ``-inf`` where the largest
            weights are equal (no tail at all, as for ``q = p``), ``inf`` where fewer than five weights stand out from
            zero, or from the others.
        weights: normalised and smoothed weights ``[N]`` in float64: ``(weights[:, None] * x).sum(0)`` estimates the
            target's mean.
    """

    log_evidence: Estimate
    effective_sample_size: float
    pareto_k: float
    weights: Tensor = field(repr=False)

    def resample(self, x: Tensor, count: int | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws rows of ``x [N, ...]`` by their smoothed weights (systematically): ``[count, ...]``, N unless given.

        A row of weight ``w`` comes ``count * w`` times, rounded down or up, in the order of ``x``; so averages over the
        draw are unbiased, and vary less than with independent draws. Cost: one random number and a running sum.

        Raises:
            ValueError: where ``x`` has not one row per weight, or ``count`` is not positive.

        Source: Kitagawa, Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models, 1996.
        """
        count = len(self.weights) if count is None else count
        if count < 1 or len(x) != len(self.weights):
            raise ValueError(
                f"resample(x of shape {list(x.shape)}, count={count}): there are {len(self.weights)} weights; pass the "
                f"samples that they belong to, one row for each, and a positive count."
            )
        total = self.weights.cumsum(0)
        start = torch.rand((), generator=generator, dtype=total.dtype, device=total.device)
        places = (torch.arange(count, dtype=total.dtype, device=total.device) + start) / count
        # Rounding may leave the last place beyond the last sum: it belongs to the last row that weighs anything.
        last = int(self.weights.nonzero()[-1])
        return x[torch.searchsorted(total / total[-1], places, right=True).clamp(max=last).to(x.device)]


def importance(log_weights: Tensor) -> Importance:
    r"""Judges importance weights, :math:`w_i = \tilde p(x_i) / q(x_i)` of samples :math:`x_i \sim q`.

    .. math:: \log \hat Z = \log \frac1N \sum_i w_i, \qquad
              \mathrm{ESS} = \frac{\big(\sum_i w_i\big)^2}{\sum_i w_i^2}, \qquad
              w_{(N - M + j)} \leftarrow \min \Big( F^{-1}_{\hat k, \hat\sigma} \Big( \frac{j - 1/2}{M} \Big),
              \max_i w_i \Big)

    The :math:`M = \min(N / 5, 3 \sqrt N)` largest weights are replaced by the quantiles of the generalised Pareto law
    that is fitted to them (PSIS), which bounds the say of each; its shape :math:`\hat k` tells whether the weights can
    be trusted at all. No weight tells of mass that no sample met: a flow that misses a mode looks well. Only the
    target's constant is unknown: ``log_weights`` are ``log_joint(x) - flow.log_prob(x)``.

    Shapes: ``log_weights [N]``, of independent samples, N at least 25; ``-inf`` for a sample outside the target's
    support. Computed in float64. Cost: one sort, and a fit of some :math:`30 + \sqrt M` candidates.

    Raises:
        ValueError: where there are fewer than 25 weights or another shape, for NaN and ``+inf``, and where all are
            ``-inf``.

    Source: Vehtari et al., Pareto Smoothed Importance Sampling, 2015, arXiv:1507.02646 (the smoothing, and the prior on
    k of appendix G); Zhang and Stephens, A New and Efficient Estimation Method for the Generalized Pareto Distribution,
    2009, Technometrics 51 (the fit).

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(4000, generator=generator, dtype=torch.float64)
        >>> log_joint = -0.5 * (x / 0.8).square()  # Z = 0.8 sqrt(2 pi), log Z = 0.6958
        >>> found = importance(log_joint - torch.distributions.Normal(0.0, 1.0).log_prob(x))
        >>> print(found.log_evidence)
        0.6975 ± 0.0042
        >>> found.pareto_k < 0.5, 3000 < found.effective_sample_size < 4000
        (True, True)
    """
    log_weights = _checked(log_weights)
    eps = torch.finfo(log_weights.dtype).eps
    log_weights = log_weights.detach().to(torch.float64)
    count, top = len(log_weights), float(log_weights.max())
    weights = (log_weights - top).exp()
    size = float(weights.sum().square() / weights.square().sum())
    evidence = Estimate(top + math.log(float(weights.mean())), math.sqrt(max(count / size - 1, 0.0) / (count - 1)))
    # Differences that rounding alone can make are none.
    pareto_k, weights = _smoothed(weights, slack=16 * eps * (1 + abs(top)))
    return Importance(evidence, size, pareto_k, weights / weights.sum())


def _checked(log_weights: Tensor) -> Tensor:
    shape = list(log_weights.shape) if isinstance(log_weights, Tensor) else type(log_weights).__name__
    if not isinstance(log_weights, Tensor) or log_weights.dim() != 1 or len(log_weights) < LEAST:
        raise ValueError(
            f"importance(log_weights of {shape}): weights are one number per sample, a tensor [N] with N of {LEAST} or "
            f"more (the tail is a fifth of them); draw more, and pass log_joint(x) - flow.log_prob(x)."
        )
    bad = (log_weights.isnan() | (log_weights == torch.inf)).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"importance(log_weights): {len(bad)} of {len(log_weights)} are NaN or +inf (samples {bad[:8].tolist()}"
            f"{'...' if len(bad) > 8 else ''}), so nothing follows from them; find out at which samples the target or "
            f"the flow's density fails."
        )
    if bool((log_weights == -torch.inf).all()):
        raise ValueError(
            f"importance(log_weights): all {len(log_weights)} are -inf, so no sample lies where the target has mass; "
            f"give the flow a transform onto the target's support, or begin from a wider one."
        )
    return log_weights if log_weights.is_floating_point() else log_weights.to(torch.float64)


def _smoothed(weights: Tensor, slack: float) -> tuple[float, Tensor]:
    """Fits the tail of weights whose largest is one: ``(k, weights with a smoothed tail)``."""
    count = len(weights)
    ordered, order = weights.sort()
    size = min(count // 5, math.ceil(3 * math.sqrt(count)))
    cutoff = ordered[-size - 1]
    if float(cutoff.log()) >= -slack:
        return -math.inf, weights
    # Ties with the cutoff are no tail, nor is what is so small that its reciprocal overflows.
    tail = ordered[(ordered > cutoff) & (ordered > 1e-280)]
    if len(tail) < 5:
        return math.inf, weights
    k, scale = _pareto(tail - cutoff)
    places = (torch.arange(len(tail), dtype=tail.dtype, device=tail.device) + 0.5) / len(tail)
    # The quantile (u^-k - 1) scale / k with u = 1 - place, by expm1 so that k may be near zero, or zero.
    exponent = -torch.log1p(-places)
    quantiles = scale * (torch.expm1(k * exponent) / k if k != 0 else exponent)
    return k, weights.index_copy(0, order[-len(tail) :], (cutoff + quantiles).clamp(max=1.0))


def _pareto(excess: Tensor) -> tuple[float, float]:
    r"""Fits a generalised Pareto law to sorted positive numbers ``[M]``: its shape k and scale.

    With :math:`\theta = -k / \sigma`, the likelihood with k at its best for each :math:`\theta`,
    :math:`k(\theta) = \frac1M \sum_i \log(1 - \theta y_i)`, is averaged over a grid of :math:`\theta`. The shape is
    then drawn towards 1/2 with the weight of ten observations.
    """
    count = len(excess)
    grid = 30 + int(math.sqrt(count))
    steps = torch.arange(1, grid + 1, dtype=excess.dtype, device=excess.device)
    quartile = excess[int(count / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - (grid / (steps - 0.5)).sqrt()) / (3 * quartile)
    shape = torch.log1p(-theta[:, None] * excess).mean(1)
    # At theta = 0 the law is exponential, and -theta / k is one over the mean.
    rate = torch.where(theta == 0, 1 / excess.mean(), -theta / shape)
    likelihood = count * (rate.log() - shape - 1)
    theta = (torch.softmax(likelihood, 0) * theta).sum()
    k = torch.log1p(-theta * excess).mean()
    scale = float(excess.mean()) if float(theta) == 0 else float(-k / theta)
    return float((count * k + 5) / (count + 10)), scale
