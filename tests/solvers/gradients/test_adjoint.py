"""The exact adjoint: what it costs and keeps, what it refuses, and records of steps of every kind."""

import gc
import weakref

import pytest
import torch
from gradient_standins import Net, close, gradients, start

from cflow.solvers import (
    RK4,
    Backprop,
    Checkpointed,
    Dopri5,
    Euler,
    Heun,
    Midpoint,
    Problem,
    Ralston,
)
from cflow.solvers.gradients.adjoint import Output, Step
from cflow.solvers.gradients.modes import without_graph


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
        problem = Problem(solver, f, y0, 0.0, 1.0, args=(context,), quadratures={"q": None})
        tape = gradient.begin(problem)
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
    problem = Problem(Heun(1), f, y0, 0.0, 1.0)
    tape = Checkpointed().begin(problem)
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
