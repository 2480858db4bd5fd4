"""Runge-Kutta methods on a grid that is fixed before the first step: no error control, no host reads."""

# Annotations are evaluated here: subclasses in other modules inherit the fields, and tools read their types.
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from cflow.arguments import is_integer
from cflow.registry import register
from cflow.solvers import tableau as tableaus
from cflow.solvers.gradients.adjoint import Output, Step
from cflow.solvers.gradients.modes import NO_ADJOINT, Backprop, Gradient, check_gradient, without_graph
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution
from cflow.solvers.solver import Solver
from cflow.solvers.tableau import Combination, Tableau, stages_of
from cflow.solvers.uploads import upload

__all__ = ["RK4", "Euler", "FixedGrid", "Heun", "Midpoint", "Ralston"]


@dataclass(frozen=True, repr=False)
class FixedGrid(Solver):
    r"""Integrates with a Runge-Kutta method on a fixed grid; a subclass sets its tableau.

    Output times that are not on the grid become nodes of it (a node within a millionth of the interval is moved there),
    so that they are reached exactly.

    Args:
        steps: number of equal steps. Pass exactly one of ``steps``, ``nfe`` and ``grid``.
        grid: increasing times. Those strictly inside the interval are used, and the ends are added. Backward in time
            they are used in reverse, so one grid serves ``[0, 1]``, ``[1, 0]`` and ``[0, 0.999]``.
        nfe: number of function evaluations (NFE) of the solve, a multiple of those per step.
        gradient: how gradients pass through the solve: :class:`Backprop` or :class:`Checkpointed`.

    Cost: one evaluation of ``f`` per stage and step, one fused multiply-add per slope; nothing is read from the device.
    A sample whose result is not finite ends with status ``NON_FINITE``.

    Raises:
        ValueError: unless exactly one of ``steps``, ``nfe`` and ``grid`` is given, ``steps >= 1``, ``nfe`` is a
            multiple of the evaluations per step, and ``grid`` increases.
        TypeError: if ``gradient`` is not a gradient mode.

    Source: Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, chapter II.1.

    Example:
        >>> from fractions import Fraction
        >>> third = Fraction(1, 3)
        >>> class Heun3(FixedGrid):
        ...     tableau = Tableau(
        ...         "heun3", a=((), (third,), (0, 2 * third)), b=(Fraction(1, 4), 0, Fraction(3, 4)),
        ...         c=(0, third, 2 * third), order=3,
        ...     )
        >>> solution = Heun3(10).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0, at=[0.5])
        >>> solution.y.item(), solution.trajectory.shape, solution.stats.nfe
        (0.36786..., torch.Size([1, 1, 1]), 30)
    """

    steps: int | None = None
    grid: tuple[float, ...] | None = field(default=None, kw_only=True)
    nfe: int | None = field(default=None, kw_only=True)
    gradient: Gradient = field(default=Backprop(), kw_only=True, repr=False)

    tableau: ClassVar[Tableau]
    refused_gradients: ClassVar[Mapping[str, str]] = {"equation": NO_ADJOINT}  # ``Gradient.through``: reason
    why_no_graph = None

    def __post_init__(self):
        name = type(self).__name__
        if [self.steps, self.grid, self.nfe].count(None) != 2:
            raise ValueError(
                f"{name}(steps={self.steps}, nfe={self.nfe}, grid={self.grid}): pass exactly one of the three, such as "
                f"{name}(steps=20), {name}(nfe=20) or {name}(grid=(0.0, 0.3, 1.0))."
            )
        check_gradient(name, self.gradient, self.refused_gradients)
        for what, value in (("steps", self.steps), ("nfe", self.nfe)):
            if value is not None and not is_integer(value, 1):
                calls = "steps" if what == "steps" else "function evaluations"
                raise ValueError(f"{name}({what}={value!r}): {calls} are whole; pass an integer of at least 1.")
        if self.nfe is not None:
            calls = self.calls_per_step()
            if self.nfe % calls:
                below, above = self.nfe - self.nfe % calls, self.nfe - self.nfe % calls + calls
                raise ValueError(
                    f"{name}(nfe={self.nfe}): a step takes {calls} function evaluations; pass "
                    f"nfe={f'{below} or {above}' if below else above}."
                )
        if self.grid is None:
            return
        grid = tuple(float(t) for t in self.grid)
        if not all(map(math.isfinite, grid)) or any(not later > earlier for earlier, later in itertools.pairwise(grid)):
            raise ValueError(
                f"{name}(grid={grid}): times are finite and increase, also for backward solves; sort them and drop "
                f"duplicates."
            )
        object.__setattr__(self, "grid", grid)

    @classmethod
    def calls_per_step(cls) -> int:
        """Returns the evaluations of ``f`` per step: the stages that the result depends on; 1 without a tableau."""
        tableau = getattr(cls, "tableau", None)
        return 1 if tableau is None else 1 + max([tableau.step.lead, *(index for index, _ in tableau.step.rest)])

    def nodes(self, t0: float, t1: float) -> list[float]:
        """Returns the grid from ``t0`` to ``t1``, both included, in float64 on the host."""
        if self.grid is None:
            steps = self.steps if self.nfe is None else self.nfe // self.calls_per_step()
            return [t0 + (t1 - t0) * (step / steps) for step in range(steps)] + [t1]
        inside = [t for t in self.grid if min(t0, t1) < t < max(t0, t1)]
        return [t0, *(inside if t0 < t1 else reversed(inside)), t1]

    def on(self, nodes: Sequence[float]) -> Self:
        """Returns the same solver on a grid of other times, ``nodes``."""
        return replace(self, steps=None, nfe=None, grid=tuple(sorted(set(nodes))))

    def layout(self, problem: Problem) -> list[float]:
        """Returns the grid of ``problem``, with its output times as nodes."""
        nodes = self.nodes(problem.t0, problem.t1)
        return through(nodes, problem.at) if problem.at else nodes

    def _solve(self, problem: Problem) -> Solution:
        """Steps over the grid from ``t0`` to ``t1``; ``gradient`` sets how gradients flow."""
        nodes = self.layout(problem)
        tape = self.gradient.begin(problem)
        outputs = Outputs(problem.at)
        outputs.keep(nodes[0], problem.y0)
        with without_graph(tape):
            times = _stage_times(problem, nodes, self.tableau.nodes[: self.calls_per_step()])
            y, integrals = self._integrate(problem, nodes, times, outputs, tape)
        if tape is not None:
            y, integrals, outputs.kept = tape.attach(y, integrals, outputs.kept)
        return problem.finished(y, integrals, len(nodes) - 1, outputs.kept)

    def _integrate(self, problem: Problem, nodes, times, outputs: "Outputs", tape) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the state and the integrals at the end of the grid."""
        if tape is None and problem.plain:
            return self._plain(problem, nodes, times, outputs)
        return self._walk(problem, nodes, times, outputs, tape)

    def _plain(self, problem: Problem, nodes, times, outputs: "Outputs") -> tuple[list[Tensor], list[Tensor]]:
        """Steps a state of one tensor without integrals, with little overhead for small networks."""
        (y,), slope, end, keeps = problem.y0, problem.slope(), self.tableau.step, bool(outputs.times)
        later, calls = self.tableau.stages[1 : self.calls_per_step()], len(times)
        lengths, times = [stop - start for start, stop in itertools.pairwise(nodes)], iter(times)
        if not later and not keeps:
            for h, t in zip(lengths, times):
                y = torch.add(y, slope(t, y), alpha=h)
            lengths = []
        for h, stop in zip(lengths, nodes[1:]):
            slopes = [slope(next(times), y)]
            for stage in later:
                slopes.append(slope(next(times), stage.advance(y, slopes, h)))
            y = end.advance(y, slopes, h)
            if keeps:
                outputs.keep(stop, [y])
        problem.calls += calls - 1
        problem.rows += (calls - 1) * problem.batch
        return [y], []

    def _walk(self, problem: Problem, nodes, times, outputs: "Outputs", tape) -> tuple[list[Tensor], list[Tensor]]:
        """Steps a state of several parts, with integrals, on a tape if there is one."""
        y, integrals, used = problem.y0, [], self.calls_per_step()
        stages, step = self.tableau.stages[:used], self.tableau.step
        counting = step.stages
        for index, (start, end) in enumerate(itertools.pairwise(nodes)):
            h, before = end - start, y
            at_stages = times[index * used : (index + 1) * used]
            slopes, integrands = [], []
            for number, (t, stage) in enumerate(zip(at_stages, stages)):
                k, g = problem(t, y if stage is None else _advance(y, slopes, stage, h), integrals=number in counting)
                slopes.append(k)
                integrands.append(g)
            y = _advance(y, slopes, step, h)
            if problem.tolerances:
                if not integrals:
                    integrals = [torch.zeros_like(g) for g in integrands[step.lead]]
                integrals = _advance(integrals, integrands, step, h)
            kept = outputs.keep(end, y)
            if tape is not None:
                tape.steps.append(Step(self.tableau, before, at_stages, h, outputs=[Output(slot) for slot in kept]))
        return y, integrals


class Outputs:
    """Stores the state at the output times, which are nodes of the grid."""

    def __init__(self, times: list[float] | None):
        self.times, self.kept = times or [], []

    def keep(self, t: float, y: list[Tensor]) -> range:
        """Stores the state if ``t`` is an output time; returns the slots that it fills."""
        first = len(self.kept)
        while len(self.kept) < len(self.times) and self.times[len(self.kept)] == t:
            self.kept.append(y)
        return range(first, len(self.kept))


def _advance(y: list[Tensor], slopes: list[list[Tensor]], weights: Combination, h: float) -> list[Tensor]:
    """Computes ``y + h * sum_j w_j k_j`` part by part."""
    return [weights.advance(part, stages_of(slopes, index), h) for index, part in enumerate(y)]


def through(nodes: list[float], at: list[float]) -> list[float]:
    """Makes every output time a node: moves a node that is close to it, or adds one."""
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
    uploaded = upload(times, problem.dtype, problem.device)
    return uploaded.unsqueeze(1).expand(-1, problem.batch).unbind(0)


@register("solvers.Euler")
@dataclass(frozen=True, repr=False)
class Euler(FixedGrid):
    r"""Integrates with Euler's method, order 1, one evaluation of ``f`` per step.

    .. math:: y^+ = y + h f(t, y)

    Example:
        >>> solution = Euler(100).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0)
        >>> solution.y.item(), solution.stats.nfe
        (0.36603..., 100)
    """

    tableau: ClassVar[Tableau] = tableaus.EULER


@register("solvers.Midpoint")
@dataclass(frozen=True, repr=False)
class Midpoint(FixedGrid):
    r"""Integrates with the explicit midpoint method, order 2, two evaluations of ``f`` per step.

    .. math:: y^+ = y + h f(t + h/2, y + (h/2) f(t, y))

    Example:
        >>> Midpoint(10).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0).y.item()
        0.36854...
    """

    tableau: ClassVar[Tableau] = tableaus.MIDPOINT


@register("solvers.Heun")
@dataclass(frozen=True, repr=False)
class Heun(FixedGrid):
    r"""Integrates with Heun's method (the explicit trapezoidal rule), order 2, two evaluations of ``f`` per step.

    .. math:: y^+ = y + \tfrac h2 \big(f(t, y) + f(t + h, y + h f(t, y))\big)

    Example:
        >>> Heun(grid=(0.1, 0.5)).solve(lambda t, y: -y, torch.ones(1, 1), 1.0, 0.0).stats.nfe
        6
    """

    tableau: ClassVar[Tableau] = tableaus.HEUN


@register("solvers.Ralston")
@dataclass(frozen=True, repr=False)
class Ralston(FixedGrid):
    r"""Integrates with Ralston's method, order 2 with the smallest error bound, two evaluations of ``f`` per step.

    .. math:: y^+ = y + \tfrac h4 \big(f(t, y) + 3 f(t + \tfrac23 h, y + \tfrac23 h f(t, y))\big)

    Source: Ralston, Runge-Kutta Methods with Minimum Error Bounds, 1962, Mathematics of Computation 16.

    Example:
        >>> Ralston(nfe=20).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0).y.item()
        0.36854...
    """

    tableau: ClassVar[Tableau] = tableaus.RALSTON


@register("solvers.RK4")
@dataclass(frozen=True, repr=False)
class RK4(FixedGrid):
    r"""Integrates with the classical Runge-Kutta method, order 4, four evaluations of ``f`` per step.

    .. math:: y^+ = y + \tfrac h6 (k_1 + 2 k_2 + 2 k_3 + k_4)

    Example:
        >>> RK4(10).solve(lambda t, y: -y, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.0).y.item()
        0.367879...
    """

    tableau: ClassVar[Tableau] = tableaus.RK4
