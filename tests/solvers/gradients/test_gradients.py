"""Gradients through a solve: the same by every mode, for every kind of state, network and flow."""

import dataclasses

import pytest
import torch
from gradient_standins import Net, close, gradients, start
from torch import nn

import cflow
from cflow import solvers
from cflow.bases import Normal
from cflow.divergence import Exact, Hutchinson
from cflow.fields import MLP
from cflow.guidance import AutoGuidance
from cflow.paths import Linear
from cflow.solvers import (
    RK4,
    Backprop,
    Checkpointed,
    ContinuousAdjoint,
    Dopri5,
    Euler,
    EulerMaruyama,
    Heun,
    Midpoint,
    Ralston,
)

METHODS = [Euler, Midpoint, Heun, Ralston, RK4]


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_in_the_state_the_arguments_and_the_parameters(method):
    solver = method(2, gradient=Checkpointed())

    def solve(y0, context, weight, bias):
        f = lambda t, y, c: torch.tanh(y @ weight + t[:, None]) * c + bias * y
        solution = solver.solve(f, y0, 0.0, 1.0, args=(context,), params=(weight, bias), at=(0.25, 1.0))
        return solution.y, solution.trajectory

    inputs = [start(2, 2), start(2, 2) + 1, start(2, 2).clone(), torch.tensor(0.4, dtype=torch.float64)]
    assert torch.autograd.gradcheck(solve, [each.requires_grad_() for each in inputs])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.2)])
def test_the_exact_gradient_is_that_of_backpropagation(method, ends):
    net, y0, context = Net(), start().requires_grad_(), (start() / 3).requires_grad_()
    wanted = [y0, context, *net.parameters()]
    at = (0.5, 0.9, 0.9) if ends[0] < ends[1] else (0.9, 0.9, 0.5)

    def loss(gradient):
        f = lambda t, y, c: (net(t, y, c), {"energy": net(t, y, c).square().sum(1), "pair": y[:, :2] * net.twice[:2]})
        solution = method(5, gradient=gradient).solve(
            f, y0, *ends, args=(context,), quadratures={"energy": None, "pair": None}, at=at
        )
        values = [solution.y.square().sum(), solution.trajectory.pow(3).sum()]
        values += [solution.quadratures["energy"].exp().sum(), solution.quadratures["pair"].sin().sum()]
        return sum(values)

    exact, plain = loss(Checkpointed()), loss(Backprop())
    assert torch.equal(exact, plain)
    close(gradients(exact, wanted), gradients(plain, wanted))


def test_one_result_alone_has_its_gradient():
    net, y0 = Net(), start().requires_grad_()
    wanted = [y0, *net.parameters()]
    f = lambda t, y: (net(t, y), {"q": net(t, y).sum(1)})
    solve = lambda gradient: Heun(6, gradient=gradient).solve(f, y0, 0.0, 1.0, quadratures={"q": None}, at=(0.5, 1.0))
    for read in (lambda s: s.y.sum(), lambda s: s.quadratures["q"].sum(), lambda s: s.trajectory[0].sum()):
        close(gradients(read(solve(Checkpointed())), wanted), gradients(read(solve(Backprop())), wanted))


def test_states_of_tuples_and_dicts():
    net = Net()
    for y0 in ((start(), start(4, 2)), {"x": start(), "aux": (start(4, 2),)}):
        flat = torch.utils._pytree.tree_leaves(y0)
        for part in flat:
            part.requires_grad_()

        def f(t, y):
            if isinstance(y, tuple):
                return net(t, y[0]), y[0][:, :2] * y[1]
            return {"aux": (y["x"][:, :2] * y["aux"][0],), "x": net(t, y["x"])}

        def loss(gradient, f=f, y0=y0):
            solution = RK4(4, gradient=gradient).solve(f, y0, 0.0, 1.0, params=tuple(net.parameters()), at=(0.3,))
            return sum(
                leaf.square().sum() for leaf in torch.utils._pytree.tree_leaves((solution.y, solution.trajectory))
            )

        wanted = [*flat, *net.parameters()]
        close(gradients(loss(Checkpointed()), wanted), gradients(loss(Backprop()), wanted))


