import dataclasses
import functools
import gc
import weakref

import pytest
import torch
from torch import nn

import cflow
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
from cflow.solvers.adjoint import Output, Step
from cflow.solvers.gradients import without_graph
from cflow.solvers.parameters import parameters_of
from cflow.solvers.solver import Problem

METHODS = [Euler, Midpoint, Heun, Ralston, RK4]


class Net(nn.Module):
    """A field with a context, a parameter that is used twice and one that is not used."""

    def __init__(self, size=3, width=8, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Linear(size + 1, width, dtype=dtype)
        self.leave = nn.Linear(width, size, dtype=dtype)
        self.twice = nn.Parameter(torch.tensor([0.3] * size, dtype=dtype))
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))
        self.calls = 0

    def forward(self, t, y, context=None):
        self.calls += 1
        hidden = torch.tanh(self.enter(torch.cat((y, t[:, None].to(y.dtype)), 1)))
        shift = 0.0 if context is None else context
        return self.leave(hidden) * self.twice + torch.sin(self.twice) + shift * y


def start(batch=4, size=3, dtype=torch.float64):
    return torch.randn(batch, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def gradients(loss, tensors):
    return torch.autograd.grad(loss, tensors, allow_unused=True)


def close(one, other, rtol=1e-10):
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())


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


@pytest.mark.parametrize(("method", "stages"), [(Euler, 1), (Midpoint, 2), (Ralston, 2), (RK4, 4)])
def test_the_backward_pass_takes_at_most_twice_the_stages(method, stages):
    net, y0 = Net(), start().requires_grad_()
    solution = method(7, gradient=Checkpointed()).solve(net, y0, 0.0, 1.0)
    assert net.calls == solution.stats.nfe == 7 * stages
    solution.y.sum().backward()
    assert net.calls - solution.stats.nfe == 7 * (2 * stages - 1)


def test_steps_behind_the_last_result_that_counts_are_not_walked():
    net, y0 = Net(), start().requires_grad_()
    outputs = Euler(10, gradient=Checkpointed()).solve(net, y0, 0.0, 1.0, quadratures=None, at=(0.2,))
    net.calls = 0
    outputs.trajectory.sum().backward()
    assert net.calls == 2


def graph_bytes(solve):
    """Counts the bytes that the graph of a solve saves."""
    total = 0

    def pack(tensor):
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = solve()
    return total, result


def test_memory_is_a_state_per_step():
    net, y0 = Net(width=64), start().requires_grad_()
    solve = lambda steps, gradient: graph_bytes(lambda: RK4(steps, gradient=gradient).solve(net, y0, 0.0, 1.0).y)[0]
    few, many = (solve(steps, Checkpointed()) for steps in (10, 110))
    assert many - few == 100 * y0.numel() * 8
    few, many = (solve(steps, Backprop()) for steps in (10, 110))
    assert many - few > 50 * 100 * y0.numel() * 8


class Box:
    def __init__(self, tensor):
        self.tensor = tensor


def test_the_backward_pass_holds_the_graph_of_one_evaluation():
    net, alive, held = Net(), weakref.WeakSet(), []

    def pack(tensor):
        box = Box(tensor)
        alive.add(box)
        return box

    def f(t, y):
        held.append(len(alive))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
            return net(t, y)

    y = RK4(6, gradient=Checkpointed()).solve(f, start().requires_grad_(), 0.0, 1.0).y
    y.sum().backward()
    assert max(held) == 0
    RK4(6).solve(f, start().requires_grad_(), 0.0, 1.0).y.sum().backward()
    assert max(held) > 20


def test_memory_is_flat_over_many_solves_and_nothing_is_kept():
    net, solver = Net(), Heun(3, gradient=Checkpointed())

    def run(net):
        solution = solver.solve(net, start().requires_grad_(), 0.0, 1.0, at=(0.5, 1.0))
        (solution.y.sum() + solution.trajectory.sum()).backward()

    gc.collect()
    gc.disable()  # what a cycle keeps counts as kept
    try:
        counts = []
        for turn in range(50):
            run(net)
            if turn in (2, 49):
                counts.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))
        assert counts[0] == counts[1]
        solution = solver.solve(net, start().requires_grad_(), 0.0, 1.0, at=(0.5,))
        module, state = weakref.ref(net), weakref.ref(solution.y)
        del net, solution
        assert state() is None
    finally:
        gc.enable()
    assert module() is None


def test_a_second_derivative_is_refused_also_where_it_would_be_lost():
    y0 = start().requires_grad_()
    net = Net()
    y = Heun(3, gradient=Checkpointed()).solve(net, y0, 0.0, 1.0).y
    (first,) = torch.autograd.grad(y.sum(), y0, create_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(Heun(3).solve(net, y0, 0.0, 1.0).y.sum(), y0)[0])
    with pytest.raises(RuntimeError, match="once differentiable.*gradient=Backprop"):
        first.square().sum().backward()


