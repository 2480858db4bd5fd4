"""Embedded Runge-Kutta methods that choose a step per sample."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from cflow.registry import register
from cflow.solvers import tableau as tableaus
from cflow.solvers.solution import Solution, Stats, Status, check_tolerances
from cflow.solvers.solver import Problem, Solver
from cflow.solvers.state import gather, like_rows, per_row
from cflow.solvers.tableau import Combination, Tableau

__all__ = ["Adaptive", "Dopri5"]

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
_STRETCH = 1.01  # a step that would leave a hundredth of itself for the next one goes to the end at once


@dataclass(frozen=True)
class Adaptive(Solver):
    r"""Integrates with an embedded Runge-Kutta method, every sample at its own pace; a subclass names its tableau.

    A step of a sample is accepted when the root mean square of its error over its own state,

    .. math:: \Big(\tfrac1n \sum_i \big(e_i / (\text{atol} + \text{rtol} \max(|y_i|, |y^+_i|))\big)^2\Big)^{1/2},

    is at most one; of several parts, and of the quadratures that carry a tolerance, the largest counts. So a sample
    takes the same steps alone and in a batch. The next step is the last one times :math:`0.9\, e^{-1/(q+1)}` within
    [0.2, 10] (an integral controller; q is the order of the embedded method), and does not grow right after a
    rejection. Steps that would pass the end or an output time are cut to land on it, and the uncut step is taken up
    again after. Step sizes are constants of the gradient.

    Cost: one call of ``f`` per stage and attempt (the last stage serves the next step where the tableau allows), one
    or two to start, one host read per attempt. When fewer than half of the rows are still on their way, the others are
    dropped from the batch.

    A sample fails by itself and stays at its last good state: ``NON_FINITE``, ``STEP_TOO_SMALL`` or ``MAX_STEPS``
    (attempts, counted per sample) in ``Solution.status``; the others finish. The gradient of a batch in which ``f``
    itself is not finite at a sample's start is not to be trusted.

    Raises:
        ValueError: if a tolerance is negative or both are zero, ``max_steps < 1``, or ``first_step <= 0``.

    Source: Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, chapter II.4.
    """

    rtol: float = 1e-5
    atol: float = 1e-6
    max_steps: int = 10_000
    first_step: float | None = None

    tableau: ClassVar[Tableau]

    def __post_init__(self):
        name = type(self).__name__
        check_tolerances(name, self.rtol, self.atol)
        if isinstance(self.max_steps, bool) or not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise ValueError(f"{name}(max_steps={self.max_steps!r}): steps are counted; pass an integer of at least 1.")
        if self.first_step is not None and not self.first_step > 0:
            raise ValueError(
                f"{name}(first_step={self.first_step}): a first step has a positive length (its sign follows the "
                f"interval's direction); pass a positive number, or None to have it chosen per sample."
            )

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
        """Steps every sample from ``t0`` to ``t1``; gradients flow through the accepted steps."""
        problem = Problem(self, f, y0, t0, t1, args, quadratures, manifold, at)
        if problem.t0 == problem.t1 or problem.batch == 0:
            return problem.nothing()
        full = self._start(problem)
        outputs = []
        targets = list(dict.fromkeys([*(problem.at or ()), problem.t1]))
        for target, end in zip(targets, torch.tensor(targets, dtype=problem.dtype, device=problem.device).unbind(0)):
            if target != problem.t0:
                full = self._advance_to(problem, full, end)
            outputs += [full.y] * (problem.at or []).count(target)
        stats = Stats(problem.calls, problem.rows, full.steps, full.accepted, full.steps - full.accepted, full.t)
        return problem.solution(full.y, full.q, stats, problem.status(full.y, full.q, full.status), outputs)

    def _start(self, problem: Problem) -> _Rows:
        """Evaluates ``f`` at the start and chooses the first step of every sample."""
        t = torch.full((problem.batch,), problem.t0, dtype=problem.dtype, device=problem.device)
        k, g = problem(t, problem.y0)
        length = problem.t1 - problem.t0
        with torch.no_grad():
            if self.first_step is None:
                h = self._first_step(problem, t, [slope.detach() for slope in k])
            else:
                h = torch.full_like(t, min(self.first_step, abs(length)))
            h = torch.where(torch.isfinite(h), h, 0.0).clamp(min=_floor(problem))
            status = problem.status([*problem.y0, *k], [])
        zeros = torch.zeros_like(status)
        q = [torch.zeros_like(value) for value in g]
        return _Rows(problem.y0, k, g, q, t, h, zeros, zeros.clone(), status, torch.full_like(t, _GROW))

    def _first_step(self, problem: Problem, t: Tensor, k: list[Tensor]) -> Tensor:
        """Chooses a first step per sample from the sizes of y, y' and y'', as Hairer, Norsett and Wanner do (II.4)."""
        scale = [_scale(part.abs(), self.rtol, self.atol) for part in problem.y0]
        length = abs(problem.t1 - problem.t0)
        size, slope = _norm(problem.y0, scale), _norm(k, scale)
        h = torch.where((size < 1e-5) | (slope < 1e-5), 1e-6, 0.01 * size / slope).clamp(max=length)
        h = torch.where(torch.isfinite(h), h, 0.0)
        signed = h if problem.t1 > problem.t0 else -h
        probe = [torch.addcmul(part, like_rows(signed, part).to(part.dtype), dy) for part, dy in zip(problem.y0, k)]
        # Rounding may carry t + h past the end, where f must not be called.
        low, high = sorted((problem.t0, problem.t1))
        bounds = torch.tensor([low, high], dtype=t.dtype, device=t.device)
        later, _ = problem(torch.minimum(torch.maximum(t + signed, bounds[0]), bounds[1]), probe)
        bend = _norm([new - old for new, old in zip(later, k)], scale) / h
        bend = torch.where(torch.isfinite(bend), bend, slope)
        largest = torch.maximum(slope, bend)
        exponent = 1 / (self.tableau.embedded_order + 1)
        other = torch.where(largest <= 1e-15, (h * 1e-3).clamp(min=1e-6), (0.01 / largest) ** exponent)
        return torch.minimum(100 * h, other)

    def _advance_to(self, problem: Problem, full: _Rows, end: Tensor) -> _Rows:
        """Steps every sample that has not failed to ``end``, dropping the finished ones along the way."""
        rows, index, args = full, None, problem.args
        active = (rows.t != end) & (rows.status == Status.SUCCESS)
        count = problem.batch
        while count:
            rows, active, count = self._attempt(problem, rows, active, end, args)
            if 0 < count < rows.t.shape[0] / 2:
                full = rows if index is None else full.put(index, rows)
                # The count is known, so a sort finds the active rows without another read.
                chosen = torch.argsort(active.to(torch.uint8), descending=True, stable=True)[:count]
                index = chosen if index is None else index[chosen]
                rows, active, args = full.take(index), active[chosen], gather(problem.args, index)
        return rows if index is None else full.put(index, rows)

    def _attempt(self, problem: Problem, rows: _Rows, active: Tensor, end: Tensor, args: tuple):
        """Tries one step of every active sample; gives the rows after it, which of them go on, and how many."""
        forward = problem.t1 > problem.t0
        with torch.no_grad():
            ahead = end - rows.t if forward else rows.t - end
            last = rows.h * _STRETCH >= ahead
            t_new = torch.where(last, end, torch.add(rows.t, rows.h, alpha=1 if forward else -1))
            t_new = torch.where(active, t_new, rows.t)
            step = t_new - rows.t  # what the clock really moves, rounding included
        y, q, k, g, ratio = self._step(problem, rows, t_new, step, args)
        with torch.no_grad():
            ratio = torch.nan_to_num(ratio, nan=torch.inf, posinf=torch.inf)
            accept = active & (ratio <= 1)
            rejected = active ^ accept
            overflown = rejected & (ratio == torch.inf)
            factor = (ratio ** (-1 / (self.tableau.embedded_order + 1))).mul_(_SAFETY).clamp_(min=_SHRINK)
            proposed = torch.minimum(factor, rows.ceiling) * step.abs()
            # A step that was cut to land on the end says little about the next one: the uncut length stays.
            h = torch.where(last & ~rejected, torch.maximum(rows.h, proposed), proposed)
            t = torch.where(accept, t_new, rows.t)
            steps = rows.steps + active
            going = active & (t != end)
            status = torch.where(going & (steps >= self.max_steps), int(Status.MAX_STEPS), rows.status)
            stuck = rejected & (proposed < _floor(problem))
            cause = torch.where(overflown, int(Status.NON_FINITE), int(Status.STEP_TOO_SMALL))
            status = torch.where(stuck, cause, status)
            going = going & (status == Status.SUCCESS)
            ceiling = torch.where(rejected, 1.0, _GROW).to(problem.dtype)
            count = going.sum()
        if y[0].requires_grad:
            # One read serves both: how many go on, and whether an attempt left the finite numbers. Its infinities
            # would reach the gradient through torch.where as 0 * inf: step again with those samples at rest.
            count, repeat = divmod((2 * count + overflown.any()).item(), 2)
            if repeat:
                t_new, step = torch.where(overflown, rows.t, t_new), torch.where(overflown, 0.0, step)
                y, q, k, g, _ = self._step(problem, rows, t_new, step, args)
        else:
            count = count.item()
        y, q, k, g = (
            [torch.where(like_rows(accept, new), new, old) for new, old in zip(news, olds)]
            for news, olds in ((y, rows.y), (q, rows.q), (k, rows.k), (g, rows.g))
        )
        return _Rows(y, k, g, q, t, h, steps, rows.accepted + accept, status, ceiling), going, count

    def _step(self, problem: Problem, rows: _Rows, t_new: Tensor, step: Tensor, args: tuple):
        """Computes one step: state, integrals, slopes and integrands at its end, and the relative error."""
        tableau = self.tableau
        h = [like_rows(step, part).to(part.dtype) for part in rows.y]
        widths = [like_rows(step, value).to(value.dtype) for value in rows.q]
        slopes, integrands = [rows.k], [rows.g]
        for stage, node in zip(tableau.stages[1:], tableau.nodes[1:]):
            y = _advance(rows.y, slopes, stage, h)
            k, g = problem(t_new if node == 1 else torch.add(rows.t, step, alpha=node), y, args)
            slopes.append(k)
            integrands.append(g)
        q = _advance(rows.q, integrands, tableau.step, widths)
        if not tableau.fsal:
            y = _advance(rows.y, slopes, tableau.step, h)
            k, g = problem(t_new, y, args)
        with torch.no_grad():
            ratio = self._ratio(problem, rows, slopes, integrands, y, q, h, widths)
        return y, q, k, g, ratio

    def _ratio(self, problem: Problem, rows: _Rows, slopes, integrands, y, q, h, widths) -> Tensor:
        """Computes per sample the error of a step relative to the tolerances; at most one is good."""
        estimate = self.tableau.estimate
        judged = [(slopes, index, rows.y[index], y[index], h[index], self) for index in range(len(y))]
        judged += [
            (integrands, index, rows.q[index], q[index], widths[index], tolerance)
            for index, tolerance in enumerate(problem.tolerances.values())
            if tolerance is not None
        ]
        errors, scales = [], []
        for values, index, old, new, width, bound in judged:
            errors.append(estimate.bracket(values, index) * width)
            # The estimate's leading weight divides the tolerances, on the host, where it costs nothing.
            size = torch.maximum(old.abs(), new.abs())
            scales.append(_scale(size, bound.rtol / abs(estimate.weight), bound.atol / abs(estimate.weight)))
        return _norm(errors, scales).to(problem.dtype)


