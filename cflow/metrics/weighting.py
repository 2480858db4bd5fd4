"""Importance weights: effective sample size, evidence, and the tail of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cflow.metrics.estimate import Estimate

__all__ = ["Importance", "importance"]

LEAST = 25  # a fifth of the weights is the tail, and a fit needs at least five values


@dataclass(frozen=True)
class Importance:
    """Contains the evidence, the effective sample size and the tail of importance weights.

    Attributes:
        log_evidence: logarithm of the mean weight, an estimate of ``log Z``, with its standard error (delta method,
            from the variance of the weights; not valid if ``pareto_k`` is above 0.7).
        effective_sample_size: of the weights before smoothing, from 1 to N.
        pareto_k: shape k of a generalised Pareto distribution of the largest weights; moments of order below ``1 / k``
            exist. Below 0.5 the variance is finite; up to 0.7 estimates are still good; do not use them above. It is
            ``-inf`` if the largest weights are equal (no tail, as for ``q = p``), and ``inf`` if fewer than five
            weights differ from zero or from the others.
        weights: normalised and smoothed weights ``[N]`` in float64; ``(weights[:, None] * x).sum(0)`` estimates the
            mean of the target.
    """

    log_evidence: Estimate
    effective_sample_size: float
    pareto_k: float
    weights: Tensor = field(repr=False)

    def resample(self, x: Tensor, count: int | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws rows of ``x`` by their smoothed weights, systematically.

        A row of weight ``w`` occurs ``count * w`` times, rounded down or up, in the order of ``x``. So averages over
        the draws are unbiased, and have a smaller variance than with independent draws.

        Args:
            x: ``[N, ...]``, the samples of the weights.
            count: number of draws. Default: N.
            generator: source of random numbers. Default: torch's default generator.

        Returns:
            Rows ``[count, ...]``.

        Cost: one random number and a cumulative sum.

        Raises:
            ValueError: if ``x`` does not have one row per weight, or ``count`` is not positive.

        Source: Kitagawa, Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models, 1996.
        """
        count = len(self.weights) if count is None else count
        if count < 1 or len(x) != len(self.weights):
            raise ValueError(
                f"resample(x of shape {list(x.shape)}, count={count}): there are {len(self.weights)} weights; pass one "
                f"row for each, and a positive count."
            )
        total = self.weights.cumsum(0)
        start = torch.rand((), generator=generator, dtype=total.dtype, device=total.device)
        places = (torch.arange(count, dtype=total.dtype, device=total.device) + start) / count
        # Rounding may put the last place beyond the last sum: it belongs to the last row with a positive weight.
        last = int(self.weights.nonzero()[-1])
        return x[torch.searchsorted(total / total[-1], places, right=True).clamp(max=last).to(x.device)]


def importance(log_weights: Tensor) -> Importance:
    r"""Evaluates importance weights, :math:`w_i = \tilde p(x_i) / q(x_i)` of samples :math:`x_i \sim q`.

    .. math:: \log \hat Z = \log \frac1N \sum_i w_i, \qquad
              \mathrm{ESS} = \frac{\big(\sum_i w_i\big)^2}{\sum_i w_i^2},
              \qquad w_{(N - M + j)} \leftarrow \min \Big( F^{-1}_{\hat k, \hat\sigma} \Big( \frac{j - 1/2}{M} \Big),
              \max_i w_i \Big)

    The :math:`M = \min(N / 5, 3 \sqrt N)` largest weights are replaced by quantiles of a generalised Pareto
    distribution fitted to them (PSIS), which limits the influence of each; its shape :math:`\hat k` shows whether the
    weights are reliable. Weights cannot show mass of the target where there are no samples: a flow that misses a mode
    looks good. The target needs no normalisation.

    Args:
        log_weights: ``[N]``, ``log_joint(x) - flow.log_prob(x)`` of independent samples, N at least 25; ``-inf`` for a
            sample outside the support of the target.

    Cost: one sort, and a fit of about :math:`30 + \sqrt M` candidates. It computes in float64.

    Raises:
        ValueError: if there are fewer than 25 weights or they have another shape, one is NaN or ``+inf``, or all are
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
    # Differences within rounding count as zero.
    pareto_k, weights = _smoothed(weights, slack=16 * eps * (1 + abs(top)))
    return Importance(evidence, size, pareto_k, weights / weights.sum())


def _checked(log_weights: Tensor) -> Tensor:
    shape = list(log_weights.shape) if isinstance(log_weights, Tensor) else type(log_weights).__name__
    if not isinstance(log_weights, Tensor) or log_weights.dim() != 1 or len(log_weights) < LEAST:
        raise ValueError(
            f"importance(log_weights of {shape}): not one number per sample, N of {LEAST} or more; pass "
            f"log_joint(x) - flow.log_prob(x), [N], or draw more."
        )
    bad = (log_weights.isnan() | (log_weights == torch.inf)).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"importance(log_weights): {len(bad)} of {len(log_weights)} are NaN or +inf (samples {bad[:8].tolist()}"
            f"{'...' if len(bad) > 8 else ''}); check the densities of target and flow there."
        )
    if bool((log_weights == -torch.inf).all()):
        raise ValueError(
            f"importance(log_weights): all {len(log_weights)} are -inf: no sample is in the target's support; add a "
            f"transform to the flow, or start from a wider one."
        )
    return log_weights if log_weights.is_floating_point() else log_weights.to(torch.float64)


def _smoothed(weights: Tensor, slack: float) -> tuple[float, Tensor]:
    """Fits the tail of weights, of which the largest is one: ``(k, weights with a smoothed tail)``."""
    count = len(weights)
    ordered, order = weights.sort()
    size = min(count // 5, math.ceil(3 * math.sqrt(count)))
    cutoff = ordered[-size - 1]
    if float(cutoff.log()) >= -slack:
        return -math.inf, weights
    # The tail excludes ties with the cutoff, and numbers so small that their reciprocal overflows.
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
    r"""Fits a generalised Pareto distribution to sorted positive numbers ``[M]``: its shape k and scale.

    With :math:`\theta = -k / \sigma`, the profile likelihood, in which
    :math:`k(\theta) = \frac1M \sum_i \log(1 - \theta y_i)`, weights an average over a grid of :math:`\theta`. The shape
    is then shrunk towards 1/2 with the weight of ten observations.
    """
    count = len(excess)
    grid = 30 + int(math.sqrt(count))
    steps = torch.arange(1, grid + 1, dtype=excess.dtype, device=excess.device)
    quartile = excess[int(count / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - (grid / (steps - 0.5)).sqrt()) / (3 * quartile)
    shape = torch.log1p(-theta[:, None] * excess).mean(1)
    # At theta = 0 the distribution is exponential, and -theta / k is one over the mean.
    rate = torch.where(theta == 0, 1 / excess.mean(), -theta / shape)
    likelihood = count * (rate.log() - shape - 1)
    theta = (torch.softmax(likelihood, 0) * theta).sum()
    k = torch.log1p(-theta * excess).mean()
    scale = float(excess.mean()) if float(theta) == 0 else float(-k / theta)
    return float((count * k + 5) / (count + 10)), scale
