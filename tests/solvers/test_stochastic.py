"""Stochastic solvers: exact moments of linear SDEs, weak order, costs, and what they refuse."""

import math

import pytest
import torch

import cflow
from cflow import bases, divergence, fields, guidance, paths, solvers
from cflow.solvers import EulerMaruyama, Fading, StochasticHeun
from cflow.testing import GaussianBridgeField, GaussianField

BOTH = (EulerMaruyama, StochasticHeun)
each_solver = pytest.mark.parametrize("solver", BOTH)


def stationary(t, y):
    """No velocity, and the score of a standard normal: with g^2 = 2 the Ornstein-Uhlenbeck process."""
    return torch.zeros_like(y), -y


@each_solver
def test_the_stationary_variance_is_that_of_the_scheme(solver, generator):
    """One step maps variance V to R^2 V + S^2; the fixed point is 1 + O(h) for one scheme, 1 + O(h^2) for the other."""
    h = 0.5
    r, s = (1 - h, math.sqrt(2 * h)) if solver is EulerMaruyama else (1 - h + h**2 / 2, (1 - h / 2) * math.sqrt(2 * h))
    y = torch.zeros(400_000, 1, dtype=torch.float64)
    y = solver(24, diffusion=math.sqrt(2)).solve(stationary, y, 0.0, 24 * h, generator=generator).y
    # The relative error of a variance from 400,000 draws is 0.0022; five times that is never reached by chance.
    assert abs(float(y.var()) * (1 - r**2) / s**2 - 1) < 0.011


