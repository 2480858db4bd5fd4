import math

import pytest
import torch
from torch import nn

import cflow
from cflow import bases, paths, solvers
from cflow.registry import configuration, lookup
from cflow.shapes import expand_like
from cflow.solvers import DEIS, RK4, AdamsBashforth, DPMSolverPP2M, Euler, UniPC, by_name
from cflow.solvers.grid.coefficients import adams_weights
from cflow.testing import GaussianField, check_solver
from cflow.testing.solvers import SOLVER_CHECKS

ON_PATHS = {
    "dpm++2m": (DPMSolverPP2M, 2),
    "unipc2": (UniPC, 3),
    "unipc2 bh1": (lambda steps: UniPC(steps, variant="bh1"), 3),
    "unipc3": (lambda steps: UniPC(steps, order=3), 4),
    "deis2": (DEIS, 2),
    "deis3": (lambda steps: DEIS(steps, order=3), 3),
}
SCHEDULES = [paths.Linear, paths.Cosine, paths.VariancePreserving, paths.Polynomial]
PREDICTIONS = ["velocity", "x1", "noise", "score"]


class MixtureField(nn.Module):
    """The velocity, or another prediction, of data from three round Gaussians and a standard normal base."""

    def __init__(self, path, std=0.5):
        super().__init__()
        self.path, self.std = path, std
        self.register_buffer("means", torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.4, -1.0]]))

    def forward(self, t, x, context=None, *, s=None):
        alpha, sigma = expand_like(self.path.alpha(t), x), expand_like(self.path.sigma(t), x)
        variance = (alpha * self.std) ** 2 + sigma**2
        gaps = (x - alpha * self.means[:, None]) / variance
        weights = torch.softmax(-0.5 * (gaps.square() * variance).sum(-1, keepdim=True), 0)
        x1 = (weights * (self.means[:, None] + alpha * self.std**2 * gaps)).sum(0)
        return self.path.express(x1, (weights * sigma * gaps).sum(0), t)


def mixture(path, std=0.5):
    return cflow.ContinuousFlow(MixtureField(path, std), bases.Normal(2), path=path).double()


def error(flow, x, start, end, solver, fine):
    with torch.no_grad():
        exact = flow.transport(x, start, end, solver=fine).y
        return float((flow.transport(x, start, end, solver=solver).y - exact).square().mean().sqrt())


class OnPath:
    """Hands a solver its path, as a flow does."""

    def __init__(self, solver, path):
        self.solver, self.path = solver, path

    def __getattr__(self, name):
        return getattr(self.solver, name)

    def solve(self, f, *args, **kwargs):
        return self.solver.solve(f, *args, path=self.path, **kwargs)


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("check", SOLVER_CHECKS)
def test_adams_bashforth_conforms(order, check):
    check_solver(lambda steps: AdamsBashforth(int(steps), order=order), order=order, adaptive=False, checks=[check])


@pytest.mark.parametrize("name", ["dpm++2m", "unipc2", "unipc3", "deis3"])
@pytest.mark.parametrize(
    "check", ["round trip", "structures", "outputs", "gradients", "failures", "sizes", "host reads"]
)
def test_solvers_on_paths_conform(name, check):
    """Any field is a velocity on a path. Order and batch have tests of their own; the other checks leave [0, 1]."""
    (make, order), path = ON_PATHS[name], paths.Cosine()
    on_path = lambda steps: OnPath(make(int(steps)), path)
    check_solver(on_path, order=order, adaptive=False, checks=[check])