def test_a_part_without_gradient_and_arguments_of_other_kinds():
    net, y0 = Net(), start()
    context = start().requires_grad_()
    args = (context, torch.arange(4), None, {"flag": True, "scale": start()})

    def f(t, y, c, number, nothing, more):
        assert number.dtype == torch.int64
        assert nothing is None
        assert more["flag"] is True
        return net(t, y, c) * more["scale"] + number[:, None]

    loss = lambda gradient: Midpoint(3, gradient=gradient).solve(f, y0, 0.0, 1.0, args=args).y.square().sum()
    wanted = [context, *net.parameters()]
    close(gradients(loss(Checkpointed()), wanted), gradients(loss(Backprop()), wanted))
    assert loss(Checkpointed()).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_states_and_networks_in_lower_precision(dtype):
    net, y0 = Net(dtype=dtype), start(dtype=dtype).requires_grad_()
    loss = lambda gradient: RK4(4, gradient=gradient).solve(net, y0, 0.0, 1.0).y.float().square().sum()
    wanted = [y0, net.enter.weight, net.twice]
    # Backpropagation sums a bfloat16 parameter's gradient in bfloat16, so this is as near as it can be.
    close(
        gradients(loss(Checkpointed()), wanted),
        gradients(loss(Backprop()), wanted),
        3e-2 if dtype.itemsize == 2 else 1e-5,
    )


def test_autocast_holds_in_the_backward_pass():
    net, y0 = Net(dtype=torch.float32), start(dtype=torch.float32).requires_grad_()
    seen = set()

    def f(t, y):
        value = net(t, y)
        seen.add((torch.is_autocast_enabled("cpu"), net.leave(torch.ones(1, 8)).dtype))
        return value

    wanted = [y0, net.enter.weight, net.twice]
    results = []
    for gradient in (Checkpointed(), Backprop()):
        with torch.autocast("cpu", torch.bfloat16):
            loss = Heun(4, gradient=gradient).solve(f, y0, 0.0, 1.0).y.square().sum()
        results.append(gradients(loss, wanted))
    assert seen == {(True, torch.bfloat16)}
    close(*results, 2e-2)
    assert not torch.is_autocast_enabled("cpu")


def test_a_solve_leaves_no_weights_without_gradient_in_autocasts_cache():
    net = Net(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        Heun(2, gradient=Checkpointed()).solve(net, start(dtype=torch.float32), 0.0, 1.0)
        later = net(torch.zeros(4), start(dtype=torch.float32)).sum()
    assert all(each is not None for each in gradients(later, [net.enter.weight, net.leave.weight]))


def test_no_graph_where_none_is_wanted():
    net = Net()
    with torch.no_grad():
        assert not Euler(3, gradient=Checkpointed()).solve(net, start(), 0.0, 1.0).y.requires_grad
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    assert not Euler(3, gradient=Checkpointed()).solve(net, start(), 0.0, 1.0).y.requires_grad


def test_a_divergence_inside_the_field():
    net, y0 = Net(), start().requires_grad_()

    def f(t, y):
        v, div, norm = Exact()(net, t, y, None)
        return v, {"ladj": div, "norm": norm}

    def loss(gradient):
        solution = RK4(3, gradient=gradient).solve(f, y0, 1.0, 0.0, quadratures={"ladj": None, "norm": None})
        return solution.y.sum() + solution.quadratures["ladj"].sum() + solution.quadratures["norm"].sum()

    wanted = [y0, *net.parameters()]
    close(gradients(loss(Checkpointed()), wanted), gradients(loss(Backprop()), wanted))


def test_modes_that_a_solver_does_not_have_are_refused():
    with pytest.raises(TypeError, match=r"pass solvers.Backprop\(\) or solvers.Checkpointed\(\)"):
        Euler(3, gradient=Checkpointed)
    with pytest.raises(TypeError, match="expected a gradient mode"):
        Euler(3, gradient="checkpointed")
    with pytest.raises(ValueError, match="noise of a step is not kept"):
        EulerMaruyama(3, gradient=Checkpointed())
    with pytest.raises(ValueError, match="no continuous adjoint.*TorchDiffEq"):
        Euler(3, gradient=ContinuousAdjoint())
    with pytest.raises(ValueError, match="no continuous adjoint.*TorchDiffEq"):
        Dopri5(gradient=ContinuousAdjoint())
    with pytest.raises(ValueError, match="rtol=-1"):
        ContinuousAdjoint(rtol=-1.0)


@pytest.mark.parametrize(
    "solver", [RK4(4), Dopri5(1e-4), Dopri5(1e-4, per_sample=False)], ids=["grid", "sample", "joint"]
)
@pytest.mark.parametrize("divergence", [Exact(), Hutchinson()])
def test_a_flow_has_the_same_gradients_in_both_modes(solver, divergence):
    flow = cflow.ContinuousFlow(
        MLP(2, (16, 16), context=3), Normal(2), divergence=divergence, context_shape=(3,)
    ).double()  # fmt: skip
    for parameter in flow.field.parameters():  # a fresh field is zero
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(5))
    x, context = (start(6, size).requires_grad_() for size in (2, 3))
    wanted = [x, context, *flow.field.parameters()]

    def loss(mode):
        chosen, generator = dataclasses.replace(solver, gradient=mode), torch.Generator().manual_seed(3)
        density = flow.log_prob(x, context, solver=chosen, generator=generator).sum()
        draw, log_prob = flow.rsample_and_log_prob((), context, solver=chosen, generator=generator)
        return density + draw.square().sum() + log_prob.sin().sum()

    close(gradients(loss(Checkpointed()), wanted), gradients(loss(Backprop()), wanted), 1e-9)


