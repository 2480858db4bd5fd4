"""Checks of solutions: orders, intervals, states of every structure, integrals, outputs, batches."""

from __future__ import annotations

import math

import torch

from cflow.solvers.solution import Tolerance
from cflow.testing.checks import demand
from cflow.testing.solvers.subject import Subject, ones, riccati, tangent

__all__ = [
    "batch", "interval", "order", "outputs", "quadrature_control", "quadratures", "round_trip", "sizes", "structures",
]  # fmt: skip


def order(subject: Subject) -> None:
    if not subject.adaptive:
        coarse, fine = (subject.error(subject.make(steps)) for steps in (40, 80))
        measured = math.log2(coarse / fine)
        demand(
            abs(measured - subject.order) < 0.15,
            f"order: halving the step divides the error by 2^{measured:.2f}, not by 2^{subject.order}",
        )
        return
    tolerances = [1e-4, 1e-6, 1e-8]
    errors = [subject.error(subject.make(tolerance)) for tolerance in tolerances]
    slope = math.log(errors[0] / errors[-1]) / math.log(tolerances[0] / tolerances[-1])
    demand(0.7 < slope < 1.3, f"order: errors {errors} at tolerances {tolerances} are not proportional to them")
    demand(errors[-1] < 100 * tolerances[-1], f"order: the error at tolerance {tolerances[-1]} is {errors[-1]}")


def interval(subject: Subject) -> None:
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
            demand(
                all(t.shape == (3,) and t.dtype == dtype for t in seen),
                f"interval: f got t of shape {list(seen[0].shape)} and {seen[0].dtype} for a {dtype} state",
            )
            demand(
                times.min() >= low and times.max() <= high,
                f"interval: on [{t0}, {t1}] f was evaluated at {times.min().item()} and {times.max().item()}",
            )
            reached = solution.stats.reached
            demand(
                (reached == torch.tensor(t1, dtype=dtype)).all(),
                f"interval: the last step ended at {reached.tolist()}, not exactly at {t1}",
            )


def round_trip(subject: Subject) -> None:
    solver = subject.usual
    there = solver.solve(riccati, tangent(0.0), 0.0, 1.0).y
    back = solver.solve(riccati, there, 1.0, 0.0).y
    gap, error = (back - tangent(0.0)).abs().max().item(), subject.error(solver)
    demand(gap < 20 * error + 1e-10, f"round trip: 0 to 1 and back is off by {gap}, one way by {error}")


def _identified(t, y, extras):
    """Computes dy = -rate y, and NaN if a row of the state gets the arguments of another row."""
    state, row = y
    together = (row == extras["row"]).reshape(row.shape[0], -1).all(1, keepdim=True)
    return torch.where(together, -extras["rate"] * state, torch.nan), torch.zeros_like(row)


def batch(subject: Subject) -> None:
    solver = subject.usual
    if subject.joint:
        _together(subject)
        return
    count = 9
    rates = torch.logspace(-1, 1.3, count, dtype=torch.float64).unsqueeze(1)
    row = torch.arange(count, dtype=torch.float64)
    extras = {"rate": rates, "row": row, "nothing": None}
    together = solver.solve(_identified, (ones(count, 2), row), 0.0, 1.0, args=(extras,))
    for index in range(count):
        chosen = slice(index, index + 1)
        own = {"rate": rates[chosen], "row": row[chosen], "nothing": None}
        alone = solver.solve(_identified, (ones(1, 2), row[chosen]), 0.0, 1.0, args=(own,))
        gap = (alone.y[0] - together.y[0][chosen]).abs().max().item()
        demand(gap < 1e-12, f"batch: sample {index} alone and among {count} differ by {gap}")
        demand(
            alone.stats.steps.item() == together.stats.steps[index].item(),
            f"batch: sample {index} takes {alone.stats.steps.item()} steps alone and "
            f"{together.stats.steps[index].item()} among others",
        )


def _together(subject: Subject) -> None:
    rates = torch.logspace(-1, 1.3, 9, dtype=torch.float64).unsqueeze(1)
    row = torch.arange(9, dtype=torch.float64)
    solution = subject.usual.solve(
        _identified, (ones(9, 2), row), 0.0, 1.0, args=({"rate": rates, "row": row, "nothing": None},)
    )
    demand(
        (solution.stats.steps == solution.stats.steps[0]).all(),
        f"batch: samples share their steps, but the numbers of steps are {solution.stats.steps.tolist()}",
    )


