"""A flow trained as a user trains it: its density integrates to one and agrees with its samples."""

import pytest
import torch

import cflow
from cflow import bases, couplings, divergence, fields, objectives, paths, solvers, training


@pytest.fixture(scope="module")
def flow():
    data = cflow.data.toys.moons(5000, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
    training.fit(
        flow, objectives.FlowMatching(couplings.OptimalTransport()), data, steps=400, batch_size=128, lr=3e-3, seed=0
    )
    return flow.eval()


def test_the_density_integrates_to_one(flow):
    axis = torch.linspace(-10, 10, 161)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = flow.log_prob(grid, solver=solvers.RK4(steps=20)).exp()
    assert abs(float(density.sum() * (axis[1] - axis[0]) ** 2) - 1) < 1e-3


def test_log_prob_agrees_with_sample_and_log_prob(flow, generator):
    x, logp = flow.sample_and_log_prob((200,), generator=generator)
    with torch.no_grad():
        assert torch.allclose(flow.log_prob(x), logp, atol=2e-3)
        z, ladj = flow.encode(x)
        back, inverse = flow.decode(z)
    assert torch.allclose(back, x, atol=1e-3)
    assert torch.allclose(ladj, -inverse, atol=2e-3)


def test_samples_and_density_are_of_one_distribution(flow, generator):
    """The mean of log p over samples is minus the entropy, which quadrature knows as well."""
    _, logp = flow.sample_and_log_prob((2000,), generator=generator)
    axis = torch.linspace(-10, 10, 121)
    with torch.no_grad():
        grid = flow.log_prob(torch.cartesian_prod(axis, axis), solver=solvers.RK4(steps=20))
    entropy = -(grid.exp() * grid).sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(logp.mean() + entropy)) < 5 * float(logp.std()) / 2000**0.5


def moons(count, seed):
    return cflow.data.toys.moons(count, generator=torch.Generator().manual_seed(seed)) / 2.5


@pytest.fixture(scope="module")
def likely():
    """A flow trained by maximum likelihood (FFJORD), loosely; its own solver, for evaluation, is a tight one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field, solver = fields.MLP(2, hidden=(32, 32)), solvers.Dopri5(rtol=1e-6, atol=1e-6)
        flow = cflow.ContinuousFlow(field, bases.Normal(2), solver=solver)
    loose = solvers.Dopri5(rtol=1e-3, atol=1e-3, per_sample=False)
    objective = objectives.FFJORD(divergence.Analytic(), kinetic=0.01, solver=loose)
    training.fit(flow, objective, moons(5000, 0), steps=100, batch_size=128, lr=1e-2, seed=0, ema=training.EMA(0.9))
    return flow.eval()


def test_maximum_likelihood_learns_more_than_a_normal_knows(likely):
    x = moons(300, 1)
    normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())  # the best one for these very points
    with torch.no_grad():
        assert float((likely.log_prob(x) - normal.log_prob(x)).mean()) > 0.2  # nats


def test_the_density_of_maximum_likelihood_integrates_to_one(likely):
    axis = torch.linspace(-5, 5, 121)
    with torch.no_grad():
        density = likely.log_prob(torch.cartesian_prod(axis, axis), solver=solvers.RK4(steps=20)).exp()
    assert abs(float(density.sum() * (axis[1] - axis[0]) ** 2) - 1) < 1e-3


def test_a_tolerance_ten_times_tighter_moves_no_density(likely):
    x = moons(300, 1)
    with torch.no_grad():
        moved = likely.log_prob(x) - likely.log_prob(x, solver=solvers.Dopri5(rtol=1e-7, atol=1e-7))
    assert 0 < float(moved.abs().max()) < 1e-3


def test_maximum_likelihood_gives_a_bijection(likely):
    x = moons(300, 1)
    with torch.no_grad():
        z, ladj = likely.encode(x)
        back, inverse = likely.decode(z)
    assert float((back - x).abs().max()) < 1e-4
    assert torch.allclose(ladj, -inverse, atol=1e-3)