def test_a_weak_field_that_guides_gets_its_gradient_too():
    """Parameters are found through all that the integrand refers to, guidance included."""
    fields_of_both = [MLP(2, (16,)) for _ in range(2)]
    for field in fields_of_both:
        for parameter in field.parameters():
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(5))
    strong, weak = (field.double() for field in fields_of_both)
    flow = cflow.ContinuousFlow(strong, Normal(2), path=Linear()).double()
    wanted, found = [*strong.parameters(), *weak.parameters()], []
    for mode in (Checkpointed(), Backprop()):
        draw = flow.rsample(
            (5,), solver=Heun(4, gradient=mode), guidance=AutoGuidance(weak, 2.0),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        found.append(gradients(draw.square().sum(), wanted))
    assert all(bool(each.any()) for each in found[0])
    close(found[0], found[1], 1e-10)


def test_the_option_is_saved_with_a_flow(tmp_path):
    flow = cflow.ContinuousFlow(MLP(2), Normal(2), solver=Heun(nfe=10, gradient=Checkpointed()))
    cflow.save(flow, tmp_path / "flow")
    assert cflow.load(tmp_path / "flow").solver == flow.solver


class Counted(torch.nn.Module):
    """A field with an integral, which it can leave out; counts how often it is asked for both and for one."""

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))
        self.both = self.one = 0

    def forward(self, t, y):
        self.both += 1
        return self.slope(t, y), {"size": y.square().sum(1) * t}

    def alone(self, t, y):
        self.one += 1
        return self.slope(t, y)

    def slope(self, t, y):
        return torch.sin(y * self.rate + t[:, None])


@pytest.mark.parametrize(
    ("solver", "both", "one"),
    [
        (solvers.Midpoint(3), 3, 3),  # the first stage has no weight
        (solvers.RK4(3), 12, 0),
        (solvers.RK4(3, gradient=solvers.Checkpointed()), 12, 0),
        (solvers.Dopri5(1e-4, 1e-4, gradient=solvers.Checkpointed()), None, None),
    ],
)
def test_integrals_are_computed_where_they_count(solver, both, one, generator):
    """Results and gradients are those of a field that has no shorter answer, from fewer integrands."""
    y0 = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    found, fields = [], []
    for shorter in (True, False):
        field = Counted()
        f = field if shorter else lambda t, y, field=field: field(t, y)
        solution = solver.solve(f, y0, 0.0, 1.0, params=list(field.parameters()), quadratures={"size": None})
        total = solution.y.sum() + solution.quadratures["size"].square().sum()
        if both is not None and shorter:
            assert (field.both, field.one) == (both, one)
        found.append([solution.y, solution.quadratures["size"], *torch.autograd.grad(total, [y0, field.rate])])
        fields.append(field)
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)
    assert fields[0].both <= fields[1].both
    assert fields[0].both + fields[0].one == fields[1].both
    if isinstance(solver.gradient, solvers.Checkpointed):
        assert fields[0].one > 0  # states that are computed again need no integrals
