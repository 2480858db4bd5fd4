"""Calibration: whether conditional distributions have the right width, judged by draws of the joint distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Calibration", "Coverage", "expected_coverage", "pit", "ranks", "simulation_based_calibration", "tarp"]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Contains ranks of true values among draws, ``[N, D]``, and tests of their uniformity for each feature.

    Attributes:
        ranks: ``[N, D]``, whole numbers from 0 to ``draws``.
        draws: number of draws among which each true value was ranked.
        pit: ``[N, D]``, the ranks spread evenly over [0, 1]; exactly uniform if the draws are calibrated.
        bins: number of groups of ranks in the chi-square test.
        chi_square: p-values ``[D]`` of a chi-square test of the ranks in ``bins`` groups.
        ks: p-values ``[D]`` of a Kolmogorov-Smirnov test of ``pit``.
        bias: ``[D]``, mean of ``pit`` minus 1/2; negative if the draws are too large. Standard error
            ``1 / sqrt(12 N)``.
        dispersion: ``[D]``, ``12 E (pit - 1/2)^2``; 1 if calibrated, above 1 if the draws are too narrow
            (overconfident), below 1 if they are too wide. Standard error ``sqrt(0.8 / N)``.
    """

    ranks: Tensor
    draws: int
    pit: Tensor
    bins: int
    chi_square: Tensor
    ks: Tensor
    bias: Tensor
    dispersion: Tensor

    def __repr__(self) -> str:
        """Shows the size and what is tested, not the ranks."""
        found = {"ks": self.ks, "bias": self.bias, "dispersion": self.dispersion}
        shown = ", ".join(f"{name}={_short(values)}" for name, values in found.items())
        return f"Calibration(ranks={list(self.ranks.shape)}, draws={self.draws}, {shown})"


@dataclass(frozen=True, eq=False)
class Coverage:
    """Contains how often credible regions contain the true value.

    Attributes:
        levels: ``[L]``, the credibility levels.
        coverage: ``[L]``, the share of true values inside; below the level if overconfident.
        standard_error: ``[L]``, binomial, for calibrated regions: ``sqrt(level (1 - level) / N)``.
        credibility: ``[N]``, the smallest level at which each region contains its true value; uniform if calibrated.
        excess: mean of coverage minus level over all levels, from -1/2 (never inside) to 1/2; negative if
            overconfident. Standard error ``1 / sqrt(12 N)``.
        ks: p-value of a Kolmogorov-Smirnov test of ``credibility``.
    """

    levels: Tensor
    coverage: Tensor
    standard_error: Tensor
    credibility: Tensor
    excess: float
    ks: float

    def __repr__(self) -> str:
        """Shows the size and what is tested, not the curve."""
        return f"Coverage(credibility={list(self.credibility.shape)}, excess={self.excess:+.3g}, ks={self.ks:.3g})"


def _short(values: Tensor) -> str:
    """Shows the first values of a tensor with three digits."""
    shown = ", ".join(f"{value:.3g}" for value in values[:8].tolist())
    return f"[{shown}{', ...' if len(values) > 8 else ''}]"


