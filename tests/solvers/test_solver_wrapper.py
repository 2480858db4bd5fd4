"""Solvers around solvers: one that only forwards gives what the inner one gives, bit for bit, wherever solvers go."""

from dataclasses import dataclass

import pytest
import torch
from graph_standins import Net
from torch import nn

import cflow
from cflow import ContinuousFlow, bases, fields, objectives, paths, training
from cflow.divergence import Hutchinson
from cflow.solvers import (
    DEIS,
    METHODS,
    RK4,
    AdamsBashforth,
    Bespoke,
    Bosh3,
    Checkpointed,
    CudaGraph,
    Dopri5,
    Dopri8,
    DPMSolverPP2M,
    Euler,
    EulerMaruyama,
    FlowMap,
    Heun,
    Midpoint,
    Picard,
    Ralston,
    Solver,
    StochasticHeun,
    TorchDiffEq,
    Tsit5,
    UniPC,
    Wrapper,
    odeint,
)
from cflow.testing import GaussianBridgeField, GaussianField

INSIDE = Bespoke((0.25, 0.75), (1.0, 1.0), ((0.5,), (0.5, 0.5)))
GRIDDED = [
    Euler(5), Midpoint(4), Heun(5), Heun(grid=(0.3, 0.9)), Ralston(nfe=8), RK4(3), AdamsBashforth(6, order=3),
    DPMSolverPP2M(5), UniPC(5, order=3), DEIS(5), Picard(8, window=4), RK4(2, gradient=Checkpointed()),
]  # fmt: skip
OTHERS = [
    Bosh3(1e-2, 1e-2), Dopri5(1e-2, 1e-2), Dopri5(1e-2, 1e-2, per_sample=False), Tsit5(1e-2, 1e-2),
    Dopri8(1e-2, 1e-2), TorchDiffEq("dopri5", 1e-2, 1e-2), TorchDiffEq("rk4", options={"step_size": 0.5}),
    INSIDE, FlowMap(4),
]  # fmt: skip
NOISY = [EulerMaruyama(6), StochasticHeun(5, diffusion=0.5)]
SOLVERS = [*GRIDDED, *OTHERS, *NOISY]
PATHS = [
    *(paths.Linear(predict) for predict in ("velocity", "x1", "noise", "score")),
    *(paths.Cosine(predict) for predict in ("velocity", "x1", "noise", "score")),
    paths.VariancePreserving("noise"),
    *(paths.BrownianBridge(0.8, predict) for predict in ("velocity", "noise", "score")),
    paths.Interpolant(paths.Cosine(), paths.SineGamma(0.5), predict="score"),
]


class Passing(Wrapper):
    """Changes nothing, as a class of its own."""


class Duck:
    """Changes nothing, and derives from nothing."""

    def __init__(self, solver):
        self.solver = solver

    def __getattr__(self, name):
        if name.startswith("__"):  # copies are made by the class
            raise AttributeError(name)
        return getattr(self.solver, name)


KINDS = [Wrapper, Passing, Duck, lambda solver: Passing(Duck(solver)), lambda solver: Duck(Wrapper(solver))]
IDS = ["wrapper", "subclass", "duck", "around a duck", "duck around"]


class Off(nn.Module):
    """A network that is one percent off, so that it matters where it is asked."""

    two_times = False

    def __init__(self, oracle):
        super().__init__()
        self.oracle, self.gain = oracle, nn.Parameter(torch.tensor(1.01))

    def forward(self, t, x, context=None, *, s=None):
        return self.gain * self.oracle(t, x, context)


def flow_on(path):
    if isinstance(path, paths.Interpolant):
        field = GaussianBridgeField(path, 2)
        return ContinuousFlow(Off(field), bases.Normal(2, -1.0, 0.8), path=path)
    return ContinuousFlow(Off(GaussianField(path, 2, 0.7, 0.5)), bases.Normal(2), path=path)


def outcome(flow, solver, x, start, end, **options):
    """Gives all that a solve returns, or the kind of error that it ends in."""
    generator = torch.Generator().manual_seed(5)
    try:
        with torch.no_grad():
            solution = flow.transport(x, start, end, solver=solver, generator=generator, **options)
    except (ValueError, TypeError, RuntimeError) as error:
        return type(error)
    return {**vars(solution), "stats": vars(solution.stats), "drawn": generator.get_state()}


def equal(one, two):
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two) or bool((one == two).logical_or(one.isnan() & two.isnan()).all())
    return one == two


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_wrapper_that_only_forwards_changes_nothing(path, generator):
    flow, at, density = flow_on(path), [0.0005, 0.3, 0.9995], {"ladj": True, "quadratures": ("kinetic",)}
    x = torch.randn(3, 2, generator=generator)
    ways = [(0.0, 1.0, {"at": at}), (0.0, 1.0, density), (1.0, 0.0, {"at": at[::-1]}), (1.0, 0.0, density), (0, 0, {})]
    solved = 0
    for solver in SOLVERS:
        for start, end, options in ways:
            inner = outcome(flow, solver, x, start, end, **options)
            for kind in (Passing, Duck):
                outer = outcome(flow, kind(solver), x, start, end, **options)
                assert type(inner) is type(outer), (solver, start, end, options, inner, outer)
                assert equal(inner, outer), (solver, kind, start, end, options)
            solved += isinstance(inner, dict)
    assert solved > 50


