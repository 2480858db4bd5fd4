"""What every solver of ordinary differential equations must do, as a suite that any implementation can be run on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cflow.registry import replace
from cflow.solvers.adaptive import Adaptive
from cflow.solvers.fixed import FixedGrid
from cflow.solvers.solution import Status, Tolerance
from cflow.solvers.solver import Solver

__all__ = ["SOLVER_CHECKS", "check_solver"]


def check_solver(
    solver: Solver | Callable[[float], Solver],
    *,
    order: int | None = None,
    adaptive: bool | None = None,
    checks: Sequence[str] | None = None,
) -> None:
    """Checks that a solver honours the contract of :class:`cflow.solvers.Solver`; takes about a second on a CPU.

    Args:
        solver: a solver of this package, or a function that makes one from the number of steps (fixed grids) or from
            the tolerance, relative and absolute (adaptive).
        order: the order of convergence; read from the tableau where there is one.
        adaptive: whether steps follow a tolerance; known for solvers of this package.
        checks: names from ``SOLVER_CHECKS`` to run alone.

    Raises:
        AssertionError: naming the property that fails and by how much.
        ValueError: if ``order`` or ``adaptive`` is missing or a check is unknown.

    Example:
        >>> from cflow.solvers import Heun
        >>> check_solver(Heun(10), checks=["order", "batch"])
    """
    if isinstance(solver, FixedGrid):
        make, adaptive = (lambda steps: replace(solver, steps=int(steps), grid=None)), False
    elif isinstance(solver, Adaptive):
        make, adaptive = (lambda tolerance: replace(solver, rtol=tolerance, atol=tolerance)), True
    else:
        make = solver
    order = getattr(getattr(solver, "tableau", None), "order", None) if order is None else order
    if order is None or adaptive is None:
        raise ValueError(
            f"check_solver({solver!r}, order={order}, adaptive={adaptive}): what to expect of this solver is not "
            f"known; pass a function that makes it from its steps or its tolerance, with order= and adaptive=."
        )
    unknown = set(checks or ()) - SOLVER_CHECKS.keys()
    if unknown:
        raise ValueError(
            f"check_solver(checks={checks}): no check {sorted(unknown)}; there are {', '.join(SOLVER_CHECKS)}."
        )
    subject = _Subject(make, order, adaptive)
    for name in checks or SOLVER_CHECKS:
        SOLVER_CHECKS[name](subject)


@dataclass
class _Subject:
    """Holds the solver under test as a function of its accuracy."""

    make: Callable[[float], Solver]
    order: int
    adaptive: bool

    @property
    def usual(self) -> Solver:
        return self.make(1e-7 if self.adaptive else 32)

    def error(self, solver: Solver, t0: float = 0.0, t1: float = 1.0) -> float:
        """Measures the largest error at the end of the reference problem."""
        return (solver.solve(_riccati, _tangent(t0), t0, t1).y - _tangent(t1)).abs().max().item()


def _require(holds, message: str) -> None:
    if not bool(holds):
        raise AssertionError(message)


_PHASES = torch.tensor([-0.5, -0.2, 0.1, 0.3], dtype=torch.float64)


def _riccati(t: Tensor, y: Tensor) -> Tensor:
    """Computes z' = cos(t) (1 + z^2) for complex z in two real numbers: nonlinear, coupled, non-autonomous."""
    x, w = y.unbind(-1)
    return torch.cos(t).unsqueeze(-1) * torch.stack((1 + x * x - w * w, 2 * x * w), -1)


def _tangent(t: float) -> Tensor:
    """Computes the solution z = tan(sin(t) + c) of the reference problem for four constants c."""
    phases = torch.complex(math.sin(t) + _PHASES, torch.full_like(_PHASES, 0.4))
    return torch.view_as_real(torch.tan(phases))


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


def _order(subject: _Subject) -> None:
    if not subject.adaptive:
        coarse, fine = (subject.error(subject.make(steps)) for steps in (40, 80))
        measured = math.log2(coarse / fine)
        _require(
            abs(measured - subject.order) < 0.15,
            f"order: halving the step divides the error by 2^{measured:.2f}, not by 2^{subject.order}",
        )
        return
    tolerances = [1e-4, 1e-6, 1e-8]
    errors = [subject.error(subject.make(tolerance)) for tolerance in tolerances]
    slope = math.log(errors[0] / errors[-1]) / math.log(tolerances[0] / tolerances[-1])
    _require(0.7 < slope < 1.3, f"order: errors {errors} at tolerances {tolerances} are not proportional to them")
    _require(errors[-1] < 100 * tolerances[-1], f"order: the error at tolerance {tolerances[-1]} is {errors[-1]}")


