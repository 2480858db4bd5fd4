"""Graphs of whole solves: what a replay gives.


Without a GPU a recorder of operations takes the place of a graph: it replays them on the same tensors without Python,
and refuses host reads and uploads as a capture does.
"""

import contextlib
import math

import pytest
import torch
from graph_standins import ADAPTIVE, EXACT, GRIDS, JOINT, Net, draw, eager, rates, same
from recorder import Again, Crossings

from cflow import ContinuousFlow, bases, fields, guidance, paths
from cflow.continuous.dynamics import Dynamics
from cflow.divergence import Exact, Hutchinson
from cflow.solvers import (
    RK4,
    AdamsBashforth,
    Adaptive,
    Bespoke,
    CudaGraph,
    Dopri5,
    Dopri8,
    Euler,
    Heun,
    Status,
    Tolerance,
    UniPC,
)
from cflow.solvers.capture import cuda_graph
from cflow.solvers.capture.captured import CapturedGrid, CapturedSteps
from cflow.solvers.gradients.parameters import held_by
from cflow.solvers.uploads import keeping_uploads
from cflow.testing import check_solver
from cflow.testing.solvers import SOLVER_CHECKS


@pytest.mark.parametrize("solver", [*GRIDS, *ADAPTIVE], ids=repr)
@torch.no_grad()
def test_a_replay_gives_what_the_solver_gives(solver, machine, generator):
    net, captured = Net(), CudaGraph(solver)
    path = paths.Linear()
    for t0, t1 in ((0.0, 0.9), (0.9, 0.0)):
        for _ in range(3):
            y0, shift = torch.randn(2, 5, 2, generator=generator)
            options = {"args": (shift,), "path": path}
            same(captured.solve(net, y0, t0, t1, **options), eager(solver, net, y0, t0, t1, **options), **EXACT)
    assert captured.captures == 2
    assert machine.replays >= 6


@pytest.mark.parametrize("solver", [Heun(4), AdamsBashforth(6), Dopri5(1e-4, 1e-4), Dopri8(1e-4, 1e-4)], ids=repr)
@pytest.mark.parametrize("half", [False, True])
@torch.no_grad()
def test_nested_states_and_quadratures(solver, half, machine, generator):
    def field(t, y, extra):
        a, b = y["a"], y["b"][0]
        dy = {"b": (b.tanh() + extra["shift"],), "a": -a * extra["rate"]}
        return dy, {"energy": a.float().square().sum(1), "both": b.float()}

    captured = CudaGraph(solver)
    for _ in range(3):
        a, b, shift = torch.randn(3, 4, 2, generator=generator)
        if half:
            a, b = a.bfloat16(), b.bfloat16()
        arguments = ({"a": a, "b": (b,)}, 0.0, 1.0)
        options = {
            "args": ({"shift": shift, "rate": 2.0, "none": None},),
            "quadratures": {"energy": Tolerance(1e-4, 1e-4), "both": None},
            "at": [0.0, 1.0],
        }
        same(captured.solve(field, *arguments, **options), eager(solver, field, *arguments, **options), **EXACT)
    assert captured.captures == 1
    arguments = ({"a": a, "b": (b,)}, 0.0, 1.0)
    reordered = {**options, "quadratures": dict(reversed(options["quadratures"].items()))}
    assert list(captured.solve(field, *arguments, **reordered).quadratures) == ["both", "energy"]


@torch.no_grad()
def test_a_fitted_solver_and_output_times_on_a_grid(machine, generator):
    net, y0 = Net(), torch.randn(5, 2, generator=generator)
    fitted = Bespoke.of(RK4(2))
    same(CudaGraph(fitted).solve(net, y0, 0, 1, at=[0, 1]), fitted.solve(net, y0, 0, 1, at=[0, 1]), **EXACT)
    times = torch.tensor([0.0, 0.3, 0.3, 1.0])
    same(CudaGraph(Heun(5)).solve(net, y0, 0.0, 1.0, at=times), Heun(5).solve(net, y0, 0.0, 1.0, at=times), **EXACT)