def structures(subject: Subject) -> None:
    solver, y0 = subject.usual, tangent(0.0)
    plain = solver.solve(riccati, y0, 0.0, 1.0).y

    def as_dict(t, y):
        dy = riccati(t, torch.stack((y["re"], y["im"][0]), -1))
        return {"im": (dy[:, 1],), "re": dy[:, 0]}

    nested = solver.solve(as_dict, {"re": y0[:, 0], "im": (y0[:, 1],)}, 0.0, 1.0).y
    demand(set(nested) == {"re", "im"} and isinstance(nested["im"], tuple), "structures: the state's structure is lost")
    gap = (torch.stack((nested["re"], nested["im"][0]), -1) - plain).abs().max().item()
    demand(
        gap < (1e-5 if subject.adaptive else 1e-12),
        f"structures: the results of a nested state and of one tensor differ by {gap}",
    )


def quadratures(subject: Subject) -> None:
    solver, degree = subject.usual, subject.order - 1
    start, end = 0.25, 1.25
    scale = torch.tensor([[1.0, -2.0], [3.0, 0.5], [0.0, 1.0]], dtype=torch.float64)

    def field(t, y, scale):
        power = t**degree
        return -y, {"one": scale[:, 0] * power, "several": scale * power.unsqueeze(1)}

    for t0, t1 in ((start, end), (end, start)):
        tolerances = {"several": None, "one": Tolerance(1e-6, 1e-6)}
        solution = solver.solve(field, ones(3, 2), t0, t1, args=(scale,), quadratures=tolerances)
        exact = (t1 ** (degree + 1) - t0 ** (degree + 1)) / (degree + 1)
        demand(set(solution.quadratures) == {"one", "several"}, "quadratures: the requested names are not returned")
        gap = max(
            (solution.quadratures["one"] - exact * scale[:, 0]).abs().max().item(),
            (solution.quadratures["several"] - exact * scale).abs().max().item(),
        )
        demand(
            gap < 1e-12,
            f"quadratures: the integral of t^{degree} is off by {gap} for a method of order {subject.order}",
        )
    try:
        solver.solve(field, ones(3, 2), 0.0, 1.0, args=(scale,), quadratures={"other": None})
    except ValueError:
        pass
    else:
        raise AssertionError("quadratures: names that f does not return are accepted")
    nothing = solver.solve(field, ones(3, 2), 0.5, 0.5, args=(scale,), quadratures={"one": None})
    demand(
        torch.equal(nothing.y, ones(3, 2)) and torch.equal(nothing.quadratures["one"], torch.zeros(3).double()),
        "quadratures: an interval of length zero changes the state or an integral",
    )


def quadrature_control(subject: Subject) -> None:
    if not subject.adaptive:
        return

    def field(t, y):
        return torch.zeros_like(y), {"peak": torch.exp(-0.5 * ((t - 0.37) / 0.05) ** 2)}

    exact = 0.05 * math.sqrt(2 * math.pi)
    solver = subject.make(1e-6)
    held = solver.solve(field, ones(1, 1), 0.0, 1.0, quadratures={"peak": Tolerance(0.0, 1e-7)})
    gap = abs(held.quadratures["peak"].item() - exact)
    demand(
        gap < 1e-5, f"quadratures: an integral with a tolerance of 1e-7 is off by {gap}: its error is not controlled"
    )


def outputs(subject: Subject) -> None:
    solver = subject.usual
    error = subject.error(solver)
    for times in ([0.0, 0.125, 0.5, 0.5, 0.77, 1.0], [1.0, 0.77, 0.5, 0.0], [0.3]):
        t0, t1 = (1.0, 0.0) if times[0] == 1.0 else (0.0, 1.0)
        solution = solver.solve(riccati, tangent(t0), t0, t1, at=times)
        demand(solution.trajectory.shape == (len(times), 4, 2), "outputs: the trajectory is not [len(at), *y]")
        for t, state in zip(times, solution.trajectory):
            gap = (state - tangent(t)).abs().max().item()
            demand(gap < 20 * error + 1e-10, f"outputs: at t = {t} the state is off by {gap}, at the end by {error}")
            if t == t0:
                demand(torch.equal(state, tangent(t0)), "outputs: the state at t0 is not y0")
            if t == t1:
                demand(torch.equal(state, solution.y), "outputs: the state at t1 is not the result")


def sizes(subject: Subject) -> None:
    for count in (0, 1):
        field = lambda t, y: (-y, {"size": y.flatten(1).sum(1)})
        solution = subject.usual.solve(field, ones(count, 2, 3), 0.0, 1.0, quadratures={"size": None}, at=(0.5, 1.0))
        shapes = [
            solution.y.shape,
            solution.quadratures["size"].shape,
            solution.trajectory.shape,
            solution.status.shape,
        ]
        demand(
            shapes == [(count, 2, 3), (count,), (2, count, 2, 3), (count,)],
            f"sizes: a batch of {count} returns the shapes {shapes}",
        )
    scalar = subject.usual.solve(lambda t, y: -y, ones(3), 0.0, 1.0)
    demand(scalar.y.shape == (3,), f"sizes: the result of a state of shape [3] has shape {list(scalar.y.shape)}")
