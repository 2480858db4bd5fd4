"""Importance weights against laws whose evidence, effective size and tails are known."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import Normal

from cflow.metrics.weighting import _pareto, importance

F64 = torch.float64


def gaussian(scale, count, generator, shift=0.0):
    """Samples of a standard normal, weighted towards N(shift, scale^2) times a constant of e^3."""
    x = torch.randn(count, generator=generator, dtype=F64)
    target = Normal(torch.tensor(shift, dtype=F64), torch.tensor(scale, dtype=F64))
    return x, 3 + target.log_prob(x) - Normal(0.0, 1.0).log_prob(x)


def test_evidence_and_effective_size_of_a_gaussian_target(generator):
    scale, count = 0.7, 20_000
    x, log_weights = gaussian(scale, count, generator)
    found = importance(log_weights)
    # E w^2 / (E w)^2 for N(0, scale^2) against N(0, 1).
    second = 1 / (scale**2 * math.sqrt(2 / scale**2 - 1))
    error = math.sqrt((second - 1) / count)
    assert abs(found.log_evidence.value - 3) < 4.5 * error  # fails once in 100,000 seeds
    # Estimates of second moments of 20,000 bounded weights: within 5 %, some ten standard errors.
    assert found.log_evidence.standard_error == pytest.approx(error, rel=0.05)
    assert found.effective_sample_size == pytest.approx(count / second, rel=0.05)
    assert found.pareto_k < 0.5
    variance = float((found.weights * x.square()).sum())
    assert variance == pytest.approx(scale**2, rel=0.05)


def test_the_standard_error_covers(generator):
    inside = 0
    for _ in range(400):
        estimate = importance(gaussian(0.8, 500, generator, shift=0.3)[1]).log_evidence
        inside += abs(estimate.value - 3) < 1.96 * estimate.standard_error
    # 95 % of 400, with a standard deviation of 4.4: five of these.
    assert 358 <= inside <= 400


@pytest.mark.parametrize("k", [-0.5, 0.0, 0.2, 0.5, 0.7, 1.0])
def test_the_shape_of_a_known_tail_is_found(k, generator):
    # 200 fits: the mean of estimates whose spread is below 0.1 lies within 0.02 of its expectation (three standard
    # errors); the prior and the finite sample leave a bias below 0.04.
    fits = []
    for seed in range(200):
        draws = scipy.stats.genpareto(k, scale=2.5).rvs(1000, random_state=np.random.default_rng(seed))
        fits.append(_pareto(torch.from_numpy(np.sort(draws))))
    shapes, scales = np.array(fits).T
    assert abs(shapes.mean() - k) < 0.06
    assert shapes.std() < 0.1
    assert scales.mean() == pytest.approx(2.5, rel=0.03)


@pytest.mark.parametrize(
    ("count", "k", "psis"),
    [(25, 0.6, 0.527745420372899), (60, 0.3, 0.3986942091452809), (400, 0.9, 0.8183704168942157)],
)
def test_the_shape_is_that_of_arviz(count, k, psis):
    """Figures of ``arviz.psislw`` (0.23.4), its prior included, which is two thirds of a tail of five weights."""
    places = (torch.arange(count, dtype=F64) + 0.5) / count
    assert importance(-k * places.log()).pareto_k == pytest.approx(psis, abs=1e-12)


@pytest.mark.parametrize("k", [0.3, 0.5, 0.9])
def test_pareto_weights_have_their_k(k, generator):
    estimates = [importance(-k * torch.rand(20_000, generator=generator, dtype=F64).log()).pareto_k for _ in range(40)]
    # Tails of 425 weights: a spread of (1 + k) / sqrt(425) each, so 0.015 of the mean; prior below 0.01.
    assert abs(np.mean(estimates) - k) < 0.07


def test_smoothed_weights_are_quantiles_of_the_fitted_law(generator):
    log_weights = -0.6 * torch.rand(2000, generator=generator, dtype=F64).log()
    found = importance(log_weights)
    size = math.ceil(3 * math.sqrt(2000))
    order = log_weights.argsort()
    weights = log_weights.exp() / log_weights.exp().max()
    cutoff = weights[order[-size - 1]]
    k, scale = _pareto(weights[order[-size:]] - cutoff)
    assert found.pareto_k == pytest.approx(k, rel=1e-9)
    places = (np.arange(size) + 0.5) / size
    wanted = np.minimum(float(cutoff) + scipy.stats.genpareto(k, scale=scale).ppf(places), 1.0)
    # Below the cutoff weights keep their ratios; above, they are the quantiles.
    ratio = found.weights[order[0]] / weights[order[0]]
    assert torch.allclose(found.weights[order[:-size]], ratio * weights[order[:-size]], rtol=1e-12)
    np.testing.assert_allclose((found.weights[order[-size:]] / ratio).numpy(), wanted, rtol=1e-9)
    assert float(found.weights.sum()) == pytest.approx(1.0, abs=1e-12)


def test_smoothing_tames_heavy_tails(generator):
    """The mean of weights with infinite variance (k = 0.6), whose truth is 1 / (1 - k)."""
    raw, smooth = [], []
    for _ in range(300):
        log_weights = -0.6 * torch.rand(1000, generator=generator, dtype=F64).log()
        found = importance(log_weights)
        raw.append(math.exp(found.log_evidence.value))
        # Weights at the cutoff and below are not smoothed: the ratio there gives the sum of the smoothed ones.
        smooth.append(float(log_weights.min().exp() / found.weights.min() / 1000))
    truth = 1 / 0.4
    error = lambda values: np.sqrt(np.mean((np.array(values) - truth) ** 2))
    assert error(smooth) < 0.75 * error(raw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_weights_are_perfect(dtype, generator):
    equal = torch.full((100,), -7.25, dtype=dtype)
    rounded = equal * (1 + torch.finfo(dtype).eps * torch.randint(-2, 3, (100,), generator=generator))
    for each in (equal, rounded):
        found = importance(each)
        assert found.effective_sample_size == pytest.approx(100, rel=1e-6)
        assert found.log_evidence.value == pytest.approx(-7.25, rel=1e-6)
        assert found.log_evidence.standard_error < 1e-6
        assert found.pareto_k == -math.inf


def test_scale_and_range_do_not_matter(generator):
    log_weights = torch.randn(400, generator=generator, dtype=F64)
    here, far = importance(log_weights), importance(log_weights + 5000)
    assert far.log_evidence.value == pytest.approx(here.log_evidence.value + 5000, rel=1e-12)
    assert far.pareto_k == pytest.approx(here.pareto_k, abs=1e-6)
    # Weights over thousands of nats: one sample has all the say, and nothing overflows.
    for spread in (1e2, 1e4, 1e6):
        found = importance(spread * log_weights)
        assert found.effective_sample_size == pytest.approx(1, abs=0.5)
        assert found.pareto_k > 0.7
        assert bool(found.weights.isfinite().all())


def test_samples_outside_the_support_weigh_nothing(generator):
    """Uniform on [0, 1/2] by samples of [0, 1]: Z = 1, half of the samples count, equally."""
    x = torch.rand(10_000, generator=generator, dtype=F64)
    found = importance(torch.where(x < 0.5, math.log(2.0), -math.inf))
    assert abs(found.log_evidence.value) < 4.5 * 0.01  # fails once in 100,000 seeds
    assert found.effective_sample_size == float((x < 0.5).sum())
    assert found.pareto_k == -math.inf
    few = torch.full((1000,), -math.inf)
    few[:4] = torch.arange(4.0)
    assert importance(few).pareto_k == math.inf


def test_resampling_is_proportional_and_unbiased(generator):
    x, log_weights = gaussian(0.6, 4000, generator, shift=0.5)
    found = importance(log_weights)
    rows = found.resample(torch.arange(4000), 10_000, generator=generator)
    counts = torch.bincount(rows, minlength=4000)
    assert bool(((counts - 10_000 * found.weights).abs() < 1 + 1e-9).all())
    drawn = found.resample(x, generator=generator)
    assert drawn.shape == x.shape
    # Independent draws would vary by 0.6 / sqrt(4000).
    assert abs(float(drawn.mean() - (found.weights * x).sum())) < 3 * 0.6 / math.sqrt(4000)
    # Starts at random: the mean count over draws is the weight itself.
    total = sum(
        torch.bincount(found.resample(torch.arange(4000), 50, generator=generator), minlength=4000) for _ in range(2000)
    )
    heaviest = int(found.weights.argmax())
    expected = 2000 * 50 * float(found.weights[heaviest])
    assert abs(int(total[heaviest]) - expected) < 5 * math.sqrt(expected)  # fails once in a million seeds


def test_zero_weights_are_never_drawn(generator):
    log_weights = torch.where(torch.arange(30) % 3 == 0, 0.0, -math.inf)
    found = importance(log_weights)
    for _ in range(200):
        assert bool((found.resample(torch.arange(30), 7, generator=generator) % 3 == 0).all())


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (torch.zeros(10), r"log_weights of \[10\].*N of 25 or more.*draw more"),
        (torch.zeros(30, 2), r"log_weights of \[30, 2\].*one number per sample"),
        ([0.0] * 30, "log_weights of list"),
        (torch.tensor([0.0] * 30 + [math.nan]), r"1 of 31 are NaN or \+inf \(samples \[30\]\)"),
        (torch.tensor([math.inf] * 30), r"30 of 30 are NaN or \+inf \(samples \[0, 1, 2, 3, 4, 5, 6, 7\]\.\.\.\)"),
        (torch.full((30,), -math.inf), "all 30 are -inf.*support"),
    ],
)
def test_weights_that_say_nothing_are_refused(log_weights, message):
    with pytest.raises(ValueError, match=message):
        importance(log_weights)


def test_resampling_refuses_what_does_not_fit():
    found = importance(torch.zeros(30))
    with pytest.raises(ValueError, match=r"x of shape \[29, 2\], count=30.*30 weights"):
        found.resample(torch.zeros(29, 2))
    with pytest.raises(ValueError, match="count=0"):
        found.resample(torch.zeros(30, 2), 0)
