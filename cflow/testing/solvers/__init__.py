"""Conformance of solvers of ordinary differential equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cflow.registry import replace
from cflow.solvers.solver import Solver
from cflow.testing.solvers import accuracy, safety
from cflow.testing.solvers.subject import Subject, options

__all__ = ["SOLVER_CHECKS", "check_solver"]


def check_solver(
    solver: Solver | Callable[[float], Solver],
    *,
    order: int | None = None,
    adaptive: bool | None = None,
    checks: Sequence[str] | None = None,
) -> None:
    """Checks that a solver fulfils the contract of :class:`cflow.solvers.Solver`. This takes about a second on a CPU.

    Args:
        solver: a solver of this package, or a function that returns one for a number of steps (fixed grids) or for a
            relative and absolute tolerance (adaptive).
        order: the order of convergence. Default: that of the solver's tableau.
        adaptive: whether steps follow a tolerance. Default: known for solvers of this package.
        checks: names from ``SOLVER_CHECKS``. Default: all.

    Raises:
        AssertionError: if a property fails; the message states which and by how much.
        ValueError: if ``order`` or ``adaptive`` is missing or a check is unknown.

    Example:
        >>> from cflow.solvers import Heun
        >>> check_solver(Heun(10), checks=["order", "batch"])
    """
    make, known = solver, options(solver)
    if {"steps", "grid", "nfe"} <= known:
        make, adaptive = (lambda steps: replace(solver, steps=int(steps), grid=None, nfe=None)), False
    elif {"rtol", "atol", "max_steps"} <= known:
        make, adaptive = (lambda tolerance: replace(solver, rtol=tolerance, atol=tolerance)), True
    if order is None and hasattr(solver, "tableau"):
        order = solver.tableau.order
    if order is None or adaptive is None:
        raise ValueError(
            f"check_solver({solver!r}, order={order}, adaptive={adaptive}): these are not known; pass both, and a "
            f"function of steps or tolerance."
        )
    unknown = set(checks or ()) - SOLVER_CHECKS.keys()
    if unknown:
        raise ValueError(
            f"check_solver(checks={checks}): no check {sorted(unknown)}; choose from {', '.join(SOLVER_CHECKS)}."
        )
    subject = Subject(make, order, adaptive)
    for name in checks or SOLVER_CHECKS:
        SOLVER_CHECKS[name](subject)


SOLVER_CHECKS: dict[str, Callable[[Subject], None]] = {
    "order": accuracy.order,
    "interval": accuracy.interval,
    "round trip": accuracy.round_trip,
    "batch": accuracy.batch,
    "structures": accuracy.structures,
    "quadratures": accuracy.quadratures,
    "quadrature control": accuracy.quadrature_control,
    "outputs": accuracy.outputs,
    "gradients": safety.gradients,
    "second derivatives": safety.second_derivatives,
    "failures": safety.failures,
    "sizes": accuracy.sizes,
    "host reads": safety.host_reads,
    "memory": safety.memory,
}