def _interval(subject: _Subject) -> None:
    for dtype in (torch.float32, torch.float64):
        solver = subject.make(1e-4 if subject.adaptive else 7)
        for t0, t1 in ((0.1, 0.7), (0.7, 0.1), (-0.3, 0.7), (0.0, 0.999), (1.0, 0.0)):
            seen = []

            def field(t, y, seen=seen):
                seen.append(t.clone())
                return -3.0 * y * torch.cos(5 * t).unsqueeze(-1)

            solution = solver.solve(field, torch.ones(3, 2, dtype=dtype), t0, t1)
            times = torch.cat(seen)
            low, high = torch.tensor(sorted((t0, t1)), dtype=dtype)
            _require(
                all(t.shape == (3,) and t.dtype == dtype for t in seen),
                f"interval: f was handed t of shape {list(seen[0].shape)} and {seen[0].dtype} for a {dtype} state",
            )
            _require(
                times.min() >= low and times.max() <= high,
                f"interval: on [{t0}, {t1}] f was called at {times.min().item()} and {times.max().item()}",
            )
            reached = solution.stats.reached
            _require(
                (reached == torch.tensor(t1, dtype=dtype)).all(),
                f"interval: the last step ended at {reached.tolist()}, not exactly at {t1}",
            )


def _round_trip(subject: _Subject) -> None:
    solver = subject.usual
    there = solver.solve(_riccati, _tangent(0.0), 0.0, 1.0).y
    back = solver.solve(_riccati, there, 1.0, 0.0).y
    gap, error = (back - _tangent(0.0)).abs().max().item(), subject.error(solver)
    _require(gap < 20 * error + 1e-10, f"round trip: 0 to 1 and back is off by {gap}, one way by {error}")


def _identified(t, y, extras):
    """Computes dy = -rate y, and fails when rows of the state and of the arguments part."""
    state, row = y
    if not torch.equal(row, extras["row"]):
        raise AssertionError("args: f was handed the state of one sample with the arguments of another")
    return -extras["rate"] * state, torch.zeros_like(row)


def _batch(subject: _Subject) -> None:
    solver = subject.usual
    count = 9
    rates = torch.logspace(-1, 1.3, count, dtype=torch.float64).unsqueeze(1)
    row = torch.arange(count, dtype=torch.float64)
    extras = {"rate": rates, "row": row, "nothing": None}
    together = solver.solve(_identified, (_ones(count, 2), row), 0.0, 1.0, args=(extras,))
    for index in range(count):
        chosen = slice(index, index + 1)
        own = {"rate": rates[chosen], "row": row[chosen], "nothing": None}
        alone = solver.solve(_identified, (_ones(1, 2), row[chosen]), 0.0, 1.0, args=(own,))
        gap = (alone.y[0] - together.y[0][chosen]).abs().max().item()
        _require(gap < 1e-12, f"batch: sample {index} alone and among {count} differ by {gap}")
        _require(
            alone.stats.steps.item() == together.stats.steps[index].item(),
            f"batch: sample {index} takes {alone.stats.steps.item()} steps alone and "
            f"{together.stats.steps[index].item()} among others",
        )


def _structures(subject: _Subject) -> None:
    solver, y0 = subject.usual, _tangent(0.0)
    plain = solver.solve(_riccati, y0, 0.0, 1.0).y

    def as_dict(t, y):
        dy = _riccati(t, torch.stack((y["re"], y["im"][0]), -1))
        return {"im": (dy[:, 1],), "re": dy[:, 0]}

    nested = solver.solve(as_dict, {"re": y0[:, 0], "im": (y0[:, 1],)}, 0.0, 1.0).y
    _require(
        set(nested) == {"re", "im"} and isinstance(nested["im"], tuple), "structures: the state's structure is lost"
    )
    gap = (torch.stack((nested["re"], nested["im"][0]), -1) - plain).abs().max().item()
    _require(
        gap < (1e-5 if subject.adaptive else 1e-12),
        f"structures: a nested state ends {gap} away from the same state in one tensor",
    )


