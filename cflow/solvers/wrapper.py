"""A solver around another solver: it forwards everything that it does not change."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from cflow.registry import register
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution
from cflow.solvers.solver import Solver, check_is_solver

__all__ = ["Wrapper"]


def _forwarded(name: str) -> property:
    """Makes an attribute that is read from the inner solver."""
    return property(lambda self: getattr(self.solver, name), doc=f"The ``{name}`` of the inner solver.")


@register("solvers.Wrapper")
@dataclass(frozen=True, repr=False)
class Wrapper(Solver):
    """Solves with another solver; a subclass changes the input or the output.

    All attributes and methods of :class:`Solver` are forwarded to the inner solver. ``on`` returns a wrapper of the
    same kind around the inner solver on another grid. It is a shallow copy, made by :meth:`around`; to share data
    between the two, keep it in a list, a dict or another object.

    Args:
        solver: the inner solver, or an object that forwards all attributes and methods of one.

    Raises:
        TypeError: if ``solver`` is not a solver.

    Example:
        >>> import torch
        >>> from cflow import solvers
        >>> class Counting(solvers.Wrapper):
        ...     calls = []
        ...     def _solve(self, problem):
        ...         solution = super()._solve(problem)
        ...         self.calls.append(solution.stats.nfe)
        ...         return solution
        >>> counting = Counting(solvers.Heun(steps=20))
        >>> counting.solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0).y.item(), counting.calls
        (0.36803..., [40])
    """

    solver: Solver

    gradient = _forwarded("gradient")
    needs_score = _forwarded("needs_score")
    takes_whole_steps = _forwarded("takes_whole_steps")
    on_manifolds = _forwarded("on_manifolds")
    fitted_times = _forwarded("fitted_times")
    step_tolerance = _forwarded("step_tolerance")
    shares_steps = _forwarded("shares_steps")
    why_no_graph = _forwarded("why_no_graph")

    def __post_init__(self):
        check_is_solver(f"{type(self).__name__}: solver", self.solver)

    def around(self, solver: Solver) -> Self:
        """Returns the same wrapper around another ``solver``."""
        other = copy.copy(self)
        object.__setattr__(other, "solver", solver)
        return other

    def nodes(self, t0: float, t1: float) -> list[float] | None:
        """Returns the grid of the inner solver from ``t0`` to ``t1``."""
        return self.solver.nodes(t0, t1)

    def on(self, nodes: Sequence[float]) -> Self:
        """Returns the same wrapper around the inner solver on a grid of other times, ``nodes``."""
        return self.around(self.solver.on(nodes))

    def attempts(self, problem: Problem) -> Any:
        """Starts the inner solver's attempts for ``problem``."""
        return self.solver.attempts(problem)

    def for_tracing(self) -> Self:
        """Returns the same wrapper around the inner solver's version for tracing."""
        return self.around(self.solver.for_tracing())

    def _check(self, problem: Problem) -> None:
        self.solver._check(problem)

    def _solve(self, problem: Problem) -> Solution:
        return self.solver._solve(problem)
