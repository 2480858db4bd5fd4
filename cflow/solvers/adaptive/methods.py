"""Embedded Runge-Kutta methods with adaptive steps: the options, the first step, and the methods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cflow.arguments import is_integer
from cflow.registry import register
from cflow.solvers import tableau as tableaus
from cflow.solvers.adaptive.attempts import Attempts
from cflow.solvers.adaptive.controllers import PID
from cflow.solvers.adaptive.joint import Joint
from cflow.solvers.adaptive.per_sample import PerSample
from cflow.solvers.adaptive.stages import Stages
from cflow.solvers.gradients.modes import NO_ADJOINT, Backprop, Gradient, check_gradient, without_graph
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution, Tolerance, check_tolerances
from cflow.solvers.solver import Solver
from cflow.solvers.state import like_rows, per_row, split
from cflow.solvers.tableau import Tableau
from cflow.solvers.uploads import upload

__all__ = ["Adaptive", "Bosh3", "Dopri5", "Dopri8", "Tsit5"]


@dataclass(frozen=True, repr=False)
class Adaptive(Solver):
    r"""Integrates with an embedded Runge-Kutta method and its own steps for every sample; a subclass sets its tableau.

    A step of a sample is accepted if the root mean square of its error over its own state,

    .. math:: \Big(\tfrac1n \sum_i \big(e_i / (\text{atol} + \text{rtol} \max(|y_i|, |y^+_i|))\big)^2\Big)^{1/2},

    is at most one. Of several parts, and of quadratures with a tolerance, the largest counts. So a sample takes the
    same steps alone and in a batch. ``per_sample=False`` takes common steps, with the mean over the batch too: fewer
    operations per step, and more steps if samples differ. The last step ends exactly at the end, and ``f`` is never
    evaluated outside the interval. Gradients treat step sizes as constants.

    States at output times come from the continuous extension of the method, which adds no steps (its order is lower
    than that of the method by one at most). If a method has none, steps are cut to end at output times.

    A failed sample does not stop the others. It stays at its last accepted state (parts without a tolerance are not
    checked), and ``Solution.status`` is ``NON_FINITE``, ``STEP_TOO_SMALL`` or ``MAX_STEPS`` (attempts, counted per
    sample). With ``per_sample=False`` all samples continue as long as the step can be made smaller; then the samples
    whose own error is the cause are ended.

    Args:
        rtol, atol: relative and absolute tolerance.
        max_steps: number of attempts after which a sample is ended.
        first_step: length of the first step. Default: computed from the field, with one more evaluation.
        per_sample: whether every sample has its own steps; if not, the batch has common steps.
        controller: how errors set the steps.
        dt_min, dt_max: bounds of the length of a step. The last step, and steps that end at an output time, may be
            shorter, and up to 1 % longer.
        on_dt_min: what happens to a sample whose error requires less than ``dt_min``: ``"stop"`` ends it with
            ``STEP_TOO_SMALL``, ``"accept"`` takes steps of ``dt_min`` with any finite error.
        parts: tolerances of parts of the state, by key of a dict or index in a tuple. None leaves a part out of step
            control; parts that are not listed have ``rtol`` and ``atol``.
        on_failure: ``"return"`` reports failures in ``Solution.status``; ``"raise"`` raises for the first one.
        gradient: how gradients pass through the solve: ``Backprop()`` or ``Checkpointed()``.
        check_every: number of attempts between two checks of which samples have ended. Each check waits for an
            accelerator; samples that have ended do not move in between. Default: 1 on a CPU, 4 on other devices. With
            gradients or output times it is always 1.

    Cost: one evaluation of ``f`` per stage and attempt (the last stage may serve the next step), and one or two at the
    start. With gradients, an attempt that is not finite is made twice. There is at most one host read per attempt, and
    a few more for the start of common steps, failures, and outputs with ``Checkpointed``. Besides ``f``, an attempt of
    :class:`Dopri5` takes about 45 operations with steps per sample and 20 with common steps. When fewer than half of
    the rows remain, the others are dropped from the batch.

    Raises:
        ValueError: if a tolerance is negative or both are zero, or another option is out of its range.
        RuntimeError: for a failure, with ``on_failure="raise"``.

    Source: Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, chapter II.4.

    Example:
        >>> from cflow import solvers
        >>> y0 = torch.tensor([[0.1], [2.0]])  # of y' = y^2, the second solution is infinite at t = 0.5
        >>> solution = solvers.Tsit5().solve(lambda t, y: y.square(), y0, 0.0, 1.0)
        >>> [solvers.Status(status).name for status in solution.status.tolist()]
        ['SUCCESS', 'STEP_TOO_SMALL']
    """

    rtol: float = 1e-5
    atol: float = 1e-6
    max_steps: int = 10_000
    first_step: float | None = None
    per_sample: bool = True
    controller: PID = field(default=PID(), kw_only=True)
    dt_min: float | None = field(default=None, kw_only=True)
    dt_max: float | None = field(default=None, kw_only=True)
    on_dt_min: Literal["stop", "accept"] = field(default="stop", kw_only=True)
    parts: Mapping[str | int, Tolerance | None] | None = field(default=None, kw_only=True)
    on_failure: Literal["return", "raise"] = field(default="return", kw_only=True)
    gradient: Gradient = field(default=Backprop(), kw_only=True)
    check_every: int | None = field(default=None, kw_only=True)

    tableau: ClassVar[Tableau]

    def __post_init__(self):
        name = type(self).__name__
        check_tolerances(name, self.rtol, self.atol)
        for option in ("max_steps", "check_every"):
            value = getattr(self, option)
            if value is None and option == "check_every":
                continue
            if not is_integer(value, 1):
                raise ValueError(f"{name}({option}={value!r}): steps are whole; pass an integer of at least 1.")
        for option in ("first_step", "dt_min", "dt_max"):
            value = getattr(self, option)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(
                    f"{name}({option}={value}): a step length is positive, also backward in time; pass a positive "
                    f"number, or None."
                )
        if None not in (self.dt_min, self.dt_max) and self.dt_min > self.dt_max:
            raise ValueError(f"{name}(dt_min={self.dt_min}, dt_max={self.dt_max}): dt_min exceeds dt_max; swap them.")
        for option, choices in (("on_dt_min", ("stop", "accept")), ("on_failure", ("return", "raise"))):
            if getattr(self, option) not in choices:
                raise ValueError(
                    f"{name}({option}={getattr(self, option)!r}): unknown value; pass "
                    f"{' or '.join(map(repr, choices))}."
                )
        bounds = () if self.parts is None else self.parts.items()
        for key, bound in bounds:
            if bound is not None and not isinstance(bound, Tolerance):
                raise TypeError(
                    f"{name}(parts={{{key!r}: {bound!r}}}): expected a tolerance; pass Tolerance(1e-3, 1e-3), or None "
                    f"to leave the part out of step control."
                )
        if not isinstance(self.controller, PID):
            raise TypeError(
                f"{name}(controller={self.controller!r}): expected a controller; pass solvers.PID(0.4, 0.3)."
            )
        check_gradient(name, self.gradient, {"equation": NO_ADJOINT})

    why_no_graph = None

    @property
    def step_tolerance(self) -> Tolerance:
        """The tolerance for accepting steps."""
        return Tolerance(self.rtol, self.atol)

    @property
    def shares_steps(self) -> bool:
        """Whether all samples take the same steps."""
        return not self.per_sample

    def attempts(self, problem: Problem) -> Attempts:
        """Starts a solve of ``problem`` by attempts on tensors that keep their memory."""
        self.check_interval(problem)
        return Attempts(self, problem)

    def _check(self, problem: Problem) -> None:
        self.bounds(problem)

    def _solve(self, problem: Problem) -> Solution:
        """Steps every sample to the end; gradients flow through the accepted steps."""
        bounds = self.bounds(problem)
        if problem.batch == 0:
            return problem.nothing()
        self.check_interval(problem)
        tape = self.gradient.begin(problem)
        with without_graph(tape):
            solution = (PerSample if self.per_sample else Joint)(self, problem, bounds, tape).solution()
        return solution.require_success() if self.on_failure == "raise" else solution

    def stages(self, problem: Problem, bounds: list[Tolerance | None], graph: bool) -> Stages:
        """Returns what computes a step of ``problem`` and its error, with ``bounds``; ``graph``: whether it is kept."""
        return Stages(self.tableau, problem, bounds, graph)

    @staticmethod
    def check_interval(problem: Problem) -> None:
        """Raises if the dtype of time cannot distinguish the two ends of ``problem``."""
        if abs(problem.t1 - problem.t0) < torch.finfo(problem.dtype).eps / 2 * max(abs(problem.t0), abs(problem.t1)):
            raise ValueError(
                f"{problem.owner}.solve(t0={problem.t0}, t1={problem.t1}): the two are equal in {problem.dtype}, the "
                f"dtype of time; shift the time towards zero, or pass a float64 state."
            )

    def bounds(self, problem: Problem) -> list[Tolerance | None]:
        """Lists the tolerance of every part of the state of ``problem``, then of every quadrature."""
        return [*self._bounds(problem), *problem.tolerances.values()]

    def _bounds(self, problem: Problem) -> list[Tolerance | None]:
        """Lists the tolerance of every part of the state."""
        own, state = Tolerance(self.rtol, self.atol), problem.like
        if self.parts is None:
            return [own] * len(problem.y0)
        entries = dict(state) if isinstance(state, dict) else dict(enumerate(state)) if not problem.single else {}
        unknown = [key for key in self.parts if key not in entries]
        if unknown:
            raise ValueError(
                f"{problem.owner}(parts={dict(self.parts)}): the state has no part {unknown[0]!r}; "
                + (f"choose from {list(entries)}." if entries else "it is one tensor, so use rtol and atol.")
            )
        bounds = [self.parts.get(key, own) for key, entry in entries.items() for _ in split(entry, entry)]
        if not any(bounds) and not any(problem.tolerances.values()):
            raise ValueError(
                f"{problem.owner}(parts={dict(self.parts)}): no part has a tolerance, so the steps are undefined; pass "
                f"at least one."
            )
        return bounds

    @property
    def unit(self) -> float:
        """The relative error that is just accepted, if errors include the safety factor."""
        return self.controller.safety ** (-(self.tableau.embedded_order + 1) / self.controller.integral)

    def shortest(self, problem: Problem) -> float:
        """Returns the shortest step for ``problem``: ``dt_min``, or the shortest that the dtype of time resolves."""
        resolved = (
            4 * torch.finfo(problem.dtype).eps * max(abs(problem.t0), abs(problem.t1), abs(problem.t1 - problem.t0))
        )
        return max(resolved, self.dt_min or 0.0)

    def longest(self, problem: Problem) -> float:
        """Returns the longest step for ``problem``."""
        return min(abs(problem.t1 - problem.t0), max(self.dt_max or math.inf, self.shortest(problem)))

    @torch.no_grad()
    def begin(self, problem: Problem, bounds: list[Tolerance | None], k: list[Tensor]) -> Tensor:
        """Computes first steps ``[B]`` (positive) from the sizes of y, y' and y'' (Hairer, Norsett and Wanner, II.4).

        ``bounds`` are those of :meth:`bounds`, and ``k`` is the slope at the start of ``problem``. For common steps the
        sizes are means over the batch, so that all first steps are equal.
        """
        t = torch.full((problem.batch,), problem.t0, dtype=problem.dtype, device=problem.device)
        if self.first_step is not None:
            return torch.full_like(t, min(max(self.first_step, self.shortest(problem)), self.longest(problem)))
        own = Tolerance(self.rtol, self.atol)
        scale = [
            part.abs().mul_(bound.rtol).add_(max(bound.atol, torch.finfo(part.dtype).tiny))
            for part, bound in zip(problem.y0, [bound or own for bound in bounds])
        ]
        k = [slope.detach() for slope in k]
        size, slope = self._sizes(problem.y0, scale), self._sizes(k, scale)
        h = torch.where((size < 1e-5) | (slope < 1e-5), 1e-6, 0.01 * size / slope).clamp(max=self.longest(problem))
        h = torch.where(torch.isfinite(h), h, 0.0)
        signed = h if problem.t1 > problem.t0 else -h
        probe = [torch.addcmul(part, like_rows(signed, part).to(part.dtype), dy) for part, dy in zip(problem.y0, k)]
        # Rounding may move t + h past the end, where f must not be evaluated.
        low, high = sorted((problem.t0, problem.t1))
        bounds_of_t = upload([low, high], t.dtype, t.device)
        later, _ = problem(torch.minimum(torch.maximum(t + signed, bounds_of_t[0]), bounds_of_t[1]), probe)
        bend = self._sizes([new - old for new, old in zip(later, k)], scale) / h
        bend = torch.where(torch.isfinite(bend), bend, slope)
        largest = torch.maximum(slope, bend)
        exponent = 1 / (self.tableau.embedded_order + 1)
        other = torch.where(largest <= 1e-15, (h * 1e-3).clamp(min=1e-6), (0.01 / largest) ** exponent)
        h = torch.minimum(100 * h, other)
        return torch.where(torch.isfinite(h), h, 0.0).clamp(self.shortest(problem), self.longest(problem))

    def _sizes(self, parts: list[Tensor], scales: list[Tensor]) -> Tensor:
        """Computes the root mean square of each part over its scale, and the largest over the parts: ``[B]``."""
        sizes = []
        for part, scale in zip(parts, scales):
            each = per_row(part / scale).square()
            mean = each.mean(1) if each.shape[1] else each.sum(1)
            sizes.append(mean.sqrt() if self.per_sample else mean.mean().sqrt().expand(len(mean)))
        return torch.stack(sizes).amax(0)


@register("solvers.Bosh3")
@dataclass(frozen=True, repr=False)
class Bosh3(Adaptive):
    r"""Integrates with the method of Bogacki and Shampine, order 3 with an embedded order 2; see :class:`Adaptive`.

    Cost: ``2 + 3 * attempts`` evaluations of ``f``. For loose tolerances, 1e-2 to 1e-3.

    Source: A 3(2) pair of Runge-Kutta formulas, Bogacki and Shampine, 1989, Applied Mathematics Letters 2(4).

    Example:
        >>> solution = Bosh3(rtol=1e-3, atol=1e-3).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0)
        >>> abs(solution.y.item() - 0.367879) < 2e-3
        True
    """

    tableau: ClassVar[Tableau] = tableaus.BOSH3


@register("solvers.Dopri5")
@dataclass(frozen=True, repr=False)
class Dopri5(Adaptive):
    r"""Integrates with the method of Dormand and Prince, order 5 with an embedded order 4; see :class:`Adaptive`.

    Cost: ``2 + 6 * attempts`` evaluations of ``f``, one fewer with ``first_step``.

    Source: A family of embedded Runge-Kutta formulae, Dormand and Prince, 1980,
    Journal of Computational and Applied Mathematics 6(1).

    Example:
        >>> rates = torch.tensor([[1.0], [20.0]])
        >>> solution = Dopri5().solve(lambda t, y, rate: -rate * y, torch.ones(2, 1), 0.0, 1.0, args=(rates,))
        >>> bool(((solution.y - torch.exp(-rates)).abs() < 1e-4).all())
        True
        >>> slow, fast = solution.stats.steps.tolist()
        >>> slow < fast
        True
    """

    tableau: ClassVar[Tableau] = tableaus.DOPRI5


@register("solvers.Tsit5")
@dataclass(frozen=True, repr=False)
class Tsit5(Adaptive):
    r"""Integrates with the method of Tsitouras, order 5 with an embedded order 4; see :class:`Adaptive`.

    Cost: ``2 + 6 * attempts`` evaluations of ``f``. On many problems its error is a little smaller than that of
    :class:`Dopri5` at equal cost.

    Source: Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption, Tsitouras, 2011,
    Computers and Mathematics with Applications 62(2).

    Example:
        >>> solution = Tsit5(1e-8, 1e-8).solve(lambda t, y: -y, torch.ones(1, 1).double(), 0.0, 1.0, at=[0.5, 1.0])
        >>> solution.trajectory[0].item()
        0.606530...
    """

    tableau: ClassVar[Tableau] = tableaus.TSIT5


@register("solvers.Dopri8")
@dataclass(frozen=True, repr=False)
class Dopri8(Adaptive):
    r"""Integrates with the method of Prince and Dormand, order 8 with an embedded order 7; see :class:`Adaptive`.

    Cost: ``2 + 13 * attempts`` evaluations of ``f``. For tight tolerances, 1e-8 and below, in float64. It has no
    continuous extension: steps are cut to end at output times.

    Source: High order embedded Runge-Kutta formulae, Prince and Dormand, 1981,
    Journal of Computational and Applied Mathematics 7(1).

    Example:
        >>> Dopri8(1e-10, 1e-10).solve(lambda t, y: -y, torch.ones(1, 1).double(), 0.0, 1.0).y.item()
        0.36787944117...
    """

    tableau: ClassVar[Tableau] = tableaus.DOPRI8