@torch.no_grad()
def test_samples_of_very_different_length_wait_for_each_other(machine):
    decay, y0 = (lambda t, y, rate: -rate * y), torch.ones(8, 1, dtype=torch.float64)
    captured = CudaGraph(Dopri5(1e-7, 1e-7))
    solution = captured.solve(decay, y0, 0.0, 1.0, args=(rates(),))
    eager = Dopri5(1e-7, 1e-7).solve(decay, y0, 0.0, 1.0, args=(rates(),))
    torch.testing.assert_close(solution.y, eager.y, rtol=1e-13, atol=1e-15)
    assert torch.equal(solution.stats.steps, eager.stats.steps)
    longest = int(eager.stats.steps.max())
    assert machine.replays == 2 + math.ceil(longest / 4)  # the beginning twice: the attempts' warm-up needs it too
    assert solution.stats.nfe == 2 + 6 * 4 * math.ceil(longest / 4)


@pytest.mark.parametrize("solver", JOINT, ids=repr)
@torch.no_grad()
def test_one_step_for_the_batch_is_the_joint_loops(solver, machine):
    def decay(t, y, rate):
        return {"fast": -rate * y["fast"], "slow": -y["slow"]}, {"area": y["fast"].sum(1)}

    captured = CudaGraph(solver)
    for scale in (1.0, 2.0):
        y0 = {"fast": torch.full((8, 1), scale, dtype=torch.float64), "slow": torch.ones(8, 3, dtype=torch.float64)}
        options = {"args": (rates() * scale,), "quadratures": {"area": Tolerance(1e-6, 1e-6)}, "at": [0.0, 1.0]}
        eager = solver.solve(decay, y0, 0.0, 1.0, **options)
        solution = captured.solve(decay, y0, 0.0, 1.0, **options)
        for name in ("steps", "accepted", "rejected"):
            assert torch.equal(getattr(solution.stats, name), getattr(eager.stats, name))
        assert torch.equal(solution.status, eager.status)
        for name in ("y", "quadratures", "trajectory"):
            torch.testing.assert_close(getattr(solution, name), getattr(eager, name), rtol=1e-8, atol=1e-12)
    assert captured.captures == 1


@pytest.mark.parametrize("per_sample", [True, False])
@torch.no_grad()
def test_failures_stay_with_their_sample(per_sample, machine):
    bad = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    poisoned = lambda t, y, bad: torch.where(((bad > 0) & (t > 0.5)).unsqueeze(1), torch.nan, -y)
    y0, captured = torch.ones(3, 2, dtype=torch.float64), CudaGraph(Dopri5(per_sample=per_sample))
    solution = captured.solve(poisoned, y0, 0.0, 1.0, args=(bad,))
    assert solution.status.tolist() == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS]
    assert 0.45 < solution.stats.reached[1] <= 0.5
    assert solution.y.isfinite().all()
    torch.testing.assert_close(solution.y[[0, 2]], torch.full((2, 2), math.exp(-1)).double(), rtol=1e-5, atol=0)
    start = torch.tensor([[0.1], [2.0], [0.5]], dtype=torch.float64)
    burst = captured.solve(lambda t, y: y * y, start, 0.0, 1.0)
    assert burst.success.tolist() == [True, False, True]
    torch.testing.assert_close(burst.y[[0, 2]], (start / (1 - start))[[0, 2]], rtol=1e-4, atol=0)
    first = lambda t, y: torch.where((y > 1.5) & (t.unsqueeze(1) >= 0), torch.inf, -y)
    assert captured.solve(first, start, 0.0, 1.0).status.tolist() == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS]
    with pytest.raises(RuntimeError, match="1 of 3 samples"):
        CudaGraph(Dopri5(per_sample=per_sample, on_failure="raise")).solve(first, start, 0.0, 1.0)


CHECKS = [name for name in SOLVER_CHECKS if name not in ("interval", "gradients", "second derivatives", "memory")]


@pytest.mark.parametrize(
    ("make", "order", "adaptive"),
    [
        (lambda steps: CudaGraph(Heun(int(steps))), 2, False),
        (lambda tolerance: CudaGraph(Dopri5(tolerance, tolerance)), 5, True),
    ],
    ids=["Heun", "Dopri5"],
)
@torch.no_grad()
def test_it_keeps_the_contract_of_solvers(make, order, adaptive, machine):
    checks = [name for name in CHECKS if not (adaptive and name == "outputs")]
    if adaptive:  # they ask for an output time inside, which is refused
        checks.remove("sizes")
    check_solver(make, order=order, adaptive=adaptive, checks=checks)