def test_results_can_be_differentiated_again_with_retain_graph_and_not_without():
    y0 = start().requires_grad_()
    y = Heun(3, gradient=Checkpointed()).solve(Net(), y0, 0.0, 1.0).y
    one = torch.autograd.grad(y.sum(), y0, retain_graph=True)
    close(one, torch.autograd.grad(y.sum(), y0))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), y0)


def test_a_change_in_place_is_noticed():
    y0, net = start(), Net()
    y = Heun(3, gradient=Checkpointed()).solve(net, y0, 0.0, 1.0).y
    y0.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_no_graph_where_none_is_wanted():
    net = Net()
    with torch.no_grad():
        assert not Euler(3, gradient=Checkpointed()).solve(net, start(), 0.0, 1.0).y.requires_grad
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    assert not Euler(3, gradient=Checkpointed()).solve(net, start(), 0.0, 1.0).y.requires_grad


def test_a_gradient_that_would_be_lost_raises():
    net, hidden = Net(), Net()
    field = lambda t, y: net(t, y) + hidden(t, y)
    y = Euler(3, gradient=Checkpointed()).solve(field, start(), 0.0, 1.0, params=tuple(net.parameters())).y
    with pytest.raises(RuntimeError, match=r"would be lost; pass params=.*"):
        y.sum().backward()
    with pytest.raises(RuntimeError, match="would be lost"):
        Euler(3, gradient=Checkpointed()).solve(field, start(), 0.0, 1.0, params=())
    field = lambda t, y: hidden.twice.expand_as(y)
    y = Euler(3, gradient=Checkpointed()).solve(field, start().requires_grad_(), 0.0, 1.0, params=()).y
    with pytest.raises(RuntimeError, match="would be lost"):
        y.sum().backward()


def test_a_tensor_and_what_it_was_computed_from_cannot_both_be_parameters():
    net = Net()

    def loss(gradient, also=None):
        weight = net.twice.sin()
        field = lambda t, y: y * weight
        params = None if also is None else (weight, also)
        return Euler(2, gradient=gradient).solve(field, start(), 0.0, 1.0, params=params).y.sum()

    with pytest.raises(ValueError, match="counted twice"):
        loss(Checkpointed(), net.twice)
    close(gradients(loss(Checkpointed()), [net.twice]), gradients(loss(Backprop()), [net.twice]))


class Holder:
    def __init__(self, net):
        self.net = net

    def __call__(self, t, y):
        return self.net(t, y)

    def method(self, t, y):
        return self.net(t, y)


GLOBAL = Net()


def by_global(t, y):
    return GLOBAL(t, y)


def test_parameters_are_found_where_a_function_refers_to_them():
    net = Net()
    expected = {id(each) for each in net.parameters()}
    shape = lambda net, t, y: net(t, y)
    nested = [lambda t, y: net(t, y)]
    for f in (
        net, net.forward, lambda t, y: net(t, y), functools.partial(shape, net), Holder(net), Holder(net).method,
        lambda t, y, held=net: held(t, y), lambda t, y: nested[0](t, y),
    ):  # fmt: skip
        assert {id(each) for each in parameters_of(f)} == expected
    assert {id(each) for each in parameters_of(by_global)} == {id(each) for each in GLOBAL.parameters()}
    assert parameters_of(lambda t, y: -y) == ()