def _quadratures(subject: _Subject) -> None:
    solver, degree = subject.usual, subject.order - 1
    start, end = 0.25, 1.25
    scale = torch.tensor([[1.0, -2.0], [3.0, 0.5], [0.0, 1.0]], dtype=torch.float64)

    def field(t, y, scale):
        power = t**degree
        return -y, {"one": scale[:, 0] * power, "several": scale * power.unsqueeze(1)}

    for t0, t1 in ((start, end), (end, start)):
        tolerances = {"several": None, "one": Tolerance(1e-6, 1e-6)}
        solution = solver.solve(field, _ones(3, 2), t0, t1, args=(scale,), quadratures=tolerances)
        exact = (t1 ** (degree + 1) - t0 ** (degree + 1)) / (degree + 1)
        _require(set(solution.quadratures) == {"one", "several"}, "quadratures: the names asked for are not returned")
        gap = max(
            (solution.quadratures["one"] - exact * scale[:, 0]).abs().max().item(),
            (solution.quadratures["several"] - exact * scale).abs().max().item(),
        )
        _require(
            gap < 1e-12,
            f"quadratures: the integral of t^{degree} is off by {gap} for a method of order {subject.order}",
        )
    try:
        solver.solve(field, _ones(3, 2), 0.0, 1.0, args=(scale,), quadratures={"other": None})
    except ValueError:
        pass
    else:
        raise AssertionError("quadratures: names that f does not return are accepted")
    nothing = solver.solve(field, _ones(3, 2), 0.5, 0.5, args=(scale,), quadratures={"one": None})
    _require(
        torch.equal(nothing.y, _ones(3, 2)) and torch.equal(nothing.quadratures["one"], torch.zeros(3).double()),
        "quadratures: an interval of no length changes the state or gives an integral other than zero",
    )


def _quadrature_control(subject: _Subject) -> None:
    if not subject.adaptive:
        return

    def field(t, y):
        return torch.zeros_like(y), {"peak": torch.exp(-0.5 * ((t - 0.37) / 0.02) ** 2)}

    exact = 0.02 * math.sqrt(2 * math.pi)
    solver = subject.make(1e-6)
    held = solver.solve(field, _ones(1, 1), 0.0, 1.0, quadratures={"peak": Tolerance(0.0, 1e-7)})
    gap = abs(held.quadratures["peak"].item() - exact)
    _require(
        gap < 1e-5, f"quadratures: an integral with a tolerance of 1e-7 is off by {gap}: its error is not controlled"
    )


def _outputs(subject: _Subject) -> None:
    solver = subject.usual
    error = subject.error(solver)
    for times in ([0.0, 0.125, 0.5, 0.5, 0.77, 1.0], [1.0, 0.77, 0.5, 0.0], [0.3]):
        t0, t1 = (1.0, 0.0) if times[0] == 1.0 else (0.0, 1.0)
        solution = solver.solve(_riccati, _tangent(t0), t0, t1, at=times)
        _require(solution.trajectory.shape == (len(times), 4, 2), "outputs: the trajectory is not [len(at), *y]")
        for t, state in zip(times, solution.trajectory):
            gap = (state - _tangent(t)).abs().max().item()
            _require(gap < 20 * error + 1e-10, f"outputs: at t = {t} the state is off by {gap}, at the end by {error}")
            if t == t0:
                _require(torch.equal(state, _tangent(t0)), "outputs: the state at t0 is not y0")
            if t == t1:
                _require(torch.equal(state, solution.y), "outputs: the state at t1 is not the result")


def _gradients(subject: _Subject) -> None:
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

    _require(
        all(output.requires_grad for output in solve(y0, shift, weight)),
        "gradients: the state, a quadrature or the trajectory comes back without a graph",
    )
    try:
        torch.autograd.gradcheck(solve, (y0, shift, weight), eps=1e-4, atol=1e-5, rtol=1e-4)
    except RuntimeError as error:
        raise AssertionError(f"gradients: autograd and finite differences disagree: {error}") from error


