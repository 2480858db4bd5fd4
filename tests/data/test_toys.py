import math

import numpy as np
import pytest
import scipy.stats
import torch

from cflow.data import toys

DENSE = list(toys.LOG_PROBS)


@pytest.mark.parametrize("name", toys.NAMES)
def test_samples_follow_generator_and_dtype(name):
    draw = lambda seed, **kwargs: toys.sample(name, 100, generator=torch.Generator().manual_seed(seed), **kwargs)
    assert draw(0).shape == (100, 2)
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert draw(0, dtype=torch.float64).dtype == torch.float64
    assert toys.sample(name, 0).shape == (0, 2)
    state = torch.get_rng_state()
    draw(0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", DENSE)
def test_density_integrates_to_one_and_has_the_samples_moments(name, generator):
    # An even grid is exact to rounding for smooth densities that vanish at its ends and are wider than its step; for
    # the checkerboard its points lie at the middle of equal parts of the cells.
    count, edge = {"checkerboard": (80, 4.0), "spirals": (80, 4.0)}.get(name, (160, 8.0))
    side = (torch.arange(count, dtype=torch.float64) + 0.5) / count * 2 * edge - edge
    grid = torch.cartesian_prod(side, side)
    log_prob = torch.cat([toys.log_prob(name, part) for part in grid.split(1_000)])
    mass = log_prob.exp() * (2 * edge / count) ** 2
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-6)
    x = toys.sample(name, 20_000, generator=generator, dtype=torch.float64)
    for moment in (lambda v: v, lambda v: v.square(), lambda v: v.prod(-1, keepdim=True), lambda v: (2 * v).cos()):
        values = moment(x)
        expected = (mass[:, None] * moment(grid)).sum(0)
        # 7 comparisons for each of 5 names; 4.5 standard errors: fails once in 4,000 seeds
        assert ((values.mean(0) - expected).abs() < 4.5 * values.std(0) / math.sqrt(len(x)) + 1e-3).all()


def grid_test(name, generator, **options):
    """Compares counts of samples in boxes with the density's masses, by chi square."""
    edge, boxes, fine = {"checkerboard": (4.0, 16, 8), "spirals": (4.0, 16, 5)}.get(name, (8.0, 16, 8))
    side = (torch.arange(boxes * fine, dtype=torch.float64) + 0.5) / (boxes * fine) * 2 * edge - edge
    grid = torch.cartesian_prod(side, side)
    log_prob = torch.cat([toys.log_prob(name, part, **options) for part in grid.split(1_000)])
    mass = log_prob.exp().reshape(boxes, fine, boxes, fine).sum((1, 3)).flatten() * (2 * edge / (boxes * fine)) ** 2
    x = toys.sample(name, 40_000, generator=generator, dtype=torch.float64, **options)
    box = ((x + edge) / (2 * edge) * boxes).floor().long()
    counts = torch.bincount(box[:, 0] * boxes + box[:, 1], minlength=boxes * boxes)
    expected = mass * len(x)
    common = expected > 20
    observed = np.append(counts[common].numpy(), counts[~common].sum().item())
    expected = np.append(expected[common].numpy(), expected[~common].sum().item())
    if expected[-1] < 5:
        observed, expected = observed[:-1], expected[:-1]
    return scipy.stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue


@pytest.mark.parametrize("name", DENSE)
def test_samples_follow_the_density(name, generator):
    assert grid_test(name, generator) > 1e-4  # fails once in 10,000 seeds


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("eight_gaussians", {"noise": 0.1**0.25, "radius": 4.0}),
        ("moons", {"noise": 0.1, "scale": 2.0, "shift": 1.0}),
        ("s_curve", {"noise": 0.3, "scale": 1.0}),
        ("checkerboard", {"cells": 6, "scale": 1.0}),
        ("spirals", {"noise": 1.0, "scale": 0.2}),
    ],
)
def test_options_mean_the_same_to_sampler_and_density(name, options, generator):
    assert grid_test(name, generator, **options) > 1e-4


def test_moons_are_those_of_scikit_learn(generator):
    from sklearn.datasets import make_moons

    theirs, _ = make_moons(20_000, noise=0.1, random_state=0)
    ours = toys.moons(20_000, noise=0.1, scale=1.0, shift=0.0, generator=generator).numpy()
    for direction in ((1.0, 0.0), (0.0, 1.0), (0.6, 0.8)):
        assert scipy.stats.ks_2samp(theirs @ direction, ours @ direction).pvalue > 1e-4