@torch.no_grad()
def test_the_field_is_never_called_outside_the_interval(machine):
    for solver in (Heun(7), Dopri5(1e-7, 1e-7), Dopri5(1e-7, 1e-7, per_sample=False)):
        for t0, t1 in ((0.1, 0.7), (0.7, 0.1)):
            inside = lambda t, y: torch.where(((t >= 0.1) & (t <= 0.7)).unsqueeze(1), -y * t.unsqueeze(1), torch.nan)
            y0 = torch.ones(3, 2, dtype=torch.float64)
            assert CudaGraph(solver).solve(inside, y0, t0, t1).success.all()


FLOWS = {
    "velocity": paths.Linear(),
    "x1": paths.Linear(predict="x1"),
    "no path": None,
}


METHODS_OF_FLOWS = (Euler(8), UniPC(6), AdamsBashforth(6), Dopri5())


@pytest.mark.parametrize(
    ("path", "inner"),
    # UniPC reads the schedule, which a flow without a path has not.
    [(p, each) for p in FLOWS.values() for each in METHODS_OF_FLOWS if p is not None or not isinstance(each, UniPC)],
    ids=repr,
)
def test_a_flow_samples_through_it(path, inner, machine):
    flow = ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=path)
    solver = CudaGraph(inner)
    for seed in (0, 1):
        mine = flow.sample((6,), solver=solver, generator=draw(seed))
        torch.testing.assert_close(mine, flow.sample((6,), solver=inner, generator=draw(seed)), **EXACT)
    assert solver.captures == 1
    flow.sample((7,), solver=solver)
    assert solver.captures == 2


def test_fitted_solvers_and_guidance_through_a_flow(machine):
    flow = ContinuousFlow(fields.MLP(2, hidden=(8,), classes=3), bases.Normal(2), path=paths.Linear(), context_shape=())
    labels = torch.tensor([0, 2])
    solver = CudaGraph(Bespoke.of(Heun(2)))
    for scale in (2.0, 2.0, 3.0):
        options = {"guidance": guidance.ClassifierFree(scale), "generator": draw()}
        mine = flow.sample((3,), labels, solver=solver, **options)
        options["generator"] = draw()
        torch.testing.assert_close(mine, flow.sample((3,), labels, solver=solver.solver, **options), **EXACT)
    assert solver.captures == 2
    weak = fields.MLP(2, hidden=(4,), classes=3)
    for _ in range(2):
        flow.sample((3,), labels, solver=solver, guidance=guidance.CFGZeroStar(2.0, zero_until=0.0))
    assert solver.captures == 3
    mixed = guidance.AutoGuidance(weak, 2.0)
    for _ in range(2):
        flow.sample((3,), labels, solver=solver, guidance=mixed)
    assert solver.captures == 4


@pytest.mark.parametrize("divergence", [Exact(), Exact(chunk=1), Hutchinson(probes=2)], ids=repr)
@pytest.mark.parametrize("inner", [Heun(4), Dopri5(1e-4, 1e-4)], ids=repr)
@torch.no_grad()
def test_a_density_is_replayed_too(divergence, inner, machine):
    flow = ContinuousFlow(
        fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear(predict="x1"), divergence=divergence
    )
    solver, x = CudaGraph(inner), torch.randn(5, 2, generator=draw())
    for seed in (0, 1):
        mine = flow.log_prob(x, solver=solver, generator=draw(seed))
        torch.testing.assert_close(mine, flow.log_prob(x, solver=inner, generator=draw(seed)), **EXACT)
    assert solver.captures == 1
    names = ("kinetic", "jacobian")
    mine = flow.transport(x, 0.0, 1.0, quadratures=names, solver=solver, generator=draw())
    other = flow.transport(x, 0.0, 1.0, quadratures=names, solver=inner, generator=draw())
    torch.testing.assert_close(mine.quadratures, other.quadratures, **EXACT)
    assert solver.captures == 2


METHODS = [*GRIDS, Bespoke.of(RK4(2)), *ADAPTIVE, *JOINT]


