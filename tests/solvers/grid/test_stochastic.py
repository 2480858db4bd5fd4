"""Stochastic solvers: exact moments of linear SDEs, weak order, costs, and what they refuse."""

import math

import pytest
import torch

import cflow
from cflow import bases, couplings, divergence, fields, guidance, objectives, paths, solvers
from cflow.solvers import EulerMaruyama, Fading, StochasticHeun
from cflow.testing import GaussianBridgeField, GaussianField

BOTH = (EulerMaruyama, StochasticHeun)
each_solver = pytest.mark.parametrize("solver", BOTH)
GAUSSIAN = ("velocity", "x1", "noise", "score")  # logits are for one-hot data


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


@pytest.mark.parametrize("predict", GAUSSIAN)
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
    field = Counting(fields.MLP(2, outputs=path.outputs))
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
    states = flow.transport(
        torch.zeros(1000, 1), 0, 1, solver=EulerMaruyama(4, diffusion=1.0), at=[0.0, 0.25, 0.5, 0.75, 1.0]
    )
    assert torch.equal(states.trajectory[-1], states.trajectory[-2])
    assert not torch.equal(states.trajectory[-2], states.trajectory[-3])
    halfway = flow.transport(torch.zeros(4000, 1), 0, 0.5, solver=EulerMaruyama(8, diffusion=1.0)).y
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
    with pytest.raises(ValueError, match=r"diffusion=-1.*finite number >= 0"):
        EulerMaruyama(3, diffusion=-1.0)
    with pytest.raises(ValueError, match="expected a finite number"):
        EulerMaruyama(3, diffusion=Fading)
    with pytest.raises(ValueError, match=r"it returned nan at t = 0"):
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
    with pytest.raises(ValueError, match=r"ladj needs the ODE.*Dopri5"):
        flow.log_prob(torch.zeros(2), label, solver=solver, divergence=divergence.Exact())
    guided = flow.sample((3,), label, solver=solver, guidance=guidance.ClassifierFree(2.0))
    assert guided.shape == (3, 2)
    flow.record(objectives.FlowMatching(couplings.OptimalTransport()))
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
    with pytest.raises(ValueError, match=r"guidance does not apply to the score"):
        bridge.sample((2,), label, solver=solver, guidance=guidance.ClassifierFree(2.0))
    assert bridge.sample((2,), label, solver=solvers.Heun(4), guidance=guidance.ClassifierFree(2.0)).shape == (2, 2)