def ranks(samples: Tensor, observed: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Counts the samples below each observed value; the rank among equal values is drawn at random.

    .. math:: r = \sum_s \mathbb 1[x_s < y] + \mathcal U\Bigl(0, \dots, \sum_s \mathbb 1[x_s = y]\Bigr)

    If the observed value has the same distribution as the samples, the rank is uniform on 0 to S.

    Args:
        samples: ``[S, *shape]``.
        observed: ``[*shape]``.
        generator: source of the random ranks among equal values. Default: torch's default generator.

    Returns:
        Whole numbers ``[*shape]``, one for each entry.

    Raises:
        ValueError: if the shapes do not fit, there are no samples, or a value is NaN.

    Source: Hamill, Interpretation of Rank Histograms for Verifying Ensemble Forecasts, 2001.

    Example:
        >>> ranks(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2.5]))
        tensor([2])
    """
    _check("ranks", samples, observed)
    below, equal = (samples < observed).sum(0), (samples == observed).sum(0)
    uniform = torch.rand(equal.shape, generator=generator, device=equal.device, dtype=torch.float64)
    return below + (uniform * (equal + 1)).long()


def pit(samples: Tensor, observed: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Computes the probability integral transform of observed values from samples of their predicted distribution.

    .. math:: u = \frac{r + \mathcal U[0, 1)}{S + 1}

    with r the rank of :func:`ranks`. If the prediction is right, u is exactly uniform on [0, 1] for any number of
    samples. A histogram with a hump means that predictions are too wide; a U shape, too narrow; a slope, too high or
    too low.

    Args:
        samples: ``[S, *shape]``.
        observed: ``[*shape]``.
        generator: source of random numbers. Default: torch's default generator.

    Returns:
        Numbers ``[*shape]`` in float64.

    Raises:
        ValueError: as for :func:`ranks`.

    Source: Gneiting et al., Probabilistic forecasts, calibration and sharpness, 2007.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> u = pit(torch.randn(9, 500, generator=generator), torch.randn(500, generator=generator))
        >>> u.shape, bool(((u >= 0) & (u < 1)).all())
        (torch.Size([500]), True)
    """
    return _spread(ranks(samples, observed, generator=generator), len(samples), generator)