def _failures(subject: _Subject) -> None:
    solver = subject.usual
    bad = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)

    def poisoned(t, y, bad):
        return torch.where(((bad > 0) & (t > 0.5)).unsqueeze(1), torch.nan, -y)

    solution = solver.solve(poisoned, _ones(3, 2), 0.0, 1.0, args=(bad,))
    healthy = solver.solve(poisoned, _ones(3, 2), 0.0, 1.0, args=(torch.zeros_like(bad),))
    _require(
        solution.status.tolist() == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS],
        f"failures: with a field that is NaN for sample 1 alone the statuses are {solution.status.tolist()}",
    )
    _require(
        (solution.y - healthy.y)[[0, 2]].abs().max() < 1e-12,
        "failures: a NaN in one sample changes the others' results",
    )
    if not subject.adaptive:
        return
    last = solution.stats.reached[1].item()
    _require(
        bool(torch.isfinite(solution.y).all()) and 0.45 < last <= 0.5,
        f"failures: the failed sample is not left at its last good state (finite, just before 0.5) but at t = {last}",
    )
    start = torch.tensor([[0.1], [2.0], [0.5]], dtype=torch.float64)
    burst = solver.solve(lambda t, y: y * y, start, 0.0, 1.0)
    _require(
        burst.status[1] != Status.SUCCESS and burst.success[[0, 2]].all(),
        f"failures: y' = y^2 through its singularity in sample 1 ends with statuses {burst.status.tolist()}",
    )
    exact = start / (1 - start)
    _require(
        (burst.y - exact)[[0, 2]].abs().max() < 1e-2 and abs(burst.stats.reached[1].item() - 0.5) < 1e-2,
        "failures: a singularity in one sample spoils the others, or is stepped over",
    )
    if hasattr(solver, "max_steps"):
        rates = torch.tensor([[1.0], [300.0]], dtype=torch.float64)
        decay, ones = (lambda t, y, rate: -rate * y), _ones(2, 1)
        easy, hard = subject.make(1e-6).solve(decay, ones, 0.0, 1.0, args=(rates,)).stats.steps.tolist()
        limited = replace(subject.make(1e-6), max_steps=easy)
        short = limited.solve(decay, ones, 0.0, 1.0, args=(rates,))
        _require(
            hard > easy
            and short.status.tolist() == [Status.SUCCESS, Status.MAX_STEPS]
            and short.stats.steps.tolist() == [easy, easy],
            f"failures: samples of {easy} and {hard} steps under a limit of {easy} end with statuses "
            f"{short.status.tolist()} after {short.stats.steps.tolist()} steps",
        )


def _sizes(subject: _Subject) -> None:
    for count in (0, 1):
        field = lambda t, y: (-y, {"size": y.flatten(1).sum(1)})
        solution = subject.usual.solve(field, _ones(count, 2, 3), 0.0, 1.0, quadratures={"size": None}, at=(0.5, 1.0))
        shapes = [
            solution.y.shape,
            solution.quadratures["size"].shape,
            solution.trajectory.shape,
            solution.status.shape,
        ]
        _require(
            shapes == [(count, 2, 3), (count,), (2, count, 2, 3), (count,)], f"sizes: a batch of {count} gives {shapes}"
        )
    scalar = subject.usual.solve(lambda t, y: -y, _ones(3), 0.0, 1.0)
    _require(scalar.y.shape == (3,), f"sizes: a state of shape [3] comes back as {list(scalar.y.shape)}")


class _HostReads(TorchDispatchMode):
    """Counts operations that make the host wait for a value."""

    names = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.__name__.split(".")[0] in self.names
        return function(*args, **(kwargs or {}))


def _host_reads(subject: _Subject) -> None:
    rates = torch.logspace(-1, 1.5, 16, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad(), _HostReads() as reads:
        solution = subject.usual.solve(lambda t, y, rate: -rate * y, _ones(16, 1), 0.0, 1.0, args=(rates,))
    allowed = int(solution.stats.steps.max()) if subject.adaptive else 0
    _require(reads.count <= allowed, f"host reads: {reads.count} values are read from the device, {allowed} allowed")


SOLVER_CHECKS: dict[str, Callable[[_Subject], None]] = {
    "order": _order,
    "interval": _interval,
    "round trip": _round_trip,
    "batch": _batch,
    "structures": _structures,
    "quadratures": _quadratures,
    "quadrature control": _quadrature_control,
    "outputs": _outputs,
    "gradients": _gradients,
    "failures": _failures,
    "sizes": _sizes,
    "host reads": _host_reads,
}