class Imperfect(torch.nn.Module):
    """A network that is off by one percent."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, t, x, context=None, *, s=None):
        return 1.01 * self.inner(t, x, context)


AFFINE = {
    "linear": paths.Linear,
    "polynomial": lambda predict: paths.Polynomial(2.0, predict),
    "cosine": paths.Cosine,
    "vp": paths.VariancePreserving,
}


@each_solver
@pytest.mark.parametrize("predict", GAUSSIAN)
@pytest.mark.parametrize("path", AFFINE.values(), ids=AFFINE)
def test_imperfect_networks_on_affine_paths_stay_near_both_ends(path, predict, solver, generator):
    path = path(predict)
    field = Imperfect(GaussianField(path, 1, 0.7, 0.5))
    flow = cflow.ContinuousFlow(field, bases.Normal(1), path=path).double()
    x0 = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        forward = flow.transport(x0, 0, 1, solver=solver(40), generator=generator).y
        backward = flow.transport(0.7 + 0.5 * x0, 1, 0, solver=solver(40), generator=generator).y
    # One percent of error, amplified by no more than ten, and the schemes' own error at 40 steps.
    assert abs(float(forward.std()) - 0.5) < 0.08
    assert abs(float(backward.std()) - 1) < 0.15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("predict", GAUSSIAN)
@pytest.mark.parametrize("path", AFFINE.values(), ids=AFFINE)
def test_the_score_is_the_closed_form_on_its_whole_interval(path, predict, dtype, generator):
    path = path(predict)
    flow = cflow.ContinuousFlow(GaussianField(path, 2, 0.7, 0.5), bases.Normal(2), path=path).to(dtype)
    low, high = path.score_interval
    for t in (low, 0.3, 0.8, high):
        at = torch.tensor(t, dtype=torch.float64)
        variance = path.alpha(at) ** 2 * 0.25 + path.sigma(at) ** 2
        x = path.alpha(at) * 0.7 + variance.sqrt() * torch.randn(50, 2, generator=generator, dtype=torch.float64)
        exact = -(x - path.alpha(at) * 0.7) / variance
        error = (flow.score(t, x.to(dtype)) - exact).abs().max() * variance.sqrt()
        # Conversions divide by the margin 1e-3 at worst, twice the square of it for the worst schedule's velocity.
        assert float(error) < (0.02 if dtype == torch.float32 else 1e-8), t


def test_a_base_with_mean_and_deviation_scales_the_score(generator):
    """x0 = 1.5 + 2 z, x1 = 3: x_t is normal with mean 1.5 (1 - t) + 3 t and deviation 2 (1 - t)."""

    class Point(torch.nn.Module):
        def forward(self, t, x, context=None, *, s=None):
            return (3.0 - x) / (1 - t)[:, None]

    flow = cflow.ContinuousFlow(Point(), bases.Normal(1, 1.5, 2.0), path=paths.Linear()).double()
    x = torch.randn(5, 1, generator=generator, dtype=torch.float64)
    assert torch.allclose(flow.score(0.25, x), -(x - 1.875) / 1.5**2)


@each_solver
def test_noise_does_not_stay_next_to_narrow_ends(solver, generator):
    path = paths.BrownianBridge(1.0)
    narrow, wide = (0.0, 0.02), (0.0, 1.0)
    for source, target, ends in ((wide, narrow, (0.0, 1.0)), (narrow, wide, (1.0, 0.0)), (wide, narrow, (0.0, 0.999))):
        field = GaussianBridgeField(path, 1, source, target).double()
        flow = cflow.ContinuousFlow(field, bases.Normal(1, *source), path=path).double()
        x = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
        y = flow.transport(x, *ends, solver=solver(20, diffusion=1.0), generator=generator).y
        assert float(y.std()) < 0.2, ends  # a step of noise alone has 0.22


@pytest.mark.parametrize("gamma", [paths.SineGamma(), paths.SigmoidGamma(), paths.BrownianGamma(0.05)])
def test_predicted_noise_is_divided_by_no_small_gamma(gamma, generator):
    path = paths.Interpolant(gamma=gamma, predict="noise")
    low, high = path.score_interval
    assert all(float(gamma(torch.tensor(t, dtype=torch.float64))) >= 0.99 * path.margin for t in (low, high))
    field = Imperfect(GaussianBridgeField(path, 1, (0.0, 1.0), (0.0, 1.0)))
    flow = cflow.ContinuousFlow(field, bases.Normal(1), path=path).double()
    x = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    for ends in ((0, 1), (1, 0)):
        y = flow.transport(x, *ends, solver=EulerMaruyama(20, diffusion=1.0), generator=generator).y
        assert abs(float(y.std()) - 1) < 0.1


def test_diffusions_that_vary_in_time(generator):
    """The variance of pure noise is the integral of g^2: exact to second order for the trapezoidal width."""
    assert [Fading(2.0, power)(0.75) for power in (0.5, 1.0, 2.0)] == [1.0, 0.5, 0.125]
    still = lambda t, y: (torch.zeros_like(y), torch.zeros_like(y))
    y = torch.zeros(400_000, 1, dtype=torch.float64)
    g = lambda t: 2 * t
    variance = float(StochasticHeun(4, diffusion=g).solve(still, y, 0.0, 1.0, generator=generator).y.var())
    trapezoid = sum(4 * (t**2 + (t + 0.25) ** 2) / 2 * 0.25 for t in (0.0, 0.25, 0.5, 0.75))
    assert abs(variance / trapezoid - 1) < 0.011  # five standard errors
    left = sum(4 * t**2 * 0.25 for t in (0.0, 0.25, 0.5, 0.75))
    variance = float(EulerMaruyama(4, diffusion=g).solve(still, y, 0.0, 1.0, generator=generator).y.var())
    assert abs(variance / left - 1) < 0.011


def test_a_score_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"a score of shape \[3, 1\] for a state of shape \[3, 2\]"):
        EulerMaruyama(2).solve(lambda t, y: (y, y[:, :1]), torch.zeros(3, 2), 0.0, 1.0)