@pytest.mark.parametrize("predict", ["velocity", "x1"])
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_wrappers_around_wrappers_change_nothing(kind, predict, generator):
    flow, x = flow_on(paths.Linear(predict)), torch.randn(3, 2, generator=generator)
    for solver in SOLVERS:
        inner, outer = (outcome(flow, each, x, 0.0, 1.0) for each in (solver, kind(solver)))
        assert type(inner) is type(outer)
        assert equal(inner, outer), solver


def test_the_closed_form_crosses_the_end_behind_a_wrapper_too(generator):
    flow = flow_on(paths.Linear("x1"))
    x = torch.randn(4000, 2, generator=generator)
    with torch.no_grad():
        spreads = [float(flow.transport(x, 0.0, 1.0, solver=each(Heun(20))).y.std()) for each in (Passing, Duck)]
    assert all(abs(spread - 0.5) < 0.05 for spread in spreads)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_two_times_and_guidance_go_through_a_wrapper(kind, generator):
    class Decay(fields.Field):
        two_times = True

        def __init__(self):
            super().__init__(2)
            self.rate = nn.Parameter(torch.ones(()))

        def forward(self, t, x, context=None, *, s=None):
            s = t if s is None else s
            step = torch.where(s == t, 1.0, torch.expm1(t - s) / (s - t))
            return -self.rate * x * torch.where(s == t, 1.0, -step)[:, None]

    flow, x = ContinuousFlow(Decay(), bases.Normal(2), path=paths.Linear()), torch.randn(4, 2, generator=generator)
    for options in ({}, {"at": [0.25, 0.6]}):
        inner, outer = (outcome(flow, each, x, 0.0, 1.0, **options) for each in (FlowMap(3), kind(FlowMap(3))))
        assert isinstance(inner, dict)
        assert equal(inner, outer)


@pytest.mark.parametrize("predict", ["velocity", "x1"])
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_graphs_hold_what_is_behind_a_wrapper(kind, predict, machine, generator):
    flow = flow_on(paths.Linear(predict))
    for solver in (Heun(4), AdamsBashforth(4), Dopri5(1e-3, 1e-3, check_every=4), INSIDE):
        graph = CudaGraph(kind(solver))
        for _ in range(2):
            x = torch.randn(6, 2, generator=generator)
            bare, outer = (outcome(flow, each, x, 0.0, 1.0) for each in (CudaGraph(solver), kind(CudaGraph(solver))))
            assert isinstance(bare, dict)
            assert equal(bare, outer)
            assert equal(bare, outcome(flow, graph, x, 0.0, 1.0))
        assert graph.captures == 1
    for refused in (EulerMaruyama(3), Picard(4), CudaGraph(Euler(2)), TorchDiffEq("dopri5")):
        with pytest.raises(ValueError, match="use it without CudaGraph"):
            CudaGraph(kind(refused))


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("solver", [RK4(3), RK4(3, gradient=Checkpointed()), Dopri5(1e-3, 1e-3)], ids=repr)
def test_training_through_a_wrapper(solver, kind, generator):
    x = torch.randn(5, 2, generator=generator)
    values = []
    for each in (solver, kind(solver)):
        objective = objectives.FFJORD(Hutchinson(), kinetic=0.1, solver=each)
        flow = flow_on(paths.Linear())
        losses = objective(flow, x, generator=torch.Generator().manual_seed(0))
        losses.mean().backward()
        values.append((losses.detach(), flow.field.gain.grad))
    assert torch.equal(values[0][0], values[1][0])
    assert torch.equal(values[0][1], values[1][1])
    for refused, message in ((EulerMaruyama(3), "simulates an SDE"), (INSIDE, "this solver has no gradient")):
        with pytest.raises(ValueError, match=message):
            objectives.FFJORD(solver=kind(refused))


@pytest.mark.parametrize("kind", [Passing, Duck])
def test_exports_and_students_look_through_a_wrapper(kind, tmp_path):
    from cflow.integrations import export

    flow = ContinuousFlow(fields.MLP(2, hidden=(4,)), bases.Normal(2), path=paths.Linear()).eval()
    z = torch.randn(3, 2)
    for solver in (Heun(3), UniPC(3)):
        given = [export.program(flow, solver=each, batch=3).module()(z) for each in (solver, kind(solver))]
        assert torch.equal(*given)
    for solver, message in ((Dopri5(), "its number of steps is not fixed"), (Picard(4), "after each round")):
        with pytest.raises(ValueError, match=message):
            export.program(flow, solver=kind(solver))
    pairs = training.generate_pairs(flow, 32, tmp_path / "pairs", solver=Euler(1))
    flow.solver = kind(FlowMap(2))  # whose whole steps are not what straightening teaches
    assert repr(training.reflow(flow, pairs, steps=1, batch_size=16).solver).startswith("Dopri5(")


