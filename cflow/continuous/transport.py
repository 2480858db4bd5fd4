"""Moves points of a continuous flow between two times: the solve, and the steps outside the path's interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from cflow.continuous.dynamics import QUADRATURES, Dynamics
from cflow.continuous.ends import Ends
from cflow.shapes import expand_like, rows
from cflow.solvers import Solution, Status
from cflow.solvers.solver import check_is_solver

__all__ = ["QUADRATURES", "transport"]


def transport(
    flow, x, t0, t1, context, generator,
    *, ladj=False, quadratures=(), solver=None, divergence=None, guidance=None, at=None,
) -> Solution:  # fmt: skip
    """Moves ``x [B, *event]`` from ``t0`` to ``t1``; see :meth:`cflow.ContinuousFlow.transport`."""
    if not x.is_floating_point():
        raise TypeError(
            f"flow: x has dtype {x.dtype}, and needs floating numbers; pass x.float(), or add bijections.Dequantise by "
            f"flow.with_transform."
        )
    names = _names(ladj, quadratures)
    t0, t1, at = _times(t0, t1, at)
    solver = flow.solver if solver is None else solver
    check_is_solver("flow: solver", solver)
    divergence = _divergence(flow.divergence if divergence is None else divergence)
    dynamics = Dynamics.of(flow, solver, divergence, x, context, names, guidance, generator, backward=t1 < t0)
    ends = Ends(flow, dynamics, t0, t1)
    solver = ends.align(solver, at)
    start, totals, calls = ends.enter(x)
    try:
        solution = solver.solve(
            dynamics.integrand, start, ends.start, ends.stop, args=dynamics.args,
            quadratures=dynamics.tolerances(solver), path=flow.path, generator=generator,
            manifold=flow.manifold if solver.on_manifolds else None,
            at=None if at is None else [t for t in at if ends.holds(t)],
        )  # fmt: skip
    except RuntimeError as error:
        if not is_functorch_wrapped_tensor(x):
            raise
        raise RuntimeError(
            "flow: this solver or divergence does not work under torch.func; pass the whole batch at once, and use "
            "torch.autograd.grad(flow.log_prob(x).sum(), x)."
        ) from error
    for name, value in solution.quadratures.items():
        if name == "ladj_probes" and value.dim() == 1:  # no step was taken, so the number of probes is not known
            value = value.unsqueeze(1).expand(-1, divergence.count)
        # The solver integrates over dt; energies are over |dt|.
        totals[name] = totals.get(name, 0.0) + (value if name.startswith("ladj") or t1 >= t0 else -value)
    y, status, more = solution.y, solution.status, 0
    if ends.stop != t1:
        y, status, rest, more = _leave(ends, solution)
        totals = {name: totals[name] + rest[name] for name in totals}
    trajectory = None
    if at is not None:
        trajectory, between = _trajectory(ends, solution, at, x, y)
        more += between
    if flow.manifold is not None:
        y, trajectory, totals = _on_manifold(flow.manifold, solution, x, y, trajectory, totals)
    calls += more
    solution.stats.nfe += calls
    solution.stats.evaluations += calls * x.shape[0]
    return Solution(y=y, quadratures=totals, stats=solution.stats, status=status, trajectory=trajectory)


def _on_manifold(manifold, solution: Solution, x: Tensor, y: Tensor, trajectory, totals: dict) -> tuple:
    """Projects ends and stored states, and makes log-determinants those of Riemannian volumes."""
    solution.stats.projection = manifold.deviation(y.detach())
    y = manifold.project(y)
    trajectory = None if trajectory is None else manifold.project(trajectory)
    # The solver integrated in the metric of the ambient space.
    change = manifold.log_volume_element(y) - manifold.log_volume_element(x)
    for name in totals:
        if name.startswith("ladj"):
            totals[name] = totals[name] + (change if totals[name].dim() == 1 else change.unsqueeze(1))
    return y, trajectory, totals


def _leave(ends: Ends, solution: Solution) -> tuple[Tensor, Tensor, dict, int]:
    """Moves the samples whose solve succeeded to ``t1``; returns ``(y, status, integrals, calls)``."""
    crossed, rest, calls = ends.within_last(solution.y, ends.t1)
    fine = solution.status == Status.SUCCESS
    y = torch.where(expand_like(fine, solution.y), crossed, solution.y)
    status = torch.where(fine & ~rows(y).isfinite().all(1), int(Status.NON_FINITE), solution.status)
    return y, status, rest, calls


def _trajectory(ends: Ends, solution: Solution, at: list[float], x: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """Returns the states at all output times, also outside the solved part, and the number of evaluations for these."""
    kept, states, calls = iter(solution.trajectory), {ends.t0: x, ends.t1: y}, 0
    for t in at:
        if ends.holds(t):
            states.setdefault(t, next(kept))
        elif t in states:
            continue
        elif abs(t - ends.t0) < abs(ends.start - ends.t0):
            states[t], more = ends.within_first(x, t)
            calls += more
        else:
            point, _, more = ends.within_last(solution.y, t)
            states[t] = torch.where(expand_like(solution.status == Status.SUCCESS, y), point, solution.y)
            calls += more
    return torch.stack([states[t] for t in at]), calls


def _names(ladj: bool, quadratures: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the requested integrals."""
    unknown = set(quadratures) - set(QUADRATURES)
    if unknown:
        raise ValueError(
            f"flow.transport(quadratures={tuple(quadratures)}): {sorted(unknown)[0]!r} is unknown; choose from "
            f"{', '.join(QUADRATURES)}."
        )
    return (("ladj",) if ladj else ()) + tuple(quadratures)


def _times(t0: Any, t1: Any, at: Any) -> tuple[float, float, list[float] | None]:
    """Converts the two ends and the output times to numbers, and checks them."""
    t0, t1, at = float(t0), float(t1), None if at is None else [float(t) for t in at]
    outside = [t for t in (t0, t1, *(at or ())) if not 0 <= t <= 1]
    if outside:
        raise ValueError(
            f"flow.transport: time {outside[0]} is outside [0, 1]; pass times from 0 (the base) to 1 (the data)."
        )
    return t0, t1, at


def _divergence(value: Any) -> Any:
    if isinstance(value, type) or not callable(getattr(value, "begin", None)):
        raise TypeError(
            f"flow: divergence={value!r} is not a divergence; pass an object such as divergence.Hutchinson()."
        )
    return value