def simulation_based_calibration(
    samples: Tensor, parameters: Tensor, *, bins: int | None = None, generator: torch.Generator | None = None
) -> Calibration:
    r"""Tests draws of a posterior by the ranks of the parameters that produced the data.

    For ``theta ~ p(theta)``, ``x ~ p(x | theta)`` and draws from the exact ``p(theta | x)``, the rank of ``theta``
    among the draws is uniform for each feature. The converse is not true: draws from the prior pass the test, too. So
    also measure the quality of the posterior, by its log-density or :func:`classifier_two_sample`.
    :func:`expected_coverage` and :func:`tarp` test the features together.

    Draws must be independent: thin a Markov chain first. If draws are truncated at the bounds of the prior, truncate
    them here in the same way.

    Args:
        samples: ``[S, N, D]``, S draws from the posterior of each of N data sets: ``flow.sample((S,), x)``.
        parameters: ``[N, D]``, the parameters that produced the data, drawn from the prior.
        bins: groups of ranks in the chi-square test. Default: at most 20, with five or more ranks expected in each.
        generator: source of random numbers. Default: torch's default generator.

    Raises:
        ValueError: if the shapes do not fit, a value is NaN, there are fewer than ten data sets, or ``bins`` is below 2
            or above S + 1.

    Source: Talts et al., Validating Bayesian Inference Algorithms with Simulation-Based Calibration, 2018,
    arXiv:1804.06788.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> theta = torch.randn(500, 1, generator=generator)
        >>> x = theta + torch.randn(500, 1, generator=generator)
        >>> draws = x / 2 + torch.randn(99, 500, 1, generator=generator) * 0.5**0.5
        >>> found = simulation_based_calibration(draws, theta, generator=generator)
        >>> bool(found.ks > 1e-3), abs(float(found.dispersion) - 1) < 0.2
        (True, True)
    """
    from scipy import stats

    if samples.ndim != 3:
        raise ValueError(
            f"simulation_based_calibration(samples of shape {list(samples.shape)}): not S draws for N data sets; pass "
            f"flow.sample((S,), x), [S, N, D]."
        )
    rank = ranks(samples, parameters, generator=generator)
    (draws, count, _), name = samples.shape, "simulation_based_calibration"
    _enough(name, count)
    bins = max(2, min(20, count // 5, draws + 1)) if bins is None else bins
    if not 2 <= bins <= draws + 1:
        raise ValueError(
            f"{name}(bins={bins}): ranks among {draws} draws take {draws + 1} values; pass 2 to {draws + 1} bins, or "
            f"draw more."
        )
    u = _spread(rank, draws, generator)
    group = rank * bins // (draws + 1)
    # Groups differ by one rank where the bins do not divide the ranks.
    sizes = torch.bincount(torch.arange(draws + 1) * bins // (draws + 1), minlength=bins)
    counts = torch.stack([torch.bincount(each, minlength=bins) for each in group.T.cpu()])
    expected = (count * sizes.double() / (draws + 1)).numpy()  # chisquare compares the two sums to 1.5e-8
    chi_square = [stats.chisquare(each, expected).pvalue for each in counts.numpy()]
    ks = [stats.kstest(each, "uniform").pvalue for each in u.T.cpu().numpy()]
    off = u - 0.5
    return Calibration(
        rank, draws, u, bins, torch.tensor(chi_square), torch.tensor(ks), off.mean(0), 12 * off.square().mean(0)
    )


def expected_coverage(
    sample_log_probs: Tensor,
    true_log_probs: Tensor,
    *,
    levels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Coverage:
    r"""Measures how often regions of highest density contain the parameters that produced the data.

    .. math:: \frac1N \sum_n \mathbb 1\bigl[\theta_n \in \Theta_{q(\theta | x_n)}(c)\bigr] \quad\text{for levels } c

    The region of level c contains a share c of the draws, those of highest density. Log-densities may omit a constant
    that is the same for all draws of a data set. For a calibrated posterior the coverage is c for every c; this also
    holds for the prior.

    Args:
        sample_log_probs: ``[S, N]``, log-densities under ``q(. | x_n)`` of S draws from it.
        true_log_probs: ``[N]``, log-densities of the true parameters under ``q(. | x_n)``.
        levels: ``[L]`` between 0 and 1. Default: 0.05 to 0.95.
        generator: source of random numbers. Default: torch's default generator.

    Raises:
        ValueError: if the shapes do not fit, a value is NaN, there are fewer than ten data sets, or a level is not in
            [0, 1].

    Source: Hermans et al., A Trust Crisis In Simulation-Based Inference? Your Posterior Approximations Can Be
    Unfaithful, 2021, arXiv:2110.06581.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> theta, draws = torch.randn(400, generator=generator), 0.5 * torch.randn(99, 400, generator=generator)
        >>> narrow = torch.distributions.Normal(0.0, 0.5)
        >>> found = expected_coverage(narrow.log_prob(draws), narrow.log_prob(theta), generator=generator)
        >>> found.excess < -0.1  # half as wide as the truth: overconfident
        True
    """
    if sample_log_probs.ndim != 2:
        raise ValueError(
            f"expected_coverage(sample_log_probs of shape {list(sample_log_probs.shape)}): not S draws for N data "
            f"sets; pass [S, N]."
        )
    # The draws with a higher density than the true value form the largest region that does not contain it.
    return _coverage("expected_coverage", pit(-sample_log_probs, -true_log_probs, generator=generator), levels)


def tarp(
    samples: Tensor,
    parameters: Tensor,
    *,
    references: Tensor | None = None,
    levels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Coverage:
    r"""Measures how often balls around random points contain the parameters that produced the data; needs no density.

    The ball around a reference point ``r_n`` is the smallest that contains a share c of the draws. Unlike ranks of
    single features it tests the features together, and unlike regions of highest density it detects shifts. References
    that are independent of the data cannot distinguish the posterior from the prior; references that depend on ``x_n``
    can. Distances are Euclidean, with every feature scaled by its range among the parameters.

    Args:
        samples: ``[S, N, D]``, S draws from the posterior of each of N data sets.
        parameters: ``[N, D]``, the parameters that produced the data.
        references: ``[N, D]``, centres of the balls. Default: uniform over the box of the parameters.
        levels: ``[L]`` between 0 and 1. Default: 0.05 to 0.95.
        generator: source of random numbers. Default: torch's default generator.

    Raises:
        ValueError: if the shapes do not fit, a value is NaN (of parameters and references: or infinite), there are
            fewer than ten data sets, a feature is constant, or a level is not in [0, 1].

    Source: Lemos et al., Sampling-Based Accuracy Testing of Posterior Estimators for General Inference, 2023,
    arXiv:2302.03026.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> theta, draws = torch.randn(400, 2, generator=generator), torch.randn(99, 400, 2, generator=generator)
        >>> abs(tarp(draws, theta, generator=generator).excess) < 0.05
        True
    """
    if samples.ndim != 3:
        raise ValueError(
            f"tarp(samples of shape {list(samples.shape)}): not S draws for N data sets; pass "
            f"flow.sample((S,), x), [S, N, D]."
        )
    _check("tarp", samples, parameters)
    _enough("tarp", len(parameters))
    low, high = parameters.amin(0), parameters.amax(0)
    if references is not None and references.shape != parameters.shape:
        raise ValueError(
            f"tarp(references of shape {list(references.shape)}): not one point per data set; pass "
            f"{list(parameters.shape)}."
        )
    for label, points in (("parameters", parameters), ("references", references)):
        if points is not None and not bool(points.isfinite().all()):
            raise ValueError(
                f"tarp({label}): {int((~points.isfinite()).sum())} values are NaN or infinite; omit these data sets."
            )
    if not bool((high > low).all()):
        raise ValueError(
            f"tarp: features {(high <= low).nonzero().flatten().tolist()} of the parameters are constant; omit them."
        )
    if references is None:
        uniform = torch.rand(parameters.shape, generator=generator, device=parameters.device, dtype=parameters.dtype)
        references = low + (high - low) * uniform
    distance = lambda x: ((x - references) / (high - low)).square().sum(-1)
    return _coverage("tarp", pit(distance(samples), distance(parameters), generator=generator), levels)


def _coverage(name: str, credibility: Tensor, levels: Tensor | None) -> Coverage:
    from scipy import stats

    _enough(name, len(credibility))
    levels = torch.linspace(0.05, 0.95, 19, dtype=torch.float64) if levels is None else levels
    levels = levels.to(credibility)
    if levels.ndim != 1 or not bool(((levels >= 0) & (levels <= 1)).all()):
        raise ValueError(
            f"{name}(levels of shape {list(levels.shape)}, {levels.flatten()[:5].tolist()}): not a row of numbers "
            f"between 0 and 1; pass for example torch.tensor([0.5, 0.9])."
        )
    coverage = (credibility[:, None] <= levels).to(levels).mean(0)
    error = (levels * (1 - levels) / len(credibility)).sqrt()
    ks = float(stats.kstest(credibility.cpu().numpy(), "uniform").pvalue)
    return Coverage(levels, coverage, error, credibility, float(0.5 - credibility.mean()), ks)


def _spread(rank: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
    """Spreads whole ranks evenly over [0, 1)."""
    return (rank + torch.rand(rank.shape, generator=generator, device=rank.device, dtype=torch.float64)) / (draws + 1)


def _enough(name: str, count: int) -> None:
    if count < 10:
        raise ValueError(f"{name}: {count} data sets are too few to test calibration; simulate hundreds.")


def _check(name: str, samples: Tensor, observed: Tensor) -> None:
    """Checks samples ``[S, *shape]`` against observed values ``[*shape]``."""
    if samples.ndim == 0 or samples.shape[1:] != observed.shape or len(samples) == 0:
        shape = ", ".join(map(str, observed.shape)) or "..."
        raise ValueError(
            f"{name}(samples of shape {list(samples.shape)}, observed of shape {list(observed.shape)}): samples need "
            f"one more leading dimension; pass [S, {shape}]."
        )
    bad = int(samples.isnan().sum()) + int(observed.isnan().sum())
    if bad:
        raise ValueError(f"{name}: {bad} values are NaN, which have no rank; remove them.")
