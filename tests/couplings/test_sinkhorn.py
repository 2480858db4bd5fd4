import math
import re
import warnings

import numpy
import ot
import pytest
import torch

from cflow.couplings import ConvergenceWarning, OptimalTransport, Sinkhorn, entropic

TIGHT = {"tolerance": 1e-10, "max_iterations": 50_000}


def samples(count, dimension, generator, spread=1.5, dtype=torch.float64):
    x0 = torch.randn(count, dimension, generator=generator, dtype=dtype)
    return x0, spread * torch.randn(count, dimension, generator=generator, dtype=dtype) + 1


def marginal_errors(plan):
    rows, columns = plan.shape
    return float((plan.sum(1) - 1 / rows).abs().sum()), float((plan.sum(0) - 1 / columns).abs().sum())


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("annealing", [None, 0.5, 0.25])
def test_the_plan_is_pots(epsilon, annealing, generator):
    x0, x1 = samples(40, 2, generator)
    x1 = x1[:30]
    found = Sinkhorn(epsilon, relative=False, annealing=annealing, **TIGHT).plan(x0, x1)
    cost = torch.cdist(x0, x1).square()
    masses = numpy.full(40, 1 / 40), numpy.full(30, 1 / 30)
    settings = {"method": "sinkhorn_log", "numItermax": 50_000, "stopThr": 1e-12}
    other = torch.from_numpy(ot.sinkhorn(*masses, cost.numpy(), epsilon, **settings))
    assert found.converged
    assert (found.plan - other).abs().sum() < 1e-8
    assert found.cost == pytest.approx(float((other * cost).sum()), rel=1e-7)
    assert found.entropy == pytest.approx(-float(torch.special.xlogy(other, other).sum()), rel=1e-7)
    assert found.mass == pytest.approx(1)


def test_the_bridge_between_gaussians_has_its_closed_form(generator):
    # From N(0, 1) to N(0, 1) by Brownian motion of scale s, the bridge's covariance is sqrt(1 + s^4/4) - s^2/2.
    sigma, count = 0.8, 1500
    quantiles = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]
    x = quantiles / quantiles.std(correction=0)
    plan = Sinkhorn(2 * sigma**2, relative=False, tolerance=1e-8).plan(x, x)
    covariance = float(x[:, 0] @ plan.plan @ x[:, 0])
    assert covariance == pytest.approx(math.sqrt(1 + sigma**4 / 4) - sigma**2 / 2, abs=2e-3)


@pytest.mark.parametrize("epsilon", [0.05, 0.002, 5e-4])
@pytest.mark.parametrize(("dimension", "spread"), [(2, 1.0), (20, 5.0), (300, 0.5)])
def test_marginals_hold_where_others_underflow(epsilon, dimension, spread, generator):
    x0, x1 = samples(128, dimension, generator, spread, torch.float32)
    plan = Sinkhorn(epsilon).plan(x0, x1)
    assert plan.converged
    assert plan.plan.isfinite().all()
    rows, columns = marginal_errors(plan.plan)
    assert rows == pytest.approx(plan.error, abs=1e-12)
    assert rows <= 1e-3
    assert columns < 1e-12
    independent = (x0[:, None] - x1).square().sum(2).mean()
    assert plan.cost < float(independent)


@pytest.mark.parametrize("dimension", [2, 20])
def test_a_tiny_epsilon_tends_to_the_permutation(dimension, generator):
    x0, x1 = samples(100, dimension, generator, 5.0)
    plan = Sinkhorn(2e-5, max_iterations=20_000, tolerance=1e-2).plan(x0, x1)
    best = OptimalTransport().indices(x0, x1)
    assert plan.plan.argmax(0).eq(best).float().mean() > 0.8
    optimum = float((x0[best] - x1).square().sum(1).mean())
    assert optimum * (1 - 1e-2) <= plan.cost <= optimum * (1 + 1e-2)
    assert plan.entropy == pytest.approx(math.log(100), rel=0.05)


@pytest.mark.parametrize("coupling", [Sinkhorn(), Sinkhorn(0.5, relative=False)])
def test_outliers_and_duplicates_break_nothing(coupling, generator):
    x0, x1 = samples(80, 2, generator)
    x1[10:50] = x1[10]
    x0[:30] = x0[0]
    plan = coupling.plan(x0, x1)
    assert plan.converged
    assert max(marginal_errors(plan.plan)) <= 1e-3
    x1[3], x0[5] = 1e6, -1e6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        y0, y1, _ = coupling(x0, x1, generator=generator)
    plan = coupling.plan(x0, x1)
    assert plan.plan.isfinite().all()
    assert marginal_errors(plan.plan)[1] < 1e-12
    assert y0.isfinite().all()
    assert torch.equal(y1, x1)


def test_equal_points_give_the_independent_plan():
    plan = Sinkhorn().plan(torch.ones(6, 2), torch.ones(6, 2))
    torch.testing.assert_close(plan.plan, torch.full((6, 6), 1 / 36, dtype=torch.float64))
    assert plan.entropy == pytest.approx(2 * math.log(6))
    assert plan.cost == pytest.approx(0)