def test_every_part_of_the_contract_is_forwarded():
    told = {name for name in vars(Solver) if not name.startswith("_")} - {"solve"}
    assert told <= vars(Wrapper).keys()
    assert {"_check", "_solve"} <= vars(Wrapper).keys()


def test_a_wrapper_is_saved_with_its_flow(tmp_path):
    flow = ContinuousFlow(fields.MLP(2, hidden=(4,)), bases.Normal(2), solver=Wrapper(Heun(3)))
    cflow.save(flow, tmp_path / "flow")
    assert cflow.load(tmp_path / "flow").solver == Wrapper(Heun(3))


def test_on_keeps_what_a_wrapper_holds():
    @dataclass(frozen=True, repr=False)
    class Named(Wrapper):
        name: str = "none"

    moved = Named(Heun(4), "one").on([0.0, 0.25, 0.75])
    assert type(moved) is Named
    assert moved.name == "one"
    assert moved.nodes(0.0, 1.0) == [0.0, 0.25, 0.75, 1.0]
    assert moved.nodes(1.0, 0.0) == [1.0, 0.75, 0.25, 0.0]
    graph = CudaGraph(Heun(4))
    assert graph.on([0.0, 0.5]).solver == Heun(grid=(0.0, 0.5))
    assert graph.on([0.0, 0.5])._graphs is graph._graphs


@pytest.mark.parametrize("kind", [Passing, Duck])
def test_a_wrapper_is_written_in_the_form_of_fitted_solvers(kind):
    assert Bespoke.of(kind(Heun(2))) == Bespoke.of(Heun(2))
    with pytest.raises(ValueError, match="has no fixed grid; pass one"):
        Bespoke.of(kind(Dopri5()))


@pytest.mark.parametrize("solver", [Dopri5(), INSIDE, TorchDiffEq("dopri5")], ids=repr)
def test_a_solver_without_a_grid_cannot_be_put_on_one(solver):
    assert solver.nodes(0.0, 1.0) is None
    with pytest.raises(ValueError, match="has no fixed grid"):
        solver.on([0.0, 0.5])


def test_solve_is_final():
    with pytest.raises(TypeError, match=r"class Own defines solve\(\).*define _solve\(self, problem\)"):

        class Own(Solver):
            def solve(self, f, y0, t0, t1):
                return None


def test_what_is_no_solver_is_named():
    class Alone:
        def solve(self, *args, **options):
            return None

    flow = flow_on(paths.Linear())
    for wrong, message in ((Alone(), "without 'gradient' is"), (Heun, "not a solver"), ("heun", "not a name")):
        with pytest.raises(TypeError, match=message):
            flow.transport(torch.zeros(1, 2), 0.0, 1.0, solver=wrong)
        with pytest.raises(TypeError, match=message):
            Wrapper(wrong)
    assert all(issubclass(each, Solver) for each in METHODS.values())


def test_a_solver_of_ones_own_needs_one_method():
    class Leap(Solver):
        def _solve(self, problem):
            k, _ = problem(torch.full((problem.batch,), problem.t0), problem.y0)
            h = problem.t1 - problem.t0
            return problem.finished([y + h * slope for y, slope in zip(problem.y0, k)])

    net, y0 = Net(), torch.ones(3, 2)
    with torch.no_grad():
        mine, euler = (each.solve(net, y0, 0.0, 0.5) for each in (Leap(), Euler(1)))
    assert torch.equal(mine.y, euler.y)
    assert mine.stats.nfe == 1
    assert torch.equal(Leap().solve(net, y0, 0.5, 0.5).y, y0)
    flow = flow_on(paths.Linear())
    with torch.no_grad():
        assert torch.equal(*(flow.transport(y0, 0.0, 1.0, solver=each).y for each in (Leap(), Euler(1))))


def test_a_window_is_refused_where_it_is_longer_than_the_grid_whatever_the_number_of_steps():
    for steps in (1, 2):
        with pytest.raises(ValueError, match=rf"between 2 and {steps} steps"):
            Picard(steps, window=16)
    flow, x = flow_on(paths.Linear("x1")), torch.ones(3, 2)
    with torch.no_grad():  # fewer steps than the window are left between the ends that are crossed
        ends = [flow.transport(x, 0.0, 1.0, solver=each).y for each in (Picard(4, window=4, tolerance=0.0), Euler(4))]
    torch.testing.assert_close(*ends)


def test_odeint_knows_its_methods_by_name():
    for method in ("euler", "heun3", "rk4", "dopri5"):
        assert odeint(lambda t, y: -y, torch.ones(1), [0.0, 0.5, 1.0], method=method).shape == (3, 1)
    with pytest.raises(ValueError, match="unknown method"):
        odeint(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method="flow_map")


def test_an_object_that_forwards_what_is_public_alone_is_no_solver():
    heun = Heun(steps=2)
    names = [name for name in dir(heun) if not name.startswith("_")]
    partly = type("Partly", (), {name: getattr(heun, name) for name in names})()
    with pytest.raises(TypeError, match="_check"):
        Wrapper(partly)
