"""Calibration of posteriors that are known exactly, and of such that are made too narrow, too wide or shifted."""

import math

import pytest
import scipy.stats
import torch

from cflow.metrics import expected_coverage, pit, ranks, simulation_based_calibration, tarp
from cflow.plot import calibration

SIZE, DRAWS = 1000, 63


def joint(generator, scale=1.0, shift=0.0):
    """A normal prior and likelihood in three dimensions: (posterior draws [S, N, D], parameters, log-density)."""
    theta = torch.randn(SIZE, 3, generator=generator, dtype=torch.float64)
    noise = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    x = theta + noise * torch.randn(SIZE, 3, generator=generator, dtype=torch.float64)
    mean, deviation = x / (1 + noise**2), noise / (1 + noise**2).sqrt() * scale
    posterior = torch.distributions.Independent(torch.distributions.Normal(mean + shift, deviation), 1)
    draws = mean + shift + deviation * torch.randn(DRAWS, SIZE, 3, generator=generator, dtype=torch.float64)
    return draws, theta, posterior.log_prob


def test_ranks_count_what_is_below():
    samples = torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]])
    assert ranks(samples, torch.tensor([2.5, 0.0])).tolist() == [2, 0]
    assert ranks(samples[:, 0], torch.tensor(9.0)).item() == 3
    assert ranks(torch.zeros(4, 2, 3, 5), torch.ones(2, 3, 5)).shape == (2, 3, 5)