def test_rows_at_rest_and_rows_that_are_missing_pass_their_cotangent_on():
    """Takes steps as an adaptive solver records them: rows left out, rows that rest, dense output inside a step."""
    net, y0, context = Net(), start(5).requires_grad_(), start(5).requires_grad_()
    rows = torch.tensor([3, 0, 4])
    h = torch.tensor([0.2, 0.0, 0.3], dtype=torch.float64)
    dense = [0.1, torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64)]
    mask = torch.tensor([True, False, True])
    tableau = Heun.tableau
    f = lambda t, y, c: (net(t, y, c), {"q": (y * c).sum(1)})

    def walk(problem, tape):
        y, q = problem.y0[0], torch.zeros(5, dtype=torch.float64)
        t = torch.zeros(5, dtype=torch.float64)
        (k1,), (g1,) = problem(t, [y])
        (k2,), (g2,) = problem(t + 0.5, [y + 0.5 * k1])
        if tape is not None:
            tape.steps.append(Step(tableau, [y], [t, t + 0.5], 0.5))
        y, q = y + 0.25 * (k1 + k2), q + 0.25 * (g1 + g2)
        part, args, t = y[rows], (problem.args[0][rows],), torch.full((3,), 0.5, dtype=torch.float64)
        (k1,), (g1,) = problem(t, [part], args)
        (k2,), (g2,) = problem(t + h, [part + h[:, None] * k1], args)
        if tape is not None:
            tape.steps.append(Step(tableau, [part], [t, t + h], h, rows, [Output(0, dense, mask), Output(1)]))
        inner = part + h[:, None] * (dense[0] * k1 + dense[1][:, None] * k2)
        end = part + h[:, None] / 2 * (k1 + k2)
        out = torch.zeros_like(y).index_add(0, rows, torch.where(mask[:, None], inner, 0.0))
        last = torch.zeros_like(y).index_add(0, rows, end)
        y, q = y.index_copy(0, rows, end), q.index_add(0, rows, h / 2 * (g1 + g2))
        return [y], [q], [[out], [last]]

    results = []
    for gradient in (Checkpointed(), Backprop()):
        solver = Heun(1, gradient=gradient)
        problem = Problem(solver, f, y0, 0.0, 1.0, (context,), {"q": None}, None, None)
        tape = gradient.begin(problem, None)
        with without_graph(tape):
            parts, integrals, outputs = walk(problem, tape)
        if tape is not None:
            parts, integrals, outputs = tape.attach(parts, integrals, outputs)
        values = [parts[0], integrals[0], outputs[0][0], outputs[1][0]]
        loss = sum((weight * value.sin()).sum() for weight, value in enumerate(values, start=1))
        results.append(gradients(loss, [y0, context, *net.parameters()]))
    close(*results)


def test_a_row_at_rest_where_the_field_is_not_finite_does_not_spoil_its_cotangent():
    y0 = torch.tensor([[0.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    f = lambda t, y: torch.sqrt(y)  # finite at zero, where its slope is not; not a number below
    problem = Problem(Heun(1), f, y0, 0.0, 1.0, (), None, None, None)
    tape = Checkpointed().begin(problem, None)
    times = [torch.zeros(2, dtype=torch.float64)] * 2
    tape.steps.append(Step(Heun.tableau, [y0.detach()], times, torch.tensor([0.0, 0.0], dtype=torch.float64)))
    (y,), _, _ = tape.attach([y0.detach().clone()], [], [])
    (y * torch.tensor([[2.0], [3.0]])).sum().backward()
    assert y0.grad.tolist() == [[2.0], [3.0]]


def test_a_general_tableau_has_the_gradient_of_backpropagation():
    net, y0 = Net(), start().requires_grad_()
    wanted = [y0, *net.parameters()]
    for options in ({}, {"per_sample": False}):
        loss = lambda mode, options=options: (
            Dopri5(1e-3, 1e-3, gradient=mode, **options).solve(net, y0, 0.0, 1.0, at=(0.1, 0.7)).trajectory.sin().sum()
        )
        close(gradients(loss(Checkpointed()), wanted), gradients(loss(Backprop()), wanted))


def test_parameters_in_half_precision_are_summed_in_single():
    net = Net(dtype=torch.bfloat16)
    y0, errors = start(64, dtype=torch.float32), {}
    f = lambda net, dtype: lambda t, y: net(t.to(dtype), y.to(dtype))
    exact = Net(dtype=torch.float64)
    exact.load_state_dict(net.state_dict())
    loss = RK4(400).solve(f(exact, torch.float64), y0.double(), 0.0, 1.0).y.square().sum()
    (truth,) = gradients(loss, [exact.twice])
    for mode in (Checkpointed(), Backprop()):
        loss = RK4(400, gradient=mode).solve(f(net, torch.bfloat16), y0, 0.0, 1.0).y.square().sum()
        errors[type(mode)] = (gradients(loss, [net.twice])[0].double() - truth).abs().max()
    assert errors[Checkpointed] < 0.1 * errors[Backprop]


def test_gradients_that_autograd_hands_out_as_one_tensor_are_kept_apart():
    a, b = (start().requires_grad_() for _ in range(2))
    field = lambda t, y: a + b
    y = Heun(3, gradient=Checkpointed()).solve(field, start(), 0.0, 1.0, params=(a, b)).y
    for gradient in gradients(y.sum(), [a, b]):
        torch.testing.assert_close(gradient, torch.ones_like(gradient))


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
    with pytest.raises(TypeError, match=r"pass Backprop\(\) or Checkpointed\(\)"):
        Euler(3, gradient=Checkpointed)
    with pytest.raises(TypeError, match="option object"):
        Euler(3, gradient="checkpointed")
    with pytest.raises(ValueError, match="needs its noise again|need its noise again"):
        EulerMaruyama(3, gradient=Checkpointed())
    with pytest.raises(ValueError, match="no continuous adjoint.*TorchDiffEq"):
        Euler(3, gradient=ContinuousAdjoint()).solve(lambda t, y: -y, torch.ones(1), 0.0, 1.0)
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