@pytest.mark.parametrize("name", ON_PATHS)
@pytest.mark.parametrize(
    ("schedule", "start", "end"),
    [
        (paths.Linear, 0.2, 0.8),
        (paths.Linear, 0.8, 0.2),
        (paths.Cosine, 0.2, 0.8),
        (paths.VariancePreserving, 0.3, 0.8),
    ],
)
def test_the_order_on_paths_is_the_one_it_has_by_theory(name, schedule, start, end, generator):
    make, order = ON_PATHS[name]
    flow = mixture(schedule())
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    coarse, fine = (error(flow, x, start, end, make(steps), RK4(200)) for steps in (100, 200))
    assert abs(math.log2(coarse / fine) - order) < 0.15


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", ON_PATHS)
def test_the_order_on_uneven_grids(name, backward, generator):
    make, order = ON_PATHS[name]
    start, end = (0.8, 0.2) if backward else (0.2, 0.8)
    flow = mixture(paths.Linear())
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)

    def uneven(count):
        even = [step / count for step in range(1, count)]
        solver = make(count)
        grid = tuple(0.2 + 0.6 * (u + 0.12 * math.sin(2 * math.pi * u)) for u in even)
        return cflow.registry.replace(solver, steps=None, grid=grid)

    coarse, fine = (error(flow, x, start, end, uneven(steps), RK4(200)) for steps in (100, 200))
    assert abs(math.log2(coarse / fine) - order) < 0.25


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_from_end_to_end_everything_is_finite_and_second_order(schedule, predict, backward, generator):
    path = schedule(predict=predict)
    flow = cflow.ContinuousFlow(GaussianField(path, 2, 0.7, 0.5), bases.Normal(2), path=path).double()
    x = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    x, ends = (0.7 + 0.5 * x, (1.0, 0.0)) if backward else (x, (0.0, 1.0))
    exact = flow.field.carry(x, *ends)[0]
    for name, (make, _) in {"ab": (AdamsBashforth, 2), **ON_PATHS}.items():
        errors = []
        for steps in (1, 2, 3, 40, 80):
            with torch.no_grad():
                solution = flow.transport(x, *ends, solver=make(steps))
            # In one step, the velocity at the start of a path that stands still there is all that is known.
            known = schedule is not paths.Polynomial or predict != "x1" or steps > 1
            assert solution.success.all() or not known, (name, steps)
            errors.append(float((solution.y - exact).abs().max()))
        # Next to infinite lambda the error falls as h^2 log(1/h); where the velocity is infinite, more slowly.
        rate = 1.3 if schedule is paths.VariancePreserving else 2.2
        assert errors[-1] < max(errors[-2] / rate, 5e-3), (name, errors)
        assert errors[-1] < 0.05, (name, errors)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", ON_PATHS)
def test_the_ends_of_the_interval_are_stepped_on_directly(name, backward):
    """lambda is infinite at both; the field is called at the first."""
    make, _ = ON_PATHS[name]
    flow = mixture(paths.Linear())
    ends = (1.0, 0.0) if backward else (0.0, 1.0)
    x = torch.linspace(-1, 1, 14, dtype=torch.float64).reshape(7, 2)
    errors = [error(flow, x, *ends, make(steps), RK4(400)) for steps in (40, 80)]
    assert errors[1] < min(errors[0] / 2.5, 0.01)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ON_PATHS)
def test_data_in_one_point_are_reached_exactly(name, schedule, generator):
    """The expected data are constant, and the expected base sample is constant along a trajectory."""
    path = schedule()
    point = torch.tensor([3.0, -1.0], dtype=torch.float64)

    def field(t, x):
        sigma = expand_like(path.sigma(t), x)
        return path.combine(point.expand_as(x), (x - expand_like(path.alpha(t), x) * point) / sigma, t)

    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    low = 0.05 if schedule is paths.Polynomial else 0.0  # where it starts, its velocity says nothing
    make, _ = ON_PATHS[name]
    solution = make(5).solve(field, x, low, 0.9, path=path, at=[0.3, 0.77])
    at = lambda t: [float(getattr(path, each)(torch.tensor(t, dtype=torch.float64))) for each in ("alpha", "sigma")]
    base = (x - at(low)[0] * point) / at(low)[1]
    for t, state in [(0.3, solution.trajectory[0]), (0.77, solution.trajectory[1]), (0.9, solution.y)]:
        assert torch.allclose(state, at(t)[0] * point + at(t)[1] * base, atol=1e-9)
    if schedule is not paths.VariancePreserving:
        assert torch.allclose(make(4).solve(field, x, low, 1.0, path=path).y, point.expand_as(x), atol=1e-9)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_adams_bashforth_is_exact_on_polynomials(order):
    """On uneven steps: of one degree less than its order at once, and of its own but for what the start missed."""
    grid = (0.0, 0.15, 0.2, 0.4, 0.55, 0.62, 0.85, 1.0)
    solver = AdamsBashforth(grid=grid, order=order)
    starts = {2: [0.0, 0.15], 3: [0.0, 0.15], 4: [0.0, 0.2, 0.4]}[order]  # the nodes of the rule that begins
    for degree in (order - 2, order - 1):
        field = lambda t, y, degree=degree: (degree + 1) * t.unsqueeze(1) ** degree + 0 * y
        solution = solver.solve(field, torch.zeros(1, 1, dtype=torch.float64), 0.0, 1.0, at=[0.4, 0.55])
        late = [float(solution.y), float(solution.trajectory[1])]
        if degree == order - 2:
            assert abs(late[0] - 1) < 1e-12
        else:  # from the fourth node on nothing more is missed
            assert abs((late[0] - 1) - (late[1] - 0.55 ** (degree + 1))) < 1e-12
            assert abs(late[0] - 1) < len(starts) * starts[-1] ** order


