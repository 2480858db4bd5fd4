"""A flow trained as a user trains it: its density integrates to one and agrees with its samples."""

import pytest
import torch

import cflow
from cflow import bases, couplings, fields, objectives, paths, solvers, training


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