def test_moving_and_rescaling_the_data_changes_nothing(generator):
    x0, x1 = samples(50, 3, generator)
    plan = Sinkhorn(tolerance=1e-9).plan(x0, x1)
    for scale, shift in ((1e-6, 0.0), (1e6, 0.0), (1.0, 1e3), (1.0, -50.0)):
        other = Sinkhorn(tolerance=1e-9).plan(scale * x0, scale * x1 + shift)
        assert (other.plan - plan.plan).abs().sum() < 1e-6
    mean = (x0 + x1.mean(0) - x0.mean(0) - x1[:, None]).square().sum(2).mean()
    assert plan.epsilon == pytest.approx(0.05 * float(mean), rel=1e-9)


def test_scalings_that_grow_are_absorbed(generator, monkeypatch):
    x0, x1 = samples(60, 2, generator)
    coupling = Sinkhorn(0.02, tolerance=1e-6, max_iterations=20_000)
    expected = coupling.plan(x0, x1)
    monkeypatch.setattr(entropic, "ABSORB_AT", 0.01)
    often = coupling.plan(x0, x1)
    assert (often.plan - expected.plan).abs().sum() < 1e-3
    monkeypatch.setattr(entropic, "RELAXATION", 1.0)
    plain = coupling.plan(x0, x1)
    assert (plain.plan - expected.plan).abs().sum() < 1e-3
    assert plain.iterations > 1.5 * expected.iterations


def test_overrelaxation_that_diverges_is_given_up(generator, monkeypatch):
    x0, x1 = samples(60, 2, generator)
    monkeypatch.setattr(entropic, "RELAXATION", 2.5)
    assert Sinkhorn(0.01).plan(x0, x1).converged


def test_pairs_follow_the_plan_and_keep_x1(generator):
    x0, x1 = samples(8, 2, generator)
    coupling = Sinkhorn(0.5)
    plan = coupling.plan(x0, x1).plan
    counts, rounds = torch.zeros(8, 8, dtype=torch.float64), 1000
    for _ in range(rounds):
        y0, y1, label = coupling(x0, x1, torch.arange(8), generator=generator)
        assert y1 is x1
        assert torch.equal(label, torch.arange(8))
        row = (y0[:, None] == x0).all(2).int().argmax(1)
        counts[row, torch.arange(8)] += 1
    share = 8 * plan
    # 8,000 draws in 64 cells: no cell is off by five deviations but once in 20,000 seeds.
    assert ((counts / rounds - share).abs() < 5 * (share * (1 - share) / rounds).sqrt() + 1e-4).all()


def test_columns_are_drawn_from_where_their_mass_is():
    plan = torch.zeros(4, 3, dtype=torch.float64)
    plan[2, 0], plan[0, 1], plan[3, 2] = 1.0, 1e-300, 0.5
    for seed in range(20):
        rows = entropic.draw_rows(plan, generator=torch.Generator().manual_seed(seed))
        assert rows.tolist() == [2, 0, 3]
        columns = entropic.draw_columns(plan, 30, torch.Generator().manual_seed(seed))
        assert columns.bincount(minlength=3).tolist() == [20, 0, 10]


def test_what_has_not_converged_says_so(generator):
    x0, x1 = samples(100, 2, generator)
    coupling = Sinkhorn(1e-4, max_iterations=30)
    plan = coupling.plan(x0, x1)
    assert not plan.converged
    assert plan.error > 1e-3
    assert plan.error == pytest.approx(marginal_errors(plan.plan)[0], rel=1e-6)
    message = r"after \d+ iterations the x0 marginal has an error of .*raise epsilon"
    with pytest.warns(ConvergenceWarning, match=message) as seen:
        _, y1, _ = coupling(x0, x1, generator=generator)
    assert torch.equal(y1, x1)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sinkhorn()(x0, x1, generator=generator)


def test_settings_out_of_range_are_refused(generator):
    for name, values in {
        "epsilon": (0.0, -1.0, math.inf, math.nan),
        "tolerance": (0.0, math.nan),
        "max_iterations": (0, 2.5, True),
        "annealing": (0.0, 1.0, -0.5),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"Sinkhorn\({name}="):
                Sinkhorn(**{name: value})
    x0, x1 = samples(4, 2, generator)
    for coupling in (Sinkhorn(1e-320, relative=False), Sinkhorn(1e-16), Sinkhorn(1e-15, relative=False)):
        with pytest.raises(ValueError, match=r"next to squared distances.*raise epsilon above.*OptimalTransport"):
            coupling(x0, x1)
    for relative in (True, False):  # the least epsilon in the message is the least one
        with pytest.raises(ValueError, match="raise epsilon above") as refused:
            Sinkhorn(1e-16, relative=relative).plan(100 * x0, 100 * x1)
        least = float(re.search(r"above ([-+.e\d]+),", str(refused.value)).group(1))
        Sinkhorn(1.1 * least, relative=relative, max_iterations=10).plan(100 * x0, 100 * x1)
        with pytest.raises(ValueError, match="raise epsilon above"):
            Sinkhorn(0.9 * least, relative=relative).plan(100 * x0, 100 * x1)
    for empty in ((x0[:0], x1), (x0, x1[:0])):
        with pytest.raises(ValueError, match=r"Sinkhorn.plan\(x0 of shape .*at least one row of each"):
            Sinkhorn().plan(*empty)