def test_adams_bashforth_2_is_the_plain_formula():
    y0, h = torch.tensor([[1.0]], dtype=torch.float64), 0.1
    field = lambda t, y: torch.sin(y) + t.unsqueeze(1)
    x, before = y0, None
    for step in range(10):
        v = field(torch.tensor([step * h], dtype=torch.float64), x)
        x, before = x + h * (v if before is None else 1.5 * v - 0.5 * before), v
    assert torch.allclose(AdamsBashforth(10).solve(field, y0, 0.0, 1.0).y, x, atol=1e-13)


def test_dpm_solver_is_the_published_recursion(generator):
    path, steps = paths.Cosine(), 9
    flow = mixture(path)
    x = start = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    nodes = torch.linspace(0.1, 0.9, steps + 1, dtype=torch.float64)
    alpha, sigma = path.alpha(nodes), path.sigma(nodes)
    lam = torch.log(alpha / sigma)
    before = None
    for n in range(steps):
        v = flow.velocity(nodes[n], x)
        d = path.velocity_ends(v, x, nodes[n])[0]
        h = lam[n + 1] - lam[n]
        mixed = d if before is None else d + h / (2 * (lam[n] - lam[n - 1])) * (d - before)
        x, before = sigma[n + 1] / sigma[n] * x + alpha[n + 1] * (1 - torch.exp(-h)) * mixed, d
    solved = flow.transport(start, 0.1, 0.9, solver=DPMSolverPP2M(steps)).y
    assert torch.allclose(solved, x, atol=1e-12)


def test_the_corrector_of_unipc_sees_the_slope_at_the_end_of_each_step(generator):
    """A hand-written predictor and corrector of the first two steps, with all states kept."""
    path = paths.Cosine()
    flow = mixture(path)
    x0 = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64)
    alpha, sigma = path.alpha(t), path.sigma(t)
    lam = torch.log(alpha / sigma)
    data = lambda n, x: path.velocity_ends(flow.velocity(t[n], x), x, t[n])[0]
    whole = lambda n: alpha[n + 1] * (1 - torch.exp(lam[n] - lam[n + 1]))
    d0 = data(0, x0)
    first = sigma[1] / sigma[0] * x0 + whole(0) * d0
    d1 = data(1, first)
    corrected = first + whole(0) * 0.5 * (d1 - d0)
    trend = (lam[2] - lam[1]) / (2 * (lam[1] - lam[0])) * (d1 - d0)
    second = sigma[2] / sigma[1] * corrected + whole(1) * (d1 + trend)
    solution = flow.transport(x0, 0.2, 0.6, solver=UniPC(2), at=[0.4, 0.6])
    assert torch.allclose(solution.y, second, atol=1e-12)
    assert torch.allclose(solution.trajectory[0], corrected, atol=1e-12)


@pytest.mark.parametrize("make", [AdamsBashforth, *(make for make, _ in ON_PATHS.values())])
def test_cost_is_one_call_per_step(make, generator):
    flow = mixture(paths.Linear("x1"))
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    for steps in (1, 2, 5, 8):
        stats = flow.transport(x, 0.0, 1.0, solver=make(steps)).stats
        assert stats.nfe == steps
        assert stats.evaluations == 3 * steps
        inner = make(steps).solve(lambda t, y: -y, x, 0.2, 0.8, path=flow.path)
        assert inner.stats.nfe == steps
        assert inner.stats.steps.tolist() == [steps] * 3


