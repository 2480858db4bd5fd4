"""Checks of gradients, of failures of single samples, of host reads, and of memory."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import torch

from cflow.solvers.solution import Status
from cflow.testing.checks import demand
from cflow.testing.solvers.operations import Operations
from cflow.testing.solvers.subject import Subject, ones, options

__all__ = ["failures", "gradients", "host_reads", "memory", "second_derivatives"]


def gradients(subject: Subject) -> None:
    solver = subject.make(1e-10) if subject.adaptive else subject.make(3)
    generator = torch.Generator().manual_seed(0)
    y0, shift = (torch.randn(2, 2, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    weight = torch.randn(2, 2, generator=generator, dtype=torch.float64).requires_grad_()

    def solve(y0, shift, weight):
        def field(t, y, shift):
            dy = torch.tanh(y @ weight + shift * t.unsqueeze(1))
            return dy, {"energy": dy.square().sum(1)}

        solution = solver.solve(
            field, y0, 0.0, 1.0, args=(shift,), params=(weight,), quadratures={"energy": None}, at=[0.5]
        )
        return solution.y, solution.quadratures["energy"], solution.trajectory

    demand(
        all(output.requires_grad for output in solve(y0, shift, weight)),
        "gradients: the state, a quadrature or the trajectory has no graph",
    )
    try:
        torch.autograd.gradcheck(solve, (y0, shift, weight), eps=1e-4, atol=1e-5, rtol=1e-4)
    except RuntimeError as error:
        raise AssertionError(f"gradients: autograd and finite differences disagree: {error}") from error


def failures(subject: Subject) -> None:
    solver = subject.usual
    bad = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)

    def poisoned(t, y, bad):
        return torch.where(((bad > 0) & (t > 0.5)).unsqueeze(1), torch.nan, -y)

    solution = solver.solve(poisoned, ones(3, 2), 0.0, 1.0, args=(bad,))
    healthy = solver.solve(poisoned, ones(3, 2), 0.0, 1.0, args=(torch.zeros_like(bad),))
    demand(
        solution.status.tolist() == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS],
        f"failures: with a field that is NaN only for sample 1 the statuses are {solution.status.tolist()}",
    )
    demand(
        (solution.y - healthy.y)[[0, 2]].abs().max() < (1e-5 if subject.joint else 1e-12),
        "failures: a NaN in one sample changes the results of others",
    )
    if not subject.adaptive:
        return
    last = solution.stats.reached[1].item()
    demand(
        bool(torch.isfinite(solution.y).all()) and 0.45 < last <= 0.5,
        f"failures: the failed sample must stop at its last finite state, just before 0.5, not at t = {last}",
    )
    start = torch.tensor([[0.1], [2.0], [0.5]], dtype=torch.float64)
    burst = solver.solve(lambda t, y: y * y, start, 0.0, 1.0)
    demand(
        burst.status[1] != Status.SUCCESS and burst.success[[0, 2]].all(),
        f"failures: y' = y^2 with a singularity in sample 1 ends with statuses {burst.status.tolist()}",
    )
    exact = start / (1 - start)
    demand(
        (burst.y - exact)[[0, 2]].abs().max() < 1e-2 and abs(burst.stats.reached[1].item() - 0.5) < 1e-2,
        "failures: a singularity in one sample changes the others, or is not noticed",
    )
    if "max_steps" in options(solver) and not subject.joint:
        rates = torch.tensor([[1.0], [300.0]], dtype=torch.float64)
        decay, start = (lambda t, y, rate: -rate * y), ones(2, 1)
        easy, hard = subject.make(1e-6).solve(decay, start, 0.0, 1.0, args=(rates,)).stats.steps.tolist()
        limited = replace(subject.make(1e-6), max_steps=easy)
        short = limited.solve(decay, start, 0.0, 1.0, args=(rates,))
        demand(
            hard > easy
            and short.status.tolist() == [Status.SUCCESS, Status.MAX_STEPS]
            and short.stats.steps.tolist() == [easy, easy],
            f"failures: samples of {easy} and {hard} steps under a limit of {easy} end with statuses "
            f"{short.status.tolist()} after {short.stats.steps.tolist()} steps",
        )


def host_reads(subject: Subject) -> None:
    rates = torch.logspace(-1, 1.5, 16, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad(), Operations() as operations:
        solution = subject.usual.solve(lambda t, y, rate: -rate * y, ones(16, 1), 0.0, 1.0, args=(rates,))
    # One read per attempted step, and one for the first step if all samples share it.
    allowed = int(solution.stats.steps.max()) + subject.joint if subject.adaptive else 0
    demand(
        operations.reads <= allowed,
        f"host reads: {operations.reads} values are read from the device, at most {allowed} allowed",
    )


class _Network(torch.nn.Module):
    """A field with parameters; a weak reference to it shows when it is deleted."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(2, dtype=torch.float64))

    def forward(self, t, y):
        return torch.tanh(y @ self.weight)


def second_derivatives(subject: Subject) -> None:
    solver = subject.make(1e-8) if subject.adaptive else subject.make(2)
    y0 = torch.tensor([[0.3, -0.2], [0.1, 0.7]], dtype=torch.float64, requires_grad=True)
    network = _Network()
    solve = lambda y0, weight: solver.solve(lambda t, y: torch.tanh(y @ weight), y0, 0.0, 1.0, params=(weight,)).y
    if solver.gradient is not None and solver.gradient.through == "steps":
        (slope,) = torch.autograd.grad(solve(y0, network.weight).sum(), y0, create_graph=True)
        try:
            torch.autograd.grad(slope.sum(), y0)
        except RuntimeError as error:
            demand("once" in str(error), f"second derivatives: the error does not state the reason: {error}")
        else:
            raise AssertionError("second derivatives: a once-differentiable gradient was differentiated again")
        return
    try:
        torch.autograd.gradgradcheck(solve, (y0, network.weight), eps=1e-4, atol=1e-5, rtol=1e-3)
    except RuntimeError as error:
        raise AssertionError(f"second derivatives: autograd and finite differences disagree: {error}") from error


def memory(subject: Subject) -> None:
    """Checks that repeated solves do not add live tensors, and that a field is deleted with its last reference."""
    solver = subject.make(1e-4) if subject.adaptive else subject.make(4)

    def solve():
        network, y0 = _Network(), ones(2, 2).requires_grad_()
        solution = solver.solve(network, y0, 0.0, 1.0, at=[0.5], params=tuple(network.parameters()))
        (solution.y.sum() + solution.trajectory.sum()).backward()
        return weakref.ref(network)

    def live():
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    solve()
    before = live()
    references = [solve() for _ in range(50)]
    after = live()
    demand(after <= before, f"memory: {after - before} tensors remain after 50 solves")
    demand(not any(reference() for reference in references), "memory: a field remains after its last reference")
