import math

import numpy
import ot
import pytest
import torch

from cflow.couplings import Sinkhorn, Unbalanced


def samples(count, dimension, generator, spread=1.5):
    x0 = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    return x0, spread * torch.randn(count, dimension, generator=generator, dtype=torch.float64) + 1


TIGHT = {"relative": False, "tolerance": 1e-11, "max_iterations": 50_000}


@pytest.mark.parametrize("epsilon", [0.2, 2.0])
@pytest.mark.parametrize("tau", [0.3, 1.0, 10.0])
def test_the_plan_is_pots(epsilon, tau, generator):
    x0, x1 = samples(40, 2, generator)
    x1 = x1[:30]
    found = Unbalanced(tau, epsilon, **TIGHT).plan(x0, x1)
    cost = torch.cdist(x0, x1).square()
    settings = {"reg_type": "kl", "numItermax": 100_000, "stopThr": 1e-13}
    masses = numpy.full(40, 1 / 40), numpy.full(30, 1 / 30)
    other = torch.from_numpy(ot.unbalanced.sinkhorn_unbalanced(*masses, cost.numpy(), epsilon, tau, **settings))
    assert found.converged
    assert (found.plan - other).abs().sum() < 1e-8
    assert found.mass == pytest.approx(float(other.sum()), abs=1e-8)
    assert found.cost == pytest.approx(float((other * cost).sum() / other.sum()), rel=1e-7)


def test_a_small_epsilon_is_pots_plan_without_regularisation(generator):
    x0, x1 = samples(25, 2, generator)
    found = Unbalanced(1.0, 2e-3, relative=False, max_iterations=50_000).plan(x0, x1)
    cost = torch.cdist(x0, x1).square().numpy()
    masses = numpy.full(25, 1 / 25)
    other = ot.unbalanced.mm_unbalanced(masses, masses, cost, 1.0, div="kl", numItermax=20_000, stopThr=1e-12)
    assert found.mass == pytest.approx(other.sum(), abs=2e-3)
    assert found.cost * found.mass == pytest.approx((other * cost).sum(), abs=2e-3)


def test_a_single_pair_has_its_closed_form():
    # One row each at squared distance c: m minimises m c + (eps + 2 tau)(m log m - m).
    tau, epsilon, distance = 0.7, 0.2, 1.9
    plan = Unbalanced(tau, epsilon, **TIGHT).plan(torch.zeros(1, 1), torch.full((1, 1), math.sqrt(distance)))
    assert plan.mass == pytest.approx(math.exp(-distance / (epsilon + 2 * tau)), rel=1e-6)


def test_a_large_tau_is_balanced_transport(generator):
    x0, x1 = samples(40, 2, generator)
    free = Unbalanced(1e4, 1.0, relative=False, tolerance=1e-5, max_iterations=20_000).plan(x0, x1)
    fixed = Sinkhorn(1.0, **TIGHT).plan(x0, x1)
    assert free.mass == pytest.approx(1, abs=1e-3)
    assert (free.plan - fixed.plan).abs().sum() < 1e-3


@pytest.mark.parametrize("distance", [1e2, 1e6, 1e9])
@pytest.mark.parametrize("settings", [{}, {"epsilon": 0.005}, {"tau": 1.0, "epsilon": 0.1, "relative": False}])
def test_outliers_are_left_out_whatever_their_distance(distance, settings, generator):
    x0 = torch.randn(80, 2, generator=generator)
    x1 = torch.randn(80, 2, generator=generator)
    x0[:4], x1[70:] = distance, -distance
    coupling = Unbalanced(**settings)
    plan = coupling.plan(x0, x1)
    assert plan.converged
    assert plan.plan.isfinite().all()
    assert plan.plan[:4].sum() + plan.plan[:, 70:].sum() < 1e-9
    assert 0.3 < plan.mass < 0.95
    y0, y1, label = coupling(x0, x1, torch.arange(80), generator=generator)
    assert torch.equal(x1[label], y1)
    assert label.max() < 70
    assert (y0 - y1).square().sum(1).mean() < (x0[4:70] - x1[4:70]).square().sum(1).mean()


def test_pairs_follow_the_plan_with_little_variance(generator):
    x0, x1 = samples(12, 2, generator)
    coupling = Unbalanced(0.3, 0.3)
    plan = coupling.plan(x0, x1)
    share = plan.plan / plan.plan.sum()
    rounds = 1000
    counts = torch.zeros(12, 12, dtype=torch.float64)
    first = torch.zeros(12)
    for _ in range(rounds):
        y0, _, column = coupling(x0, x1, torch.arange(12), generator=generator)
        row = (y0[:, None] == x0).all(2).int().argmax(1)
        times = torch.bincount(column, minlength=12)
        expected = 12 * share.sum(0)
        # Systematic resampling: every column comes as often as expected, rounded up or down.
        assert ((times - expected).abs() < 1 + 1e-9).all()
        counts.index_put_((row, column), torch.ones(12, dtype=torch.float64), accumulate=True)
        first[column[0]] += 1
    # 12,000 draws in 144 cells: no cell is off by five deviations but once in 10,000 seeds.
    deviation = (share * (1 - share) / (12 * rounds)).sqrt() + 1e-5
    assert ((counts / (12 * rounds) - share).abs() < 5 * deviation).all()
    # The order is random: the first pair has the law of all (chi-square, 11 degrees: above 38 once in 10,000 seeds).
    assert ((first - rounds * share.sum(0)).square() / (rounds * share.sum(0))).sum() < 38


def test_neither_scale_changes_the_plan(generator):
    x0, x1 = samples(40, 3, generator)
    plan = Unbalanced(tolerance=1e-9).plan(x0, x1)
    for scale in (1e-6, 1e6):
        other = Unbalanced(tolerance=1e-9).plan(scale * x0, scale * x1)
        assert other.mass == pytest.approx(plan.mass, rel=1e-6)
        assert (other.plan - plan.plan).abs().sum() < 1e-6


def test_a_plan_without_mass_is_an_error(generator):
    x0, x1 = samples(30, 2, generator)
    for tau in (1e-3, 1e-12, 1.0):
        with pytest.raises(ValueError, match=r"moves .* of the mass, since the median squared .*; raise tau"):
            Unbalanced(tau, 0.05, relative=False)(x0, x1 + 100)
    with pytest.raises(ValueError, match="raise tau"):
        Unbalanced(1e-3)(x0, x1 + 100)


def test_where_most_pairs_coincide_the_scale_is_the_mean():
    x0, x1 = torch.zeros(20, 2), torch.zeros(20, 2)
    assert Unbalanced().plan(x0, x1).mass == pytest.approx(1)
    x1[0] = 3.0
    plan = Unbalanced().plan(x0, x1)
    assert plan.converged
    assert plan.plan[:, 0].sum() < 0.1 / 20


def test_settings_out_of_range_are_refused():
    for tau in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"Unbalanced\(tau=.*positive number.*Sinkhorn"):
            Unbalanced(tau)
    with pytest.raises(ValueError, match=r"Unbalanced\(epsilon=0.0\)"):
        Unbalanced(epsilon=0.0)
    with pytest.raises(ValueError, match=r"epsilon=1e-17, relative=False\): float64 does not resolve it"):
        Unbalanced(1.0, 1e-17, relative=False)(torch.zeros(3, 1), torch.arange(3.0)[:, None])
