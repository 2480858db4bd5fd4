"""Embedded Runge-Kutta methods that choose their steps: the options, the first step, and the methods."""

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
    r"""Integrates with an embedded Runge-Kutta method, every sample at its own pace; a subclass names its tableau.

    A step of a sample is accepted when the root mean square of its error over its own state,

    .. math:: \Big(\tfrac1n \sum_i \big(e_i / (\text{atol} + \text{rtol} \max(|y_i|, |y^+_i|))\big)^2\Big)^{1/2},

    is at most one; of several parts, and of the quadratures that carry a tolerance, the largest counts. So a sample
    takes the same steps alone and in a batch. ``per_sample=False`` takes one step for all, with the mean over the
    batch as well: fewer operations a step, and more steps where samples differ. The last step ends exactly at the end
    and ``f`` is never called outside the interval. Step sizes are constants of the gradient.

    States at output times come from the method's continuous extension, which lengthens no solve (its order is one less
    than the method's at most); where a method has none, steps are cut to land on them.

    A sample fails by itself and stays at its last good state (of what is held to a tolerance): ``NON_FINITE``,
    ``STEP_TOO_SMALL`` or ``MAX_STEPS`` (attempts, counted per sample) in ``Solution.status``; the others finish. With
    ``per_sample=False`` all go on while the step can be made smaller, then those whose own error is the cause are left
    behind.

    Args:
        rtol, atol: the tolerances.
        max_steps: attempts after which a sample is given up.
        first_step: the length of the first step; chosen from the field unless given (one call more).
        per_sample: a step per sample, or one for the batch.
        controller: how errors set the steps.
        dt_min, dt_max: bounds of a step's length. The last step, and steps that land on an output time, may be shorter,
            and up to a hundredth longer.
        on_dt_min: what happens to a sample whose error asks for less than ``dt_min``: ``"stop"`` ends it with
            ``STEP_TOO_SMALL``, ``"accept"`` takes steps of ``dt_min`` whatever their error (not beyond finite numbers).
        parts: tolerances of parts of the state, by key of a dict or place in a tuple; None leaves a part out of step
            control, parts that are not named are held to ``rtol`` and ``atol``.
        on_failure: ``"return"`` leaves failures to ``Solution.status``; ``"raise"`` raises for the first.
        gradient: how gradients pass through the solve: ``Backprop()`` or ``Checkpointed()``.
        check_every: attempts between two looks at which samples go on, each of which waits for an accelerator; by
            default every one on a CPU and every fourth elsewhere. Samples that have finished rest until then. With
            gradients, and for output times, every attempt is looked at whatever is asked.

    Cost: one call of ``f`` per stage and attempt (the last stage serves the next step where the tableau allows), one
    or two to start; an attempt that leaves the finite numbers is made twice where gradients are on. At most one host
    read per attempt, a few more for a joint start, failures, and outputs on the tape of ``Checkpointed``. Besides
    ``f``, an attempt of :class:`Dopri5` takes some 45 operations per sample and 20 for the batch. When fewer than half
    of the rows are still on their way, the others are dropped from the batch.

    Raises:
        ValueError: if a tolerance is negative or both are zero, or another option is out of its range.
        RuntimeError: for a failure, with ``on_failure="raise"``.

    Source: Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, chapter II.4.
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
                raise ValueError(f"{name}({option}={value!r}): steps are counted; pass an integer of at least 1.")
        for option in ("first_step", "dt_min", "dt_max"):
            value = getattr(self, option)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(
                    f"{name}({option}={value}): a step has a positive length (its sign follows the interval's "
                    f"direction); pass a positive number, or None to leave it to the solver."
                )
        if None not in (self.dt_min, self.dt_max) and self.dt_min > self.dt_max:
            raise ValueError(
                f"{name}(dt_min={self.dt_min}, dt_max={self.dt_max}): no step is longer than the one and shorter than "
                f"the other; swap them."
            )
        for option, choices in (("on_dt_min", ("stop", "accept")), ("on_failure", ("return", "raise"))):
            if getattr(self, option) not in choices:
                raise ValueError(
                    f"{name}({option}={getattr(self, option)!r}): there is no such policy; pass "
                    f"{' or '.join(map(repr, choices))}."
                )
        bounds = () if self.parts is None else self.parts.items()
        for key, bound in bounds:
            if bound is not None and not isinstance(bound, Tolerance):
                raise TypeError(
                    f"{name}(parts={{{key!r}: {bound!r}}}): a bound is an object; pass Tolerance(1e-3, 1e-3), say, or "
                    f"None to leave the part out of step control."
                )
        if not isinstance(self.controller, PID):
            raise TypeError(
                f"{name}(controller={self.controller!r}): options are objects; pass solvers.PID(0.4, 0.3), say."
            )
        check_gradient(name, self.gradient, {"equation": NO_ADJOINT})

    why_no_graph = None

    @property
    def step_tolerance(self) -> Tolerance:
        """The tolerance by which steps are accepted."""
        return Tolerance(self.rtol, self.atol)

    @property
    def shares_steps(self) -> bool:
        """Whether the batch takes one step for all."""
        return not self.per_sample

    def attempts(self, problem: Problem) -> Attempts:
        """Begins a solve by attempts on tensors that stay where they are."""
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

    @staticmethod
    def check_interval(problem: Problem) -> None:
        """Raises where the time's dtype cannot distinguish the two ends."""
        if abs(problem.t1 - problem.t0) < torch.finfo(problem.dtype).eps / 2 * max(abs(problem.t0), abs(problem.t1)):
            raise ValueError(
                f"{problem.owner}.solve(t0={problem.t0}, t1={problem.t1}): the two are one number in {problem.dtype}, "
                f"the dtype of the state and so of time; shift the time towards zero, or pass a float64 state."
            )

    def bounds(self, problem: Problem) -> list[Tolerance | None]:
        """Lists the bound of every part of the state, then of every quadrature."""
        return [*self._bounds(problem), *problem.tolerances.values()]

    def _bounds(self, problem: Problem) -> list[Tolerance | None]:
        """Lists the bound of every part of the state."""
        own, state = Tolerance(self.rtol, self.atol), problem.like
        if self.parts is None:
            return [own] * len(problem.y0)
        entries = dict(state) if isinstance(state, dict) else dict(enumerate(state)) if not problem.single else {}
        unknown = [key for key in self.parts if key not in entries]
        if unknown:
            raise ValueError(
                f"{problem.owner}(parts={dict(self.parts)}): the state has no part {unknown[0]!r}; name some of "
                f"{list(entries)}" + ("." if entries else " (a single tensor has no parts: use rtol and atol).")
            )
        bounds = [self.parts.get(key, own) for key, entry in entries.items() for _ in split(entry, entry)]
        if not any(bounds) and not any(problem.tolerances.values()):
            raise ValueError(
                f"{problem.owner}(parts={dict(self.parts)}): every part is left out of step control, so nothing sets "
                f"the steps; give one of them a Tolerance."
            )
        return bounds

    @property
    def unit(self) -> float:
        """The relative error that is just accepted, where the safety of steps is folded into errors."""
        return self.controller.safety ** (-(self.tableau.embedded_order + 1) / self.controller.integral)

    def shortest(self, problem: Problem) -> float:
        """Gives the length below which no step is made: ``dt_min``, or the shortest that the time's dtype resolves."""
        resolved = (
            4 * torch.finfo(problem.dtype).eps * max(abs(problem.t0), abs(problem.t1), abs(problem.t1 - problem.t0))
        )
        return max(resolved, self.dt_min or 0.0)

    def longest(self, problem: Problem) -> float:
        """Gives the length above which no step is made."""
        return min(abs(problem.t1 - problem.t0), max(self.dt_max or math.inf, self.shortest(problem)))

    @torch.no_grad()
    def begin(self, problem: Problem, bounds: list[Tolerance | None], k: list[Tensor]) -> Tensor:
        """Chooses first steps ``[B]`` (positive), from the sizes of y, y' and y'' as Hairer, Norsett and Wanner (II.4).

        For the whole batch the sizes are means over it, so that all are alike.
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
        # Rounding may carry t + h past the end, where f must not be called.
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

    Cost: ``2 + 3 * attempts`` calls of ``f``. For loose tolerances, 1e-2 to 1e-3.

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

    Cost: ``2 + 6 * attempts`` calls of ``f``, one less when ``first_step`` is given.

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

    Cost: ``2 + 6 * attempts`` calls of ``f``. Its error is a little smaller than that of :class:`Dopri5` at equal cost
    on many problems.

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

    Cost: ``2 + 13 * attempts`` calls of ``f``. For tight tolerances, 1e-8 and below, in float64. It has no continuous
    extension: steps are cut to land on output times.

    Source: High order embedded Runge-Kutta formulae, Prince and Dormand, 1981,
    Journal of Computational and Applied Mathematics 7(1).

    Example:
        >>> Dopri8(1e-10, 1e-10).solve(lambda t, y: -y, torch.ones(1, 1).double(), 0.0, 1.0).y.item()
        0.36787944117...
    """

    tableau: ClassVar[Tableau] = tableaus.DOPRI8