@pytest.mark.parametrize("name", ON_PATHS)
def test_a_sample_alone_and_among_others(name, generator):
    make, _ = ON_PATHS[name]
    flow = mixture(paths.Linear())
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        together = flow.transport(x, 0.0, 1.0, solver=make(6)).y
        alone = torch.cat([flow.transport(each[None], 0.0, 1.0, solver=make(6)).y for each in x])
    assert torch.allclose(together, alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_weights_of_quadratures_are_exact_on_polynomials(order):
    for nodes in (
        [0.0, 0.1, 0.3, 0.35, 0.6, 0.75, 1.0],
        [1.0, 0.7, 0.6, 0.3, 0.2, 0.0],
        [0.0, 0.4, 0.4 + 1e-9, 0.8, 1],
    ):
        weights = adams_weights(nodes, order)
        for degree in range(min(order, len(nodes) - 2)):
            integral = sum(weight * t**degree for weight, t in zip(weights, nodes))
            assert abs(integral - (nodes[-1] - nodes[0]) * (1 if degree == 0 else 1 / (degree + 1))) < 1e-12
        assert max(map(abs, weights)) < 2


@pytest.mark.parametrize(
    ("make", "accuracy"),
    [
        (DPMSolverPP2M, 2),
        (UniPC, 3),  # of its corrector, as the states
        (lambda steps: UniPC(steps, order=3), 4),
        (DEIS, 2),
        (lambda steps: DEIS(steps, order=3), 3),
        *((lambda steps, order=order: AdamsBashforth(steps, order=order), order) for order in (2, 3, 4)),
    ],
)
def test_quadratures_have_the_order_of_the_states(make, accuracy):
    """Exact for polynomials of time below the order, and for no others."""
    powers = {f"t{k}": k for k in range(accuracy + 1)}
    integrands = lambda t, y: ((3.0 - y) / (1 - t)[:, None], {name: t**k for name, k in powers.items()})
    start, quadratures = torch.zeros(2, 1, dtype=torch.float64), dict.fromkeys(powers)
    found = make(12).solve(integrands, start, 0.0, 0.9, path=paths.Linear(), quadratures=quadratures).quadratures
    errors = [float(abs(found[name][0] - 0.9 ** (k + 1) / (k + 1))) for name, k in powers.items()]
    assert max(errors[:accuracy]) < 1e-13
    assert errors[accuracy] > 1e-7


@pytest.mark.parametrize("make", [AdamsBashforth, DPMSolverPP2M, UniPC, DEIS])
def test_log_densities(make, generator):
    path = paths.Linear()
    flow = cflow.ContinuousFlow(GaussianField(path, 2, 0.7, 0.5), bases.Normal(2), path=path).double()
    x = 0.7 + 0.5 * torch.randn(9, 2, generator=generator, dtype=torch.float64)
    exact = torch.distributions.Normal(0.7, 0.5).log_prob(x).sum(1)
    with torch.no_grad():
        gaps = [float((flow.log_prob(x, solver=make(steps)) - exact).abs().max()) for steps in (30, 60)]
    assert gaps[1] < min(0.02, gaps[0] / 2.5)


def test_a_node_next_to_another_is_not_extrapolated_from():
    """The rounding of its slope would be multiplied by the ratio of the steps."""
    noisy = lambda t, y: -y + 1e-3 * torch.sin(1e9 * t).unsqueeze(1)
    y0 = torch.ones(1, 1, dtype=torch.float64)
    path = paths.Cosine()
    for solver in (AdamsBashforth(10), AdamsBashforth(10, order=4), UniPC(10, order=3), DEIS(10, order=3)):
        for after in (0.2, 0.28, 0.36, 0.44):
            solve = lambda f, after=after, solver=solver: solver.solve(f, y0, 0.2, 1.0, at=[after + 2e-6], path=path).y
            assert abs(float(solve(noisy) - solve(lambda t, y: -y))) < 5e-3, (solver, after)


def test_single_and_half_precision_states():
    for make, _ in ON_PATHS.values():
        seen = set()
        field = lambda t, y, seen=seen: seen.add((t.dtype, y.dtype)) or (3 - y) / (1 - t).unsqueeze(1)
        solution = make(20).solve(field, torch.zeros(2, 3, dtype=torch.bfloat16), 0.0, 1.0, path=paths.Linear())
        assert seen == {(torch.float32, torch.bfloat16)}
        assert solution.y.dtype == torch.bfloat16
        assert torch.allclose(solution.y.float(), torch.full((2, 3), 3.0), atol=0.03)


def test_gradients_reach_the_field_from_end_to_end(generator):
    path = paths.Linear()
    flow = cflow.ContinuousFlow(GaussianField(path, 2, 0.7, 0.5), bases.Normal(2), path=path).double()
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    for make, _ in ON_PATHS.values():
        solve = lambda x, make=make: flow.transport(x, 0.0, 1.0, solver=make(4)).y
        assert torch.autograd.gradcheck(solve, (x,))
        (grad,) = torch.autograd.grad(solve(x).sum(), flow.field.scale)
        assert bool(grad.isfinite())
        assert float(grad) != 0


def test_a_user_s_schedule_is_read():
    class Slow(paths.AffinePath):
        alpha = staticmethod(lambda t: t * t * (3 - 2 * t))
        sigma = staticmethod(lambda t: 1 - t * t * (3 - 2 * t))
        d_alpha = staticmethod(lambda t: 6 * t * (1 - t))
        d_sigma = staticmethod(lambda t: -6 * t * (1 - t))

    flow = mixture(Slow())
    x = torch.linspace(-1, 1, 14, dtype=torch.float64).reshape(7, 2)
    with torch.no_grad():
        fine = [flow.transport(x, *ends, solver=RK4(200)).y for ends in ((0.0, 1.0), (1.0, 0.0))]
    for make, _ in ON_PATHS.values():
        for ends, exact in zip(((0.0, 1.0), (1.0, 0.0)), fine):
            with torch.no_grad():
                errors = [float((flow.transport(x, *ends, solver=make(n)).y - exact).abs().max()) for n in (20, 40)]
            assert errors[1] < errors[0] / 1.7


@pytest.mark.parametrize("solver", [AdamsBashforth(7, order=3), DPMSolverPP2M(4), UniPC(5, variant="bh1"), DEIS(3)])
def test_solvers_are_saved_with_a_flow(solver, tmp_path):
    flow = cflow.ContinuousFlow(cflow.fields.MLP(2), bases.Normal(2), path=paths.Linear(), solver=solver)
    loaded = cflow.load(cflow.save(flow, tmp_path / "flow"))
    assert loaded.solver == solver
    assert type(solver)(**configuration(solver)) == solver
    assert lookup(f"solvers.{type(solver).__name__}") is type(solver)
    draw = lambda each: each.sample((5,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(flow), draw(loaded))


def test_names():
    assert by_name("adams_bashforth", steps=5, order=3) == AdamsBashforth(5, order=3)
    assert by_name("dpm_solver_pp_2m", steps=5) == DPMSolverPP2M(5)
    assert by_name("unipc", nfe=5) == UniPC(nfe=5)
    assert by_name("deis", steps=5) == DEIS(5)


ONE = torch.ones(2, 3)


@pytest.mark.parametrize("solver", [DPMSolverPP2M(4), UniPC(4), DEIS(4)])
def test_what_the_path_does_not_give_is_refused(solver):
    with pytest.raises(ValueError, match=r"path=None.*build the flow with path="):
        solver.solve(lambda t, y: -y, ONE, 0.0, 1.0)
    with pytest.raises(ValueError, match="this path is not affine"):
        solver.solve(lambda t, y: -y, ONE, 0.0, 1.0, path=paths.BrownianBridge())
    with pytest.raises(ValueError, match="not defined at 1.5"):
        solver.solve(lambda t, y: -y, ONE, 0.0, 1.5, path=paths.Linear())
    flow = cflow.ContinuousFlow(cflow.fields.MLP(2), bases.Normal(2))
    with pytest.raises(ValueError, match="or use AdamsBashforth"):
        flow.sample((2,), solver=solver)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamsBashforth(4, order=5), "orders 2, 3, 4"),
        (lambda: UniPC(4, order=4), "orders 2, 3"),
        (lambda: UniPC(4, order=True), "orders 2, 3"),
        (lambda: UniPC(4, variant="b2"), "unknown variant"),
        (lambda: DEIS(4, order=1), "orders 2, 3"),
        (lambda: DEIS(0), "at least 1"),
        (lambda: AdamsBashforth(4, gradient=solvers.Checkpointed()), r"Backprop\(\)"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_step_is_the_closed_form_step(generator):
    flow = mixture(paths.Cosine())
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    v = flow.velocity(0.0, x)
    zero, one = torch.tensor(0.0).double(), torch.tensor(1.0).double()
    step = flow.path.closed_form_step(v, x, zero, x, zero, one)
    for make, _ in ON_PATHS.values():
        assert torch.allclose(flow.transport(x, 0.0, 1.0, solver=make(1)).y, step, atol=1e-12)
    assert torch.allclose(
        flow.transport(x, 0.0, 1.0, solver=AdamsBashforth(1)).y, flow.transport(x, 0.0, 1.0, solver=Euler(1)).y
    )
