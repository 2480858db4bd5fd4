import math
import resource

import pytest
import scipy.stats
import torch

from cflow.metrics import discrepancy, energy_distance, mmd


def brute_force(kernel, x, y):
    mean = lambda a, b, same: torch.stack(
        [kernel(a[i], b[j]) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
    ).mean()
    return float(mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False))


@pytest.mark.parametrize("pairs", [1, 30, 1 << 22])  # blocks of one row, of a few, and all at once
def test_equals_the_sum_over_pairs(pairs, generator, monkeypatch):
    monkeypatch.setattr(discrepancy, "PAIRS_AT_ONCE", pairs)
    x = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(7, 3, generator=generator, dtype=torch.float64) + 0.5
    assert energy_distance(x, y).value == pytest.approx(brute_force(lambda a, b: -(a - b).norm(), x, y), rel=1e-9)
    kernel = lambda a, b: torch.exp(-(a - b).square().sum() / (2 * 1.3**2))
    assert mmd(x, y, bandwidth=1.3).value == pytest.approx(brute_force(kernel, x, y), rel=1e-9)


def energy_of_normals(shift):
    """Gives 2 E|X - Y| - E|X - X'| - E|Y - Y'| for normals of unit variance."""
    folded = scipy.stats.foldnorm(abs(shift) / math.sqrt(2), scale=math.sqrt(2)).mean()
    return 2 * folded - 2 * 2 / math.sqrt(math.pi)


def mmd_of_normals(shift, h):
    """Gives the squared discrepancy of normals of unit variance: X - Y is a normal of variance 2."""
    wide = h * h + 2
    return 2 * h / math.sqrt(wide) * (1 - math.exp(-(shift**2) / (2 * wide)))


@pytest.mark.parametrize("shift", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("metric", ["energy", "mmd"])
def test_estimates_are_unbiased_and_their_errors_honest(metric, shift):
    if metric == "energy":
        measure, truth = energy_distance, energy_of_normals(shift)
    else:
        measure, truth = lambda x, y: mmd(x, y, bandwidth=0.8), mmd_of_normals(shift, 0.8)
    estimates = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(150, 1, generator=generator), torch.randn(100, 1, generator=generator) + shift
        estimates.append(measure(x, y))
    values = torch.tensor([float(one) for one in estimates])
    errors = torch.tensor([one.standard_error for one in estimates])
    bias = (values.mean() - truth) / (values.std() / math.sqrt(200))
    assert abs(float(bias)) < 4  # fails once in 16,000 seeds
    # 200 repetitions know their spread within 5 %, or 10 % for the heavier tails where the distributions agree; there
    # the standard error is allowed to be too large, never too small.
    ratio = float(errors.square().mean().sqrt() / values.std())
    covered = float(((values - truth).abs() < 1.96 * errors).float().mean())
    if shift == 1.0:
        assert 0.85 < ratio < 1.18
        assert 0.89 < covered < 0.99
    else:
        assert 0.85 < ratio < 1.8
        assert covered > 0.91


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_the_error_is_hoeffdings_decomposition_term_by_term(shift, generator):
    """Single samples count by four times the variance of their means, pairs by twice within a sample and four times
    across: the variance of a two-sample U-statistic of order two (van der Vaart, Asymptotic Statistics, 12.2)."""
    x, y = torch.randn(9, 2, generator=generator).double(), torch.randn(7, 2, generator=generator).double() + shift
    n, m = len(x), len(y)
    within = lambda a: [[-float((p - q).norm()) for q in a if q is not p] for p in list(a)]
    xx, yy = (torch.tensor(within(list(part))).double() for part in (x, y))
    xy = torch.tensor([[-float((p - q).norm()) for q in y] for p in x]).double()

    def interaction(kernel, columns):
        return kernel.square().mean() - kernel.mean(1).square().mean() - columns.square().mean() + kernel.mean() ** 2

    pairs = 2 * interaction(xx, xx.mean(1)) / (n * (n - 1)) + 2 * interaction(yy, yy.mean(1)) / (m * (m - 1))
    pairs += 4 * interaction(xy, xy.mean(0)) / (n * m)
    single = 4 * (xx.mean(1) - xy.mean(1)).var() / n + 4 * (yy.mean(1) - xy.mean(0)).var() / m
    wanted = float(torch.maximum(single - pairs, pairs).sqrt())
    assert energy_distance(x, y).standard_error == pytest.approx(wanted, rel=1e-5)


def test_median_bandwidth_is_the_median_distance(generator):
    x = torch.randn(300, 2, generator=generator)
    y = torch.randn(200, 2, generator=generator) + 1
    median = float(torch.pdist(torch.cat([x, y]).double()).median())
    assert mmd(x, y) == mmd(x, y, bandwidth=median)


def test_large_samples_need_little_memory(generator):
    x, y = torch.randn(2, 4_000, 2, generator=generator)
    energy_distance(x[:100], y[:100])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    energy_distance(x, y)
    # One full matrix would take 128 megabytes, and several are needed at a time.
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 300


def test_bad_input_is_refused():
    x = torch.zeros(5, 2)
    for metric in (energy_distance, mmd):
        with pytest.raises(ValueError, match="at least 4 samples"):
            metric(x, x[:3])
        with pytest.raises(ValueError, match="rows have NaN"):
            metric(x, x + math.inf)
    with pytest.raises(ValueError, match=r"bandwidth=0\.0"):
        mmd(x, x)
    for bandwidth in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"bandwidth={bandwidth}.*positive width"):
            mmd(torch.randn(5, 2), x, bandwidth=bandwidth)


@pytest.mark.parametrize("bandwidth", [1e-9, 1e9])
def test_a_kernel_that_sees_nothing_is_refused_instead_of_finding_nothing(bandwidth, generator):
    x, y = torch.randn(2, 50, 2, generator=generator)
    with pytest.raises(ValueError, match=r"the same for all pairs of rows; pass a typical distance"):
        mmd(x, y + 100 if bandwidth < 1 else y, bandwidth=bandwidth)


def test_constant_samples_have_their_distances():
    one, zero = torch.ones(6, 2), torch.zeros(4, 2)
    assert energy_distance(one, zero).value == pytest.approx(2 * math.sqrt(2), rel=1e-12)
    assert mmd(one, zero, bandwidth=1.0).value == pytest.approx(2 - 2 * math.exp(-1), rel=1e-12)
    assert energy_distance(one, one).value == 0.0
    assert mmd(one, one, bandwidth=1.0).value == 0.0


def test_one_row_far_away_costs_the_others_no_digits(generator):
    x, y = torch.randn(2, 200, 2, generator=generator, dtype=torch.float64)
    x[0] = 1e10
    kernel = lambda a, b: torch.exp(torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / -2)
    inside = lambda a: (kernel(a, a).sum() - 200) / (200 * 199)
    truth = float(inside(x) + inside(y) - 2 * kernel(x, y).mean())
    assert mmd(x, y, bandwidth=1.0).value == pytest.approx(truth, abs=1e-9)


def test_the_empirical_energy_distance_counts_every_pair(generator):
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 3, generator=generator, dtype=torch.float64) + 0.3
    brute = 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()
    assert abs(energy_distance(x, y, empirical=True).value - float(brute)) < 1e-6
    assert abs(energy_distance(x, x, empirical=True).value) < 1e-6