@dataclass
class _Rows:
    """Carries what is known of each sample: all of it is gathered, and put back, together."""

    y: list[Tensor]
    k: list[Tensor]
    g: list[Tensor]
    q: list[Tensor]
    t: Tensor
    h: Tensor
    steps: Tensor
    accepted: Tensor
    status: Tensor
    ceiling: Tensor  # how much the next step may grow

    def take(self, rows: Tensor) -> _Rows:
        """Takes the given rows of everything."""
        return _Rows(**{field.name: gather(getattr(self, field.name), rows) for field in fields(self)})

    def put(self, rows: Tensor, other: _Rows) -> _Rows:
        """Replaces the given rows of everything by another's."""

        def copy(mine, theirs):
            if isinstance(mine, list):
                return [copy(one, two) for one, two in zip(mine, theirs)]
            return mine.index_copy(0, rows, theirs)

        names = [field.name for field in fields(self)]
        return _Rows(**{name: copy(getattr(self, name), getattr(other, name)) for name in names})


def _advance(y: list[Tensor], slopes: list[list[Tensor]], weights: Combination, h: list[Tensor]) -> list[Tensor]:
    """Computes ``y + h * sum_j w_j k_j`` part by part, with a step per sample."""
    return [
        torch.addcmul(part, weights.bracket(slopes, index), h[index], value=weights.weight)
        for index, part in enumerate(y)
    ]


def _scale(size: Tensor, rtol: float, atol: float) -> Tensor:
    """Computes the error allowed for entries of a size, in place; never zero, so that no error at zero is no error."""
    return size.mul_(rtol).add_(max(atol, torch.finfo(size.dtype).tiny))


def _norm(parts, scales) -> Tensor:
    """Computes per sample the root mean square of each part over its scale, and the largest over the parts."""
    sizes = [
        torch.linalg.vector_norm(per_row(part / scale), dim=1) / max(1, part.shape[1:].numel()) ** 0.5
        for part, scale in zip(parts, scales)
    ]
    largest = sizes[0]
    for size in sizes[1:]:
        largest = torch.maximum(largest, size)
    return largest


def _floor(problem: Problem) -> float:
    """Computes the shortest step that the time's dtype resolves."""
    return 4 * torch.finfo(problem.dtype).eps * max(abs(problem.t0), abs(problem.t1), abs(problem.t1 - problem.t0))


@register
@dataclass(frozen=True)
class Dopri5(Adaptive):
    r"""Integrates with the method of Dormand and Prince, order 5 with an embedded order 4, a step per sample.

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