def test_s_curve_is_that_of_scikit_learn(generator):
    from sklearn.datasets import make_s_curve

    theirs = make_s_curve(20_000, noise=0.1, random_state=0)[0][:, [0, 2]]
    ours = toys.s_curve(20_000, noise=0.1, scale=1.0, generator=generator).numpy()
    for direction in ((1.0, 0.0), (0.0, 1.0), (0.6, 0.8)):
        assert scipy.stats.ks_2samp(theirs @ direction, ours @ direction).pvalue > 1e-4


def test_eight_gaussians_has_the_closed_form_of_a_mixture():
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 4
    angles = np.arange(8) * math.pi / 4
    density = sum(
        scipy.stats.multivariate_normal([5 * math.cos(a), 5 * math.sin(a)], 0.1 * np.eye(2)).pdf(x.numpy()) / 8
        for a in angles
    )
    assert np.allclose(toys.eight_gaussians_log_prob(x).exp().numpy(), density, rtol=1e-10, atol=1e-300)


def test_quadrature_is_at_rounding_error():
    # Far denser quadrature along the curve, by the midpoint rule with Richardson extrapolation.
    x = torch.tensor([[0.2, 0.4], [-4.0, -1.0], [2.0, -2.5]], dtype=torch.float64)

    def midpoint(count):
        u = (np.arange(count) + 0.5) / count
        arc = np.stack([np.cos(np.pi * u), np.sin(np.pi * u)], -1)
        curve = np.concatenate([arc, [1.0, 0.5] - arc]) * 3 - 1
        squared = ((x.numpy()[:, None] - curve) ** 2).sum(-1)
        return np.exp(-squared / (2 * 0.36)).mean(-1) / (2 * np.pi * 0.36)

    reference = (4 * midpoint(40_000) - midpoint(20_000)) / 3
    assert np.allclose(toys.moons_log_prob(x, noise=0.2).exp().numpy(), reference, rtol=1e-10)


def test_the_arms_of_a_pinwheel_turn_with_the_exponential_of_the_radius(generator):
    options = {"arms": 7, "radial_noise": 0.3, "scale": 2.0, "generator": generator, "dtype": torch.float64}
    x = toys.pinwheel(3_000, tangential_noise=0.0, rate=0.4, **options) / 2
    arm = (torch.atan2(x[:, 1], x[:, 0]) - 0.4 * x.norm(dim=1).exp()) * 7 / (2 * math.pi)
    outward = x.norm(dim=1) < 2.2  # a radius below zero, once in a thousand rows, points the other way
    on_an_arm = (arm - arm.round()).abs() < 1e-9
    assert on_an_arm[outward].double().mean() > 0.99
    assert len(torch.unique(arm[on_an_arm].round() % 7)) == 7
    across = toys.pinwheel(5_000, tangential_noise=0.2, rate=0.0, **{**options, "arms": 1})[:, 1] / 2
    assert scipy.stats.kstest(across.numpy(), scipy.stats.norm(0.0, 0.2).cdf).pvalue > 1e-4  # once in 10,000 seeds


def test_pinwheel_has_its_arms(generator):
    x = toys.pinwheel(5_000, radial_noise=0.2, tangential_noise=0.0, rate=0.0, scale=1.0, generator=generator)
    turn = torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi / 5)
    assert torch.allclose(turn, turn.round(), atol=1e-3)
    counts = torch.bincount(turn.round().long() % 5)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert scipy.stats.kstest(x.norm(dim=-1).numpy(), scipy.stats.norm(1, 0.2).cdf).pvalue > 1e-4


def test_log_prob_takes_any_batch_and_has_a_gradient():
    for name in DENSE:
        assert toys.log_prob(name, torch.zeros(2, 3, 2)).shape == (2, 3)
        assert toys.log_prob(name, torch.zeros(2)).shape == ()
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(toys.moons_log_prob, (x,))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="checkerboard, eight_gaussians, moons"):
        toys.sample("moon", 3)
    with pytest.raises(ValueError, match="choose one of checkerboard"):
        toys.log_prob("pinwheel", torch.zeros(3, 2))
    with pytest.raises(ValueError, match="points have 2 coordinates"):
        toys.moons_log_prob(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="without noise"):
        toys.s_curve_log_prob(torch.zeros(4, 2), noise=0.0)
    with pytest.raises(ValueError, match="pass at least"):
        toys.moons_log_prob(torch.zeros(4, 2), noise=1e-6)
    with pytest.raises(ValueError, match="even and positive"):
        toys.checkerboard(4, cells=3)
    with pytest.raises(ValueError, match="may be negative"):
        toys.spirals(-1)
    with pytest.raises(ValueError, match="scale=0"):
        toys.moons(3, scale=0.0)
