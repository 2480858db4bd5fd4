"""The Dirichlet path: its points, the speed C against SciPy, the continuity equation by simulation, and densities."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

import cflow
from cflow import bases, fields, objectives, paths, solvers, times
from cflow.paths.dirichlet import speed_of_corner
from cflow.testing import RelaxedTokenField, check_base

TIGHT = solvers.Dopri5(rtol=1e-8, atol=1e-8)


def corners(count, size, token=0):
    return torch.nn.functional.one_hot(torch.full((count,), token), size).double()


def speeds(x, a, size):
    """Computes C at many x: entries of an event are independent, so all x fit into vectors of this size."""
    x = torch.as_tensor(x, dtype=torch.float64)
    return speed_of_corner(x[:, None].expand(-1, size), torch.tensor(float(a), dtype=torch.float64))[:, 0]


@pytest.mark.parametrize("size", [2, 3, 10, 40])
@pytest.mark.parametrize("a", [0.3, 2.0, 8.0])
def test_the_speed_is_that_of_the_incomplete_beta_function(size, a):
    """C = -B(a + 1, K - 1) dI_x(a + 1, K - 1) / da / ((1 - x)^(K - 1) x^a), by central differences."""
    x, step = np.array([0.02, 0.05, 0.1, 0.2, 0.4]), 1e-5 * (1 + a)
    slope = (special.betainc(a + 1 + step, size - 1, x) - special.betainc(a + 1 - step, size - 1, x)) / (2 * step)
    expected = -slope * special.beta(a + 1, size - 1) / ((1 - x) ** (size - 1) * x**a)
    # Differences of two numbers near one lose digits: those of the two values over the step.
    lost = 1e-15 / step * special.beta(a + 1, size - 1) / ((1 - x) ** (size - 1) * x**a)
    assert (np.abs(speeds(x, a, size).numpy() - expected) < 1e-7 * expected + lost).all()


@pytest.mark.parametrize("size", [2, 3, 10, 40])
@pytest.mark.parametrize("a", [0.0, 0.3, 2.0, 8.0])
def test_the_speed_is_accurate_up_to_both_ends(size, a):
    """The same integral by adaptive quadrature, in a form that is scaled at the end in question."""
    bound = special.digamma(a + 1) - special.digamma(a + size)
    low, high = [1e-12, 1e-6, 1e-3, 0.9 * math.exp(bound)], [1.1 * math.exp(bound), 0.9, 0.999, 1 - 1e-6]
    high = [x for x in high if math.exp(bound) < x < 1]
    options = {"epsabs": 0, "epsrel": 1e-11, "limit": 400}
    for x, found in zip(low, speeds(low, a, size)):
        part = lambda v, x=x: v**a * ((1 - x * v) / (1 - x)) ** (size - 2) * (bound - math.log(x) - math.log(v))
        assert abs(found / (x / (1 - x) * integrate.quad(part, 0, 1, **options)[0]) - 1) < 1e-8
    for x, found in zip(high, speeds(high, a, size)):
        part = lambda v, x=x: v ** (size - 2) * ((1 - (1 - x) * v) / x) ** a * (math.log1p(-(1 - x) * v) - bound)
        assert abs(found / integrate.quad(part, 0, 1, **options)[0] - 1) < 1e-8
    ends = speeds([0.0, 1.0, -1e-3, 1 + 1e-3], a, size)
    assert torch.allclose(ends, torch.tensor([0.0, -bound / (size - 1)] * 2, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("size", [2, 4, 40])
def test_float32_takes_fewer_nodes_and_keeps_its_digits(size):
    x = torch.cat([torch.logspace(-8, -0.01, 500), 1 - torch.logspace(-5, -1, 100)])[:, None].expand(-1, size)
    for a in (0.0, 0.5, 8.0):
        exact = speed_of_corner(x.double(), torch.tensor(a))
        assert ((speed_of_corner(x, torch.tensor(a)) - exact) / exact).abs().max() < 1e-5


def test_gradients_of_the_speed_are_finite_and_right():
    x = torch.tensor([0.0, 1e-9, 0.05, 0.2, 0.7, 1.0], dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(speed_of_corner(x, torch.tensor(3.0)).sum(), x)
    assert slope.isfinite().all()
    inside = x.detach()[2:5].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: speed_of_corner(x, torch.tensor(3.0, dtype=torch.float64)), inside)


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("t", [0.0, 0.1, 1.0])
def test_points_have_the_dirichlet_distribution(size, t, generator):
    path, count = paths.Dirichlet(6.0), 20_000
    x0 = bases.Simplex(size).double().sample((count,), generator=generator)
    sample = path.sample(x0, corners(count, size), torch.full((count,), t).double(), generator=generator)
    assert torch.allclose(sample.xt.sum(1), torch.ones(count).double())
    a = 6.0 * t
    # A correct sampler fails once in 10,000 seeds; the seed is fixed.
    assert stats.kstest(sample.xt[:, 0], stats.beta(1 + a, size - 1).cdf).pvalue > 1e-4
    assert stats.kstest(sample.xt[:, 1], stats.beta(1, size - 1 + a).cdf).pvalue > 1e-4


def test_a_point_moves_smoothly_with_time_for_fixed_noise(generator):
    path, x0 = paths.Dirichlet(), bases.Simplex(4).double().sample((1,), generator=generator).expand(1001, 4)
    noise = path.draw(x0[:1], generator).expand(1001, 4)
    x = path.sample(x0, corners(1001, 4), torch.linspace(0, 1, 1001).double(), noise=noise).xt
    assert torch.equal(x[0], x0[0])
    assert (x.diff(dim=0)[:, 0] >= 0).all()
    assert x[-1, 0] > x[0, 0] + 0.3
    assert x.diff(dim=0).abs().max() < 0.05


@pytest.mark.parametrize("size", [2, 3, 20])
def test_the_field_of_one_token_moves_uniform_points_to_its_dirichlet_distribution(size, generator):
    """The continuity equation: points that follow the velocity have the marginals of the path at every time."""
    path = paths.Dirichlet()
    logits = torch.where(torch.arange(size) == 0, 0.0, -1e4).double()
    x = bases.Simplex(size).double().sample((4000,), generator=generator)
    states = TIGHT.solve(
        lambda t, x: path.velocity(logits.expand_as(x), x, t), x, 0.0, 1.0, at=[0.1, 0.5, 1.0]
    ).trajectory  # fmt: skip
    for t, state in zip((0.1, 0.5, 1.0), states):
        a = 8.0 * t
        assert stats.kstest(state[:, 0], stats.beta(1 + a, size - 1).cdf).pvalue > 1e-4
        assert stats.kstest(state[:, 1], stats.beta(1, size - 1 + a).cdf).pvalue > 1e-4
        assert torch.allclose(state.sum(1), torch.ones(4000).double(), atol=1e-10)


def evidence(t, x):
    return 8.0 * t[:, None, None] * x.clamp(min=1e-300).log()


def exact_flow(probs, **options):
    field = RelaxedTokenField(probs, evidence)
    return cflow.RelaxedFlow(field, bases.Simplex(field.event_shape), path=paths.Dirichlet(), **options).double()


def test_samples_of_the_exact_flow_are_the_pairs(generator):
    flow = exact_flow(torch.tensor([[0.6, 0.0], [0.0, 0.4]], dtype=torch.float64), solver=solvers.RK4(40))
    pairs = flow.sample((5000,), generator=generator)
    assert pairs.dtype == torch.int64
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    # The standard error of the share is 0.007. At the end, a = 8, the most probable pair is not always the drawn one.
    assert abs(float((pairs[:, 0] == 0).double().mean()) - 0.6) < 0.035


@pytest.mark.parametrize("bound_time", [0.1, 0.5, 1.0])
def test_every_draw_of_the_bound_is_exact_for_independent_tokens(bound_time, generator):
    one, other = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.1, 0.2, 0.7]).double()
    flow = exact_flow(one[:, None] * other, solver=TIGHT, bound_time=bound_time)
    x = flow.field.words.repeat(5, 1)
    with torch.no_grad():
        bound = flow.log_prob(x, generator=generator)
    assert (bound - flow.field.log_probs.repeat(5)).abs().max() < 1e-5


def test_a_density_on_the_simplex_integrates_to_one():
    """The divergence of the velocity is that on the simplex, also for a network that is not exact."""
    field = fields.MLP(3, hidden=(16,))
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(0.8 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    flow = cflow.ContinuousFlow(field, bases.Simplex(3), path=paths.Dirichlet(2.0), solver=solvers.RK4(20)).double()
    nodes, weights = (torch.as_tensor(each) for each in np.polynomial.legendre.leggauss(24))
    nodes, weights = (nodes + 1) / 2, weights / 2
    # Duffy's coordinates: x = u, y = (1 - u) v.
    u, v = torch.meshgrid(nodes, nodes, indexing="ij")
    x = torch.stack([u, (1 - u) * v, (1 - u) * (1 - v)], -1).reshape(-1, 3)
    with torch.no_grad():
        density = flow.log_prob(x).exp().reshape(24, 24)
    total = (density * (1 - u) * weights[:, None] * weights).sum()
    assert abs(float(total) - 1) < 2e-3
    assert density.std() > 0.1


def test_training_takes_the_path_in_any_loop(generator):
    flow = cflow.RelaxedFlow(fields.MLP(4), bases.Simplex(4), path=paths.Dirichlet(), solver=solvers.Heun(4))
    x = torch.randint(4, (64,), generator=generator)
    objective = objectives.FlowMatching(times=times.Exponential(0.25))
    losses = [objective(flow, x, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*losses)  # the noise comes from the generator
    losses[0].mean().backward()
    assert flow.sample((3,), generator=generator).shape == (3,)
    assert flow.log_prob(x[:3], generator=generator).shape == (3,)


def test_the_simplex_is_a_base():
    check_base(bases.Simplex((2, 3)), density=False)
    base = bases.Simplex((2, 3)).double()
    x = base.sample((5,))
    assert torch.allclose(base.log_prob(x), torch.tensor(2 * math.log(2), dtype=torch.float64))
    assert (base.log_prob(x + 0.1) == -math.inf).all()
    assert (base.log_prob(torch.tensor([[[0.5, 0.7, -0.2]] * 2]).double()) == -math.inf).all()
    draws = base.sample((20_000,), generator=torch.Generator().manual_seed(0))
    assert stats.kstest(draws[:, 1, 2], stats.beta(1, 2).cdf).pvalue > 1e-4


REFUSED = {
    "maximum": (lambda: paths.Dirichlet(0.0), "pass 8.0"),
    "base": (
        lambda: cflow.ContinuousFlow(fields.MLP(3), bases.Normal(3), path=paths.Dirichlet()),
        r"use bases.Simplex\(\(\*positions, vocabulary\)\)",
    ),
    "simplex": (lambda: bases.Simplex((3, 1)), "two probabilities or more"),
    "score": (lambda: exact_flow(torch.ones(2, 2) / 4).score(0.5, torch.full((1, 2, 2), 0.5)), "ODE"),
    "bridge": (
        lambda: objectives.BridgeMatching(antithetic=True)(exact_flow(torch.ones(2, 2) / 4), torch.zeros(3, 2).long()),
        "predicts logits",
    ),
    "schedule": (lambda: exact_flow(torch.ones(2, 2) / 4).with_path(paths.Linear()), "affine"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_use_says_what_to_do(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