def test_ties_are_broken_at_random(generator):
    # Two below, three equal: the rank is 2, 3, 4 or 5, each a quarter of the time.
    samples = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 2.0])[:, None].expand(6, 4000)
    found = ranks(samples, torch.ones(4000), generator=generator)
    counts = torch.bincount(found, minlength=7)
    assert counts[[0, 1, 6]].sum() == 0
    assert scipy.stats.chisquare(counts[2:6].numpy()).pvalue > 1e-4  # fails once in 10,000 seeds
    again = ranks(samples, torch.ones(4000), generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


@pytest.mark.parametrize("draws", [1, 4, 99])
def test_pit_is_uniform_for_any_number_of_samples_and_of_discrete_laws(generator, draws):
    poisson = lambda *shape: torch.poisson(torch.full(shape, 1.5), generator=generator)
    u = pit(poisson(draws, 4000), poisson(4000), generator=generator)
    assert scipy.stats.kstest(u.numpy(), "uniform").pvalue > 1e-4  # fails once in 10,000 seeds


def test_the_exact_posterior_is_calibrated(generator):
    draws, theta, log_prob = joint(generator)
    found = simulation_based_calibration(draws, theta, generator=generator)
    assert found.draws == DRAWS
    assert found.ranks.shape == found.pit.shape == (SIZE, 3)
    assert found.chi_square.shape == found.ks.shape == found.bias.shape == found.dispersion.shape == (3,)
    # Each of the four checks below fails by chance less than once in 10,000 seeds.
    assert (found.chi_square > 1e-5).all()
    assert (found.ks > 1e-5).all()
    assert (found.bias.abs() < 5 / math.sqrt(12 * SIZE)).all()
    assert ((found.dispersion - 1).abs() < 5 * math.sqrt(0.8 / SIZE)).all()
    for coverage in (
        expected_coverage(log_prob(draws), log_prob(theta), generator=generator),
        tarp(draws, theta, generator=generator),
    ):
        assert coverage.ks > 1e-4
        assert abs(coverage.excess) < 5 / math.sqrt(12 * SIZE)
        assert ((coverage.coverage - coverage.levels).abs() < 5 * coverage.standard_error).all()


def test_p_values_of_the_exact_posterior_are_uniform(generator):
    """Seventeen bins do not divide the 64 ranks; the expected counts must follow."""
    theta = torch.randn(300, 400, generator=generator)
    draws = torch.randn(DRAWS, 300, 400, generator=generator)
    found = simulation_based_calibration(draws, theta, bins=17, generator=generator)
    for values in (found.chi_square, found.ks):
        assert scipy.stats.kstest(values.numpy(), "uniform").pvalue > 1e-4  # fails once in 10,000 seeds
    assert found.bias.std() == pytest.approx(1 / math.sqrt(12 * 300), rel=0.2)
    assert found.dispersion.std() == pytest.approx(math.sqrt(0.8 / 300), rel=0.2)


@pytest.mark.parametrize(("scale", "sign"), [(0.6, 1), (1.6, -1)])
def test_wrong_widths_are_found_in_their_direction(generator, scale, sign):
    draws, theta, log_prob = joint(generator, scale=scale)
    found = simulation_based_calibration(draws, theta, generator=generator)
    assert (found.chi_square < 1e-6).all()
    assert (found.ks < 1e-3).all()
    assert (sign * (found.dispersion - 1) > 5 * math.sqrt(0.8 / SIZE)).all()
    coverage = expected_coverage(log_prob(draws), log_prob(theta), generator=generator)
    assert coverage.ks < 1e-6
    assert (sign * (coverage.levels - coverage.coverage) > 2 * coverage.standard_error)[2:-2].all()
    assert sign * coverage.excess < -0.05


def test_coverage_is_what_theory_says_for_a_wrong_width(generator):
    """The region of a normal half as wide as the truth at level c reaches z/2 of the truth's deviations."""
    theta = torch.randn(4000, generator=generator)
    draws = 0.5 * torch.randn(999, 4000, generator=generator)
    narrow = torch.distributions.Normal(0.0, 0.5)
    levels = torch.tensor([0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
    found = expected_coverage(narrow.log_prob(draws), narrow.log_prob(theta), levels=levels, generator=generator)
    reach = scipy.stats.norm.ppf(0.5 + levels / 2) / 2
    truth = torch.as_tensor(2 * scipy.stats.norm.cdf(reach) - 1)
    assert ((found.coverage - truth).abs() < 4.5 * (truth * (1 - truth) / 4000).sqrt() + 2e-3).all()


def test_shifts_are_found(generator):
    draws, theta, _ = joint(generator, shift=0.3)
    found = simulation_based_calibration(draws, theta, generator=generator)
    assert (found.bias < -5 / math.sqrt(12 * SIZE)).all()  # draws too large, so true values rank low
    assert tarp(draws, theta, generator=generator).ks < 1e-3


def test_tarp_sees_what_single_features_do_not(generator):
    """Right marginals, wrong dependence: features drawn apart from each other."""
    shared = torch.randn(SIZE, 1, generator=generator)
    theta = shared.expand(SIZE, 2) + 0.1 * torch.randn(SIZE, 2, generator=generator)
    draws = math.sqrt(1.01) * torch.randn(DRAWS, SIZE, 2, generator=generator)
    assert (simulation_based_calibration(draws, theta, generator=generator).ks > 1e-4).all()
    low = torch.tensor([-3.0, 3.0]).expand(SIZE, 2)  # a corner that the truth never comes near
    assert tarp(draws, theta, references=low, generator=generator).ks < 1e-6


def test_bad_input_is_refused():
    samples, theta = torch.zeros(9, 20, 2), torch.zeros(20, 2)
    with pytest.raises(ValueError, match=r"samples of shape \[9, 20, 2\], observed of shape \[20, 3\].*one more lead"):
        ranks(samples, torch.zeros(20, 3))
    with pytest.raises(ValueError, match=r"\[S, \.\.\.\]"):
        ranks(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(ValueError, match="40 values are NaN"):
        pit(samples, theta * math.nan)
    with pytest.raises(ValueError, match=r"simulation_based_calibration.*\[S, N, D\]"):
        simulation_based_calibration(samples[0], theta[0])
    with pytest.raises(ValueError, match="5 data sets are too few"):
        simulation_based_calibration(samples[:, :5], theta[:5])
    for bins in (1, 11):
        with pytest.raises(ValueError, match=f"bins={bins}.*9 draws take 10 values"):
            simulation_based_calibration(samples, theta, bins=bins)
    with pytest.raises(ValueError, match=r"expected_coverage.*\[S, N\]"):
        expected_coverage(samples, theta)
    with pytest.raises(ValueError, match="between 0 and 1"):
        expected_coverage(samples[..., 0], theta[:, 0], levels=torch.tensor([0.5, 95.0]))
    with pytest.raises(ValueError, match=r"features \[0, 1\] of the parameters are constant"):
        tarp(samples, theta)
    with pytest.raises(ValueError, match=r"tarp\(samples of shape \[20, 2\]"):
        tarp(samples[0], theta)
    spread = torch.arange(40.0).reshape(20, 2)
    for bad in (math.inf, math.nan):
        holed = torch.where(spread == 7, bad, spread)
        with pytest.raises(ValueError, match=r"tarp.*NaN"):
            tarp(samples, holed)
        with pytest.raises(ValueError, match=r"tarp\(references\): 1 values are NaN or infinite"):
            tarp(samples, spread, references=holed)
    with pytest.raises(ValueError, match=r"tarp\(parameters\): 1 values"):
        tarp(samples, torch.where(spread == 7, -math.inf, spread))
    with pytest.raises(ValueError, match=r"one point per data set; pass \[20, 2\]"):
        tarp(samples, torch.arange(40.0).reshape(20, 2), references=torch.zeros(2))


def test_pictures_are_written_for_any_number_of_features(tmp_path, generator):
    u = torch.rand(200, 5, generator=generator)
    for name, given, curves in (
        ("all", u, {"flow": u[:, 0], "other": u[:50, 1]}),
        ("one", u[:, 0], None),
        ("curves", None, {"flow": u[:, 0]}),
        ("few", u[:3].double(), None),
    ):
        path = tmp_path / "new" / f"{name}.png"
        calibration(given, path, coverage=curves, title=name)
        assert path.stat().st_size > 5_000


def test_pictures_of_other_things_are_refused(tmp_path):
    path, u = tmp_path / "a.png", torch.rand(20, 2)
    for given, options, message in (
        (None, {}, "no values were given"),
        (u[:, :0], {}, r"\[N, D\]"),
        (u * 99, {}, "not ranks or samples"),
        (u * math.nan, {}, "not ranks or samples"),
        (u, {"names": ["one"]}, "1 names for 2 features"),
        (u, {"bins": 1}, "bins >= 2"),
        (u, {"level": 99}, "0 < level < 1"),
        (None, {"coverage": {"flow": u}}, r"coverage\['flow'\] of shape \[20, 2\].*\[N\]"),
    ):
        with pytest.raises(ValueError, match=message):
            calibration(given, path, **options)
    assert not path.exists()