@pytest.mark.parametrize("solver", METHODS, ids=repr)
@torch.no_grad()
def test_nothing_goes_between_host_and_device(solver, monkeypatch):
    # Autocast does not know the device below.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    path = paths.Linear(predict="x1")
    net = fields.MLP(2, hidden=(8,)).to("meta")  # reading what has no values raises
    flow = ContinuousFlow(net, bases.Normal(2), path=path)
    f = flow.velocity_field()
    names = {} if isinstance(solver, Bespoke) else {"ladj": Tolerance(), "kinetic": None}
    if names:
        x = torch.ones(4, 2, device="meta")
        f = Dynamics.of(flow, solver, Exact(), x, None, ("ladj", "kinetic")).f
    found = []

    def record(function):
        function()
        with Crossings() as crossings:
            result = function()
        found.append(crossings.found)
        return result, lambda: None

    y0, uploads, end = torch.ones(4, 2, device="meta"), {}, 1.0 if isinstance(solver, Bespoke) else 0.9
    kind = CapturedSteps if isinstance(solver, Adaptive) else CapturedGrid
    args = (None, None) if names else (None,)
    with keeping_uploads(uploads):
        kind(record, solver, f, y0, 0.0, end, args, quadratures=names, at=[0.0, end], path=path)
    assert uploads
    assert found == [[]] * len(found)
    with Crossings() as crossings:  # and a copy would be seen
        torch.ones(1).to("meta")
    assert len(crossings.found) == 1


@torch.no_grad()
def test_a_captured_solve_launches_no_more_than_the_solver(machine):
    field = lambda t, y: torch.sin(y)
    CudaGraph(Euler(10)).solve(field, torch.ones(4, 2), 0.0, 1.0)
    counts = machine.operations[-1]
    assert (counts["sin"], counts["add"]) == (10, 10)
    assert counts.total() < 40
    CudaGraph(Dopri5(check_every=10)).solve(field, torch.ones(4, 2), 0.0, 1.0)
    assert machine.operations[-1].total() / 10 < 65


@torch.no_grad()
def test_a_compiled_network(monkeypatch):
    machine = Again()
    monkeypatch.setattr(cuda_graph, "_machine", machine)
    field = fields.MLP(2, hidden=(8,))
    compiled = torch.compile(field)
    flow, reference = (ContinuousFlow(each, bases.Normal(2)) for each in (compiled, field))
    solver = CudaGraph(Heun(3))
    x = reference.sample((5,), solver=Heun(3), generator=draw())
    for _ in range(3):
        torch.testing.assert_close(flow.sample((5,), solver=solver, generator=draw()), x, rtol=1e-5, atol=1e-6)
    assert solver.captures == 1
    field.layers = None
    assert {id(each) for each in held_by(compiled)[0]} == {id(each) for each in held_by(field)[0]}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("solver", [*GRIDS, *ADAPTIVE, *JOINT], ids=repr)
@torch.no_grad()
def test_on_a_gpu(solver, generator):
    net = Net().cuda()
    captured, path = CudaGraph(solver), paths.Linear()
    for _ in range(3):
        y0, shift = torch.randn(2, 5, 2, generator=generator).cuda()
        mine = captured.solve(net, y0, 0.0, 0.9, args=(shift,), path=path)
        other = solver.solve(net, y0, 0.0, 0.9, args=(shift,), path=path)
        torch.testing.assert_close(mine.y, other.y, rtol=1e-4, atol=1e-4)
        net.weight.mul_(0.9)
    assert captured.captures == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("divergence", [Exact(), Hutchinson()], ids=repr)
@torch.no_grad()
def test_a_density_on_a_gpu(divergence):
    flow = ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear(), divergence=divergence)
    flow, solver = flow.cuda(), CudaGraph(Heun(8))
    x = torch.randn(5, 2, device="cuda")
    for _ in range(2):
        generators = [torch.Generator("cuda").manual_seed(0) for _ in range(2)]
        mine = flow.log_prob(x, solver=solver, generator=generators[0])
        torch.testing.assert_close(mine, flow.log_prob(x, solver=Heun(8), generator=generators[1]))
    with pytest.raises(RuntimeError, match="cannot be captured"):
        solver.solve(lambda t, y: -y * y.sum().item(), x, 0.0, 1.0)
