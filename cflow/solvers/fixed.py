"""Runge-Kutta methods on a grid laid before the first step: no error control, no host reads."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from cflow.registry import register
from cflow.solvers import tableau as tableaus
from cflow.solvers.solution import Solution, Stats
from cflow.solvers.solver import Problem, Solver
from cflow.solvers.tableau import Combination, Tableau

__all__ = ["RK4", "Euler", "FixedGrid", "Heun", "Midpoint"]


@dataclass(frozen=True)
class FixedGrid(Solver):
    r"""Integrates with a Runge-Kutta method on a fixed grid; a subclass names its tableau.

    Either ``steps`` equal steps, or a ``grid`` of absolute times: its nodes strictly inside the interval are used, the
    ends are added, and it is walked backward when time runs backward, so one grid serves ``[0, 1]``, ``[1, 0]`` and
    ``[0, 0.999]`` alike. Output times that are not on the grid become nodes of it (a node within a millionth of the
    interval is moved there), so that they are hit exactly.

    Cost: ``steps`` times the number of stages calls of ``f``; one fused multiply-add per slope; nothing is read from
    the device. A sample whose result is not finite ends with status ``NON_FINITE``.

    Raises:
        ValueError: unless exactly one of ``steps`` and ``grid`` is given, ``steps >= 1`` and ``grid`` increases.

    Source: Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, chapter II.1.
    """

    steps: int | None = None
    grid: tuple[float, ...] | None = field(default=None, kw_only=True)

    tableau: ClassVar[Tableau]

    def __post_init__(self):
        name = type(self).__name__
        if (self.steps is None) == (self.grid is None):
            raise ValueError(
                f"{name}(steps={self.steps}, grid={self.grid}): a fixed-grid solver is laid out by one of the two; "
                f"pass the number of steps, {name}(steps=20), or the times between them, {name}(grid=(0.0, 0.3, 1.0))."
            )
        if self.grid is None:
            if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
                raise ValueError(f"{name}(steps={self.steps!r}): steps are counted; pass an integer of at least 1.")
            return
        grid = tuple(float(t) for t in self.grid)
        if not all(map(math.isfinite, grid)) or any(not later > earlier for earlier, later in itertools.pairwise(grid)):
            raise ValueError(
                f"{name}(grid={grid}): the nodes of a grid are finite and increase (it is walked backward by itself "
                f"when time runs backward); sort them and drop duplicates."
            )
        object.__setattr__(self, "grid", grid)

    def nodes(self, t0: float, t1: float) -> list[float]:
        """Lays the grid from ``t0`` to ``t1``, both included, in float64 on the host."""
        if self.grid is None:
            return [t0 + (t1 - t0) * (step / self.steps) for step in range(self.steps)] + [t1]
        inside = [t for t in self.grid if min(t0, t1) < t < max(t0, t1)]
        return [t0, *(inside if t0 < t1 else reversed(inside)), t1]

    def layout(self, problem: Problem) -> list[float]:
        """Lays the grid of a problem, through its output times."""
        nodes = self.nodes(problem.t0, problem.t1)
        return _through(nodes, problem.at) if problem.at else nodes

    def solve(
        self,
        f,
        y0,
        t0,
        t1,
        *,
        args=(),
        params=None,
        quadratures=None,
        manifold=None,
        path=None,
        generator=None,
        at=None,
    ) -> Solution:
        """Walks the grid from ``t0`` to ``t1``; gradients flow through every operation."""
        problem = Problem(self, f, y0, t0, t1, args, quadratures, manifold, at)
        if problem.t0 == problem.t1:
            return problem.nothing()
        nodes = self.layout(problem)
        stages, step = self.tableau.stages, self.tableau.step
        used = 1 + max([step.lead, *(index for index, _ in step.rest)])
        times = iter(_stage_times(problem, nodes, self.tableau.nodes[:used]))
        y, integrals, outputs = problem.y0, [], Outputs(problem.at)
        outputs.keep(nodes[0], y)
        for start, end in itertools.pairwise(nodes):
            h = end - start
            slopes, integrands = [], []
            for stage in stages[:used]:
                k, g = problem(next(times), y if stage is None else _advance(y, slopes, stage, h))
                slopes.append(k)
                integrands.append(g)
            y = _advance(y, slopes, step, h)
            if problem.tolerances:
                if not integrals:
                    integrals = [torch.zeros_like(g) for g in integrands[0]]
                integrals = _advance(integrals, integrands, step, h)
            outputs.keep(end, y)
        return finished(problem, len(nodes) - 1, y, integrals, outputs)


class Outputs:
    """Keeps the state at the output times, which are nodes of the grid."""

    def __init__(self, times: list[float] | None):
        self.times, self.kept = times or [], []

    def keep(self, t: float, y: list[Tensor]) -> None:
        while len(self.kept) < len(self.times) and self.times[len(self.kept)] == t:
            self.kept.append(y)


def finished(problem: Problem, steps: int, y: list[Tensor], integrals: list[Tensor], outputs: Outputs) -> Solution:
    """Builds the solution of a walk that took every step of its grid for all samples."""
    taken = torch.full((problem.batch,), steps, dtype=torch.int64, device=problem.device)
    reached = torch.full((problem.batch,), problem.t1, dtype=problem.dtype, device=problem.device)
    stats = Stats(problem.calls, problem.rows, taken, taken.clone(), torch.zeros_like(taken), reached)
    return problem.solution(y, integrals, stats, problem.status(y, integrals), outputs.kept)


def _advance(y: list[Tensor], slopes: list[list[Tensor]], weights: Combination, h: float) -> list[Tensor]:
    """Computes ``y + h * sum_j w_j k_j`` part by part."""
    scale = weights.weight * h
    return [torch.add(part, weights.bracket(slopes, index), alpha=scale) for index, part in enumerate(y)]


def _through(nodes: list[float], at: list[float]) -> list[float]:
    """Makes every output time a node: moves a node that is next to one, adds the others."""
    t0, t1 = nodes[0], nodes[-1]
    near = 1e-6 * abs(t1 - t0)
    wanted = [t for t in dict.fromkeys(at) if t not in (t0, t1)]
    kept = [node for node in nodes[1:-1] if all(abs(node - t) > near for t in wanted)]
    return [t0, *sorted([*kept, *wanted], reverse=t1 < t0), t1]


def _stage_times(problem: Problem, nodes: list[float], fractions: tuple[float, ...]) -> tuple[Tensor, ...]:
    """Uploads the times of all stages at once, and views each as ``[B]``."""
    times = [
        end if fraction == 1 else start + fraction * (end - start)
        for start, end in itertools.pairwise(nodes)
        for fraction in fractions
    ]
    uploaded = torch.tensor(times, dtype=problem.dtype, device=problem.device)
    return uploaded.unsqueeze(1).expand(-1, problem.batch).unbind(0)


@register
@dataclass(frozen=True)
class Euler(FixedGrid):
    r"""Integrates with Euler's method, order 1, one call of ``f`` per step.

    .. math:: y^+ = y + h f(t, y)

    Example:
        >>> solution = Euler(100).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0)
        >>> solution.y.item(), solution.stats.nfe
        (0.36603..., 100)
    """

    tableau: ClassVar[Tableau] = tableaus.EULER


@register
@dataclass(frozen=True)
class Midpoint(FixedGrid):
    r"""Integrates with the explicit midpoint method, order 2, two calls of ``f`` per step.

    .. math:: y^+ = y + h f(t + h/2, y + (h/2) f(t, y))

    Example:
        >>> Midpoint(10).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0).y.item()
        0.36854...
    """

    tableau: ClassVar[Tableau] = tableaus.MIDPOINT


@register
@dataclass(frozen=True)
class Heun(FixedGrid):
    r"""Integrates with Heun's method (the explicit trapezoidal rule), order 2, two calls of ``f`` per step.

    .. math:: y^+ = y + \tfrac h2 \big(f(t, y) + f(t + h, y + h f(t, y))\big)

    Example:
        >>> Heun(grid=(0.1, 0.5)).solve(lambda t, y: -y, torch.ones(1, 1), 1.0, 0.0).stats.nfe
        6
    """

    tableau: ClassVar[Tableau] = tableaus.HEUN


@register
@dataclass(frozen=True)
class RK4(FixedGrid):
    r"""Integrates with the classical Runge-Kutta method, order 4, four calls of ``f`` per step.

    .. math:: y^+ = y + \tfrac h6 (k_1 + 2 k_2 + 2 k_3 + k_4)

    Example:
        >>> RK4(10).solve(lambda t, y: -y, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.0).y.item()
        0.367879...
    """

    tableau: ClassVar[Tableau] = tableaus.RK4