@each_solver
@pytest.mark.parametrize("direction", [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("diffusion", [0.0, 1.0, Fading(1.5, 0.5)], ids=["ode", "constant", "fading"])
def test_every_diffusion_has_the_flows_marginals(solver, direction, diffusion, generator):
    path = paths.BrownianBridge(0.8)
    field = GaussianBridgeField(path).double()
    flow = cflow.ContinuousFlow(field, bases.Normal(1, *field.source), path=path).double()
    ends = (field.source, field.target) if direction == (0.0, 1.0) else (field.target, field.source)
    x = ends[0][0] + ends[0][1] * torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    y = flow.transport(x, *direction, solver=solver(40, diffusion=diffusion), generator=generator).y
    # Five standard errors of a mean and a deviation, and the weak error of the scheme at 40 steps.
    weak = 0.02 if solver is EulerMaruyama else 0.004
    assert abs(float(y.mean()) - ends[1][0]) < 5 * ends[1][1] / 200 + weak
    assert abs(float(y.std()) - ends[1][1]) < 5 * ends[1][1] / math.sqrt(80_000) + weak


@pytest.mark.parametrize("predict", paths.AffinePath.predictions)
def test_a_trained_velocity_gives_the_score_of_an_affine_path(predict, generator):
    path = paths.Linear(predict)
    flow = cflow.ContinuousFlow(GaussianField(path, 2, 0.7, 0.5), bases.Normal(2), path=path)
    x = flow.sample((40_000,), solver=EulerMaruyama(60, diffusion=Fading(1.0)), generator=generator)
    assert torch.allclose(x.mean(0), torch.full((2,), 0.7), atol=0.02)
    assert torch.allclose(x.std(0), torch.full((2,), 0.5), atol=0.02)


class Counting(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, t, x, context=None, *, s=None):
        self.calls += 1
        return self.inner(t, x, context)


@pytest.mark.parametrize("path", [paths.Linear(), paths.BrownianBridge()], ids=["linear", "bridge"])
@pytest.mark.parametrize(("solver", "stages"), [(EulerMaruyama, 1), (StochasticHeun, 2)])
def test_each_stage_calls_the_network_once(path, solver, stages):
    field = Counting(fields.MLP(2, outputs=path.heads))
    flow = cflow.ContinuousFlow(field, bases.Normal(2), path=path)
    solution = flow.transport(torch.zeros(3, 2), 0.0, 1.0, solver=solver(10))
    # Nine noisy steps and the last one by the ODE, which is one call.
    assert field.calls == solution.stats.nfe == 9 * stages + 1


def test_the_last_step_adds_no_noise():
    path = paths.BrownianBridge(1.0)
    still = lambda shape: torch.zeros(shape[0], 2, *shape[1:])

    class Still(torch.nn.Module):
        def forward(self, t, x, context=None, *, s=None):
            return still(x.shape)

    flow = cflow.ContinuousFlow(Still(), bases.Normal(1), path=path)
    states = flow.transport(torch.zeros(1000, 1), 0, 1, solver=EulerMaruyama(4), at=[0.0, 0.25, 0.5, 0.75, 1.0])
    assert torch.equal(states.trajectory[-1], states.trajectory[-2])
    assert not torch.equal(states.trajectory[-2], states.trajectory[-3])
    halfway = flow.transport(torch.zeros(4000, 1), 0, 0.5, solver=EulerMaruyama(8)).y
    assert abs(float(halfway.var()) - 0.5) < 0.06  # Brownian motion at 0.5; five standard errors


@each_solver
def test_a_generator_fixes_the_noise_and_states_may_be_nested(solver):
    def f(t, y):
        return y, {name: -part for name, part in y.items()}

    y0 = {"a": torch.zeros(5, 2), "b": torch.zeros(5, 3, 1, dtype=torch.float64)}
    first, again = (
        solver(6).solve(f, y0, 0.0, 1.0, generator=torch.Generator().manual_seed(3), at=[0.5, 1.0]) for _ in range(2)
    )
    for name, part in y0.items():
        assert torch.equal(first.y[name], again.y[name])
        assert first.y[name].dtype == part.dtype
        assert first.trajectory[name].shape == (2, *part.shape)
    assert torch.equal(first.trajectory["a"][-1], first.y["a"])


def test_gradients_reach_the_parameters_through_the_noise(generator):
    flow = cflow.ContinuousFlow(fields.MLP(2, outputs=2), bases.Normal(2), path=paths.BrownianBridge())
    torch.nn.init.normal_(flow.field.output.weight, std=0.1, generator=generator)
    x = flow.rsample((4,), solver=EulerMaruyama(5), generator=generator)
    gradients = torch.autograd.grad(x.square().sum(), list(flow.parameters()))
    assert all(each.isfinite().all() and each.any() for each in gradients[-2:])


def test_a_sample_that_runs_away_is_marked():
    f = lambda t, y: (torch.where(y > 0, torch.inf, 0.0), torch.zeros_like(y))
    solution = EulerMaruyama(3, diffusion=0.0).solve(f, torch.tensor([[-1.0], [1.0]]), 0.0, 1.0)
    assert solution.success.tolist() == [True, False]


def test_bad_input_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"diffusion=-1.*zero or more"):
        EulerMaruyama(3, diffusion=-1.0)
    with pytest.raises(ValueError, match="the diffusion is a finite number"):
        EulerMaruyama(3, diffusion=Fading)
    with pytest.raises(ValueError, match=r"it gives nan at t = 0"):
        EulerMaruyama(3, diffusion=lambda t: math.nan).solve(stationary, torch.zeros(1, 1), 0.0, 1.0)
    with pytest.raises(ValueError, match="power=0"):
        Fading(1.0, power=0)
    with pytest.raises(TypeError, match=r"the\s+pair \(velocity, score\)"):
        EulerMaruyama(3).solve(lambda t, y: -y, torch.zeros(1, 1), 0.0, 1.0)
    with pytest.raises(ValueError, match="integrals along a random path"):
        EulerMaruyama(3).solve(stationary, torch.zeros(1, 1), 0.0, 1.0, quadratures={"q": None})
    solver = EulerMaruyama(3)
    flow = cflow.ContinuousFlow(fields.MLP(2, classes=2), bases.Normal(2), path=paths.Linear(), context_shape=())
    label = torch.tensor(1)
    with pytest.raises(ValueError, match=r"ladj is defined along the ODE.*Dopri5"):
        flow.log_prob(torch.zeros(2), label, solver=solver, divergence=divergence.Exact())
    guided = flow.sample((3,), label, solver=solver, guidance=guidance.ClassifierFree(2.0))
    assert guided.shape == (3, 2)
    flow.path.coupling = "couplings.OptimalTransport"
    with pytest.raises(ValueError, match=r"trained with couplings.OptimalTransport.*BridgeMatching"):
        flow.sample((2,), label, solver=solver)
    with pytest.raises(ValueError, match=r"no path"):
        cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2)).sample((2,), solver=solver)
    with pytest.raises(ValueError, match=r"the base is a Uniform"):
        cflow.ContinuousFlow(fields.MLP(2), bases.Uniform(2), path=paths.Linear()).sample((2,), solver=solver)
    velocity_alone = paths.BrownianBridge(predict="velocity")
    with pytest.raises(ValueError, match=r"learns the velocity alone"):
        cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=velocity_alone).sample((2,), solver=solver)
    two = fields.MLP(2, classes=2, outputs=2)
    bridge = cflow.ContinuousFlow(two, bases.Normal(2), path=paths.BrownianBridge(), context_shape=())
    with pytest.raises(ValueError, match=r"the score is a head of its own"):
        bridge.sample((2,), label, solver=solver, guidance=guidance.ClassifierFree(2.0))
    assert bridge.sample((2,), label, solver=solvers.Heun(4), guidance=guidance.ClassifierFree(2.0)).shape == (2, 2)
