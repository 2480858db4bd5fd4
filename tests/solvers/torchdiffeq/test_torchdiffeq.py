import subprocess
import sys

import pytest
import torch
import torchdiffeq
from torch import nn

import cflow
from cflow.registry import configuration, lookup
from cflow.solvers import (
    RK4,
    Backprop,
    Checkpointed,
    ContinuousAdjoint,
    Dopri8,
    Status,
    Tolerance,
    TorchDiffEq,
)
from cflow.solvers.torchdiffeq.adapter import ADAPTIVE, FIXED, METHODS
from cflow.testing import check_solver

ENDS = [(0.0, 1.0), (1.0, 0.0)]


def make(method, size=0.02, **options):
    options |= {"step_size": size} if method in FIXED else {}
    options |= {"max_order": 4} if method == "explicit_adams" else {}  # the higher ones blow up
    tolerance = 1e-5 if method in ("adaptive_heun", "fehlberg2") else 1e-7
    return TorchDiffEq(method, tolerance, tolerance / 100, options=options)


def field(t, y, rate):
    return -rate * y * torch.cos(t)[:, None]


def start(batch=3, size=2):
    return torch.linspace(-1, 2, batch * size, dtype=torch.float64).reshape(batch, size)


def rates(batch=3):
    return torch.linspace(0.5, 3, batch, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ends", ENDS)
def test_every_method_solves_in_either_direction_and_stays_inside(method, ends):
    seen, shapes = [], set()

    def f(t, y, rate):
        seen.extend(t.tolist())
        shapes.add((t.shape, y.shape))
        return field(t, y, rate)

    solution = make(method).solve(f, start(), *ends, args=(rates(),))
    change = torch.sin(torch.tensor(1.0, dtype=torch.float64)) * (1 if ends[0] == 0 else -1)
    near = 0.1 if method == "euler" else 5e-3
    torch.testing.assert_close(solution.y, start() * torch.exp(-rates() * change), rtol=near, atol=near)
    assert shapes == {(torch.Size([3]), torch.Size([3, 2]))}
    assert min(seen) >= 0
    assert max(seen) <= 1
    assert solution.stats.nfe == len(seen) / 3
    assert solution.stats.evaluations == len(seen)
    assert solution.success.all()
    if method in FIXED:
        assert solution.stats.steps.tolist() == [50] * 3
    elif method in ADAPTIVE:
        assert (solution.stats.steps == solution.stats.accepted + solution.stats.rejected).all()
        assert solution.stats.accepted.min() > 0


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4"])
def test_it_is_torchdiffeqs_own_result_where_that_ends_on_a_step(method):
    f = lambda t, y: torch.stack((y[:, 1] * torch.cos(t), -y[:, 0]), 1)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    options = {"step_size": 0.1} if method == "rk4" else {"step_t": t[1:]}
    ours = make(method, 0.1).solve(lambda t, y: f(t[0], y), start(), 0.0, 1.0).y
    theirs = torchdiffeq.odeint(f, start(), t, method=method, rtol=1e-7, atol=1e-9, options=options)[-1]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")  # the method's own, about its start
@pytest.mark.parametrize("method", ["dopri8", "bosh3", "rk4", "implicit_adams", "scipy_solver"])
@pytest.mark.parametrize("ends", ENDS)
def test_output_times_are_hit(method, ends):
    at = [0.0, 0.25, 0.25, 0.9, 1.0] if ends[0] == 0 else [1.0, 0.9, 0.25, 0.0]
    solution = make(method).solve(field, start(), *ends, args=(rates(),), at=at)
    sines = torch.sin(torch.tensor(at, dtype=torch.float64)) - torch.sin(torch.tensor(ends[0], dtype=torch.float64))
    expected = start() * torch.exp(-rates() * sines[:, None, None])
    # Adams methods restart nowhere, so an output time off the grid costs accuracy of its own.
    near = 1e-5 if method != "implicit_adams" else 1e-3
    torch.testing.assert_close(solution.trajectory, expected, rtol=near, atol=near)
    assert torch.equal(solution.trajectory[-1], solution.y)
    assert torch.equal(solution.trajectory[0], start())


def test_a_step_that_meets_an_output_time_by_chance_does_not_unhinge_the_end():
    seen = []
    f = lambda t, y: seen.extend(t.tolist()) or (5 * t**4)[:, None].expand_as(y)
    solver = TorchDiffEq("dopri5", options={"first_step": 0.25, "max_step": 0.25, "ifactor": 1.0})
    solution = solver.solve(f, start(), 0.0, 0.9, at=[0.25, 0.5, 0.75])
    assert max(seen) <= 0.9
    torch.testing.assert_close(solution.y, start() + 0.9**5)  # the method is exact for this field


def test_states_of_tuples_and_dicts_and_of_two_dtypes():
    y0 = {"x": start(), "more": (torch.ones(3),)}

    def f(t, y):
        assert y["more"][0].dtype == torch.float32
        return {"more": (-y["more"][0],), "x": -2 * y["x"]}

    solution = make("dopri5").solve(f, y0, 0.0, 1.0, at=[0.5])
    torch.testing.assert_close(solution.y["x"], start() * torch.tensor(-2.0).exp().double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(solution.y["more"][0], torch.full((3,), -1.0).exp(), rtol=1e-5, atol=1e-6)
    assert solution.trajectory["more"][0].shape == (1, 3)
    half = make("dopri5").solve(lambda t, y: -y, torch.ones(2, dtype=torch.bfloat16), 0.0, 1.0)
    assert half.y.dtype == torch.bfloat16


def test_quadratures_are_held_to_their_own_tolerance():
    def f(t, y):
        return -y, {"fast": torch.sin(40 * t), "pair": y}

    steps, errors = [], []
    for bound in (None, Tolerance(1e-3, 1e-3), Tolerance(1e-9, 1e-9)):
        asked = {"fast": bound, "pair": None}
        solution = TorchDiffEq("dopri5", 1e-3, 1e-3).solve(f, start(), 0.0, 1.0, quadratures=asked)
        steps.append(solution.stats.steps[0].item())
        exact = (1 - torch.cos(torch.tensor(40.0, dtype=torch.float64))) / 40
        errors.append((solution.quadratures["fast"] - exact).abs().max().item())
        assert solution.quadratures["pair"].shape == (3, 2)
    assert steps[0] < steps[1] < steps[2]
    assert errors[2] < 1e-8 < errors[0]
    backward = TorchDiffEq("dopri5").solve(f, start(), 1.0, 0.0, quadratures={"fast": Tolerance(), "pair": None})
    assert abs(backward.quadratures["fast"][0] + exact) < 1e-4
    with pytest.raises(ValueError, match="scipy has only rtol"):
        make("scipy_solver").solve(f, start(), 0.0, 1.0, quadratures={"fast": Tolerance(1e-3), "pair": None})
    make("scipy_solver").solve(f, start(), 0.0, 1.0, quadratures={"fast": None, "pair": None})


def test_nothing_to_integrate():
    solution = make("dopri5").solve(field, start(), 0.5, 0.5, args=(rates(),), at=[0.5])
    assert torch.equal(solution.y, start())
    assert solution.stats.nfe == 0
    assert make("dopri5").solve(lambda t, y: -y, torch.ones(0, 2), 0.0, 1.0).y.shape == (0, 2)


def test_failures_say_what_happened():
    blow_up = lambda t, y: y * y
    with pytest.raises(RuntimeError, match="torchdiffeq failed .*loosen the tolerances"):
        make("dopri5").solve(blow_up, start() + 2, 0.0, 2.0)
    with pytest.raises(RuntimeError, match="max_num_steps"):
        make("dopri5", max_num_steps=2).solve(lambda t, y: -60 * y, start(), 0.0, 5.0)
    with pytest.raises(RuntimeError, match="torchdiffeq failed"):
        make("dopri5").solve(lambda t, y: y * torch.nan, start(), 0.0, 1.0)
    solution = make("euler").solve(lambda t, y: torch.where(y > 1, torch.inf, -y), start(), 0.0, 1.0)
    assert solution.status.tolist() == [Status.SUCCESS, Status.SUCCESS, Status.NON_FINITE]


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_it_honours_the_contract_of_a_solver(method):
    if method == "rk4":
        build = lambda steps: TorchDiffEq("rk4", options={"step_size": 1.0 / steps})
        order, checks = 4, ["order", "interval", "quadratures", "gradients", "outputs"]
    else:
        build = lambda tolerance: TorchDiffEq("dopri5", tolerance, tolerance)
        order, checks = 5, ["interval", "quadratures", "gradients"]
    check_solver(build, order=order, adaptive=method == "dopri5", checks=checks)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.embed = nn.Linear(1, 2).double()

    def forward(self, t, y, context):
        return self.net(y) * torch.cos(t)[:, None] + context * y


@pytest.mark.parametrize("method", ["dopri8", "bosh3", "rk4", "implicit_adams", "scipy_solver"])
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("seminorm", [True, False])
def test_the_continuous_adjoint_reaches_state_arguments_and_parameters(method, ends, seminorm):
    net, y0, raw = Net(), start().requires_grad_(), rates().requires_grad_()
    wanted = [y0, raw, *net.parameters()]
    gradient = ContinuousAdjoint(seminorm=seminorm)
    options = {"step_size": 0.02} if method in FIXED else {}

    def gradients(solver):
        # The context comes from parameters of the field: they have two ways to the result, and each counts once.
        context = net.embed(raw)
        f = lambda t, y, c: (net(t, y, c), {"q": (y * c).sum(1)})
        solution = solver.solve(
            f, y0, *ends, args=(context,), params=tuple(net.parameters()), quadratures={"q": None}, at=[0.7, 0.7]
        )
        loss = solution.y.square().sum() + solution.quadratures["q"].sin().sum() + solution.trajectory[0].sum()
        return torch.autograd.grad(loss, wanted)

    adjoint = gradients(TorchDiffEq(method, 1e-6, 1e-7, gradient=gradient, options=options))
    exact = gradients(RK4(200))
    for one, other in zip(adjoint, exact):
        near = 1e-3 * other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=max(near, 1e-4))


def test_the_adjoint_may_have_a_method_and_tolerances_of_its_own():
    net, y0 = Net(), start().requires_grad_()
    f = lambda t, y: net(t, y, 0.0)
    grads = []
    for mode in (ContinuousAdjoint(1e-9, 1e-9, "dopri5"), ContinuousAdjoint(1e-1, 1e-1, "fehlberg2"), Backprop()):
        solution = TorchDiffEq("dopri8", 1e-9, 1e-9, gradient=mode).solve(f, y0, 0.0, 1.0)
        grads.append(torch.autograd.grad(solution.y.square().sum(), y0)[0])
    assert (grads[0] - grads[2]).abs().max() < 1e-7 < (grads[1] - grads[2]).abs().max()


def test_the_seminorm_saves_calls_of_the_adjoint():
    net, y0, calls = Net(), start(16).requires_grad_(), []
    f = lambda t, y: calls.append(1) or 3 * net(t, y, 0.0)
    counts = []
    for seminorm in (True, False):
        solver = TorchDiffEq("dopri5", 1e-7, 1e-7, gradient=ContinuousAdjoint(seminorm=seminorm))
        loss = solver.solve(f, y0, 0.0, 1.0).y.square().sum()
        calls.clear()
        loss.backward()
        counts.append(len(calls))
    assert counts[0] < counts[1]


def test_backpropagation_through_torchdiffeq():
    net, y0 = Net(), start().requires_grad_()
    wanted = [y0, *net.net.parameters()]
    f = lambda t, y: net(t, y, 0.0)
    one = torch.autograd.grad(TorchDiffEq("dopri8", 1e-9, 1e-9).solve(f, y0, 0.0, 1.0).y.square().sum(), wanted)
    other = torch.autograd.grad(Dopri8(1e-9, 1e-9).solve(f, y0, 0.0, 1.0).y.square().sum(), wanted)
    for a, b in zip(one, other):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_gradient_that_would_be_lost_raises():
    net, hidden = Net(), Net()
    f = lambda t, y: net(t, y, 0.0) + hidden(t, y, 0.0)
    solver = TorchDiffEq("dopri5", gradient=ContinuousAdjoint())
    y = solver.solve(f, start(), 0.0, 1.0, params=tuple(net.parameters())).y
    with pytest.raises(RuntimeError, match=r"ContinuousAdjoint.* not in args or params"):
        y.sum().backward()
    with pytest.raises(RuntimeError, match="not in args or params"):
        solver.solve(f, start(), 0.0, 1.0, params=())
    with pytest.raises(ValueError, match="scipy cannot be differentiated"):
        TorchDiffEq("scipy_solver").solve(f, start(), 0.0, 1.0)
    with torch.no_grad():
        TorchDiffEq("scipy_solver").solve(f, start(), 0.0, 1.0)


def test_autocast_holds_in_the_adjoint():
    net, seen = Net().float(), set()

    def f(t, y):
        seen.add(net.net[0](y).dtype)
        return net(t, y, 0.0)

    with torch.autocast("cpu", torch.bfloat16):
        y = TorchDiffEq("dopri5", 1e-2, 1e-2, gradient=ContinuousAdjoint()).solve(f, start().float(), 0.0, 1.0).y
    y.sum().backward()
    assert seen == {torch.bfloat16}
    assert net.net[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: TorchDiffEq("dopri7"), ValueError, "no such method; choose from .*dopri8"),
        (lambda: TorchDiffEq("dopri8", rtol=-1.0), ValueError, "tolerances"),
        (lambda: TorchDiffEq("dopri8", options={"max_steps": 3}), ValueError, "no option 'max_steps'; it takes"),
        (lambda: TorchDiffEq("euler"), ValueError, "needs a grid; pass"),
        (lambda: TorchDiffEq("euler", options={"step_size": 0.1, "grid_constructor": 1}), ValueError, "pass either"),
        (lambda: TorchDiffEq("dopri8", gradient=Checkpointed()), ValueError, "Dopri8.gradient=Checkpointed"),
        (lambda: TorchDiffEq("dopri8", gradient="adjoint"), TypeError, "expected a gradient mode"),
        (lambda: TorchDiffEq("dopri8", gradient=ContinuousAdjoint(method="euler")), ValueError, "has no grid"),
        (lambda: TorchDiffEq("dopri8", gradient=ContinuousAdjoint(method="x")), ValueError, "is unknown"),
    ],
)
def test_what_cannot_be_honoured_is_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_flow_takes_it_with_its_log_determinant(generator):
    flow = cflow.ContinuousFlow(cflow.fields.MLP(2), cflow.bases.Normal(2)).double()
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    exact = flow.log_prob(x, solver=Dopri8(1e-9, 1e-9))
    for gradient in (Backprop(), ContinuousAdjoint()):
        value = flow.log_prob(x, solver=TorchDiffEq("dopri8", 1e-8, 1e-8, gradient=gradient))
        torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-6)
        flow.zero_grad()
        value.sum().backward()
        assert all(parameter.grad is not None for parameter in flow.field.parameters())


def test_it_is_rebuilt_from_its_configuration_and_loads_torchdiffeq_when_used():
    solver = TorchDiffEq("rk4", gradient=ContinuousAdjoint(1e-3), options={"step_size": 0.1})
    assert TorchDiffEq(**configuration(solver)) == solver
    assert lookup("solvers.TorchDiffEq") is TorchDiffEq
    code = "import sys, cflow.solvers; assert 'torchdiffeq' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
