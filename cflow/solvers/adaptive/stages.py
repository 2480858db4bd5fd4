"""One Runge-Kutta step with an error estimate; all adaptive loops use it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.solvers.problem import Problem
from cflow.solvers.solution import Tolerance
from cflow.solvers.state import like_rows, per_row
from cflow.solvers.tableau import Combination, Tableau, stages_of
from cflow.solvers.uploads import upload

__all__ = ["STRETCH", "Attempt", "Stages"]

STRETCH = 1.01  # a step is extended to the end if less than 1 % of it would remain for the next step


@dataclass
class Attempt:
    """Holds the result of a step, accepted or not.

    ``moves`` has the slopes times the step, by part of the state and stage; ``k`` and ``g`` are slope and integrands at
    the end.
    """

    y: list[Tensor]
    k: list[Tensor]
    q: list[Tensor]
    g: list[Tensor]
    moves: list
    integrands: list[list[Tensor]]


class Stages:
    """Computes steps of a problem.

    Slopes are stored multiplied by the step, in one contiguous buffer per part of the state. So a stage takes two
    operations for any number of slopes: a product into the buffer, and the state plus the buffer times a row of the
    tableau. Such a buffer would cut a graph, and autocast would round the product, so in these two cases stages are
    sums of scaled slopes. TF32 never rounds the product: torch turns it off for products of a matrix and a vector
    (``NoTF32Guard`` in ``at::cuda::blas::gemv``), where it brings no gain.
    """

    again = None  # how a recorded step is computed again, if not by its tableau alone: see ``gradients.adjoint.Step``

    def __init__(self, tableau: Tableau, problem: Problem, bounds: list[Tolerance | None], graph: bool):
        self.tableau, self.problem, self.bounds = tableau, problem, bounds
        dual = torch.autograd.forward_ad._current_level >= 0
        self.sums = graph or dual or torch.is_autocast_enabled(problem.device.type)
        # Stages at which an integral counts: in its value, in its error, or as the first stage of the next step.
        last = len(tableau.a) - 1
        self.counting = tableau.step.stages | tableau.estimate.stages | ({last} if tableau.fsal else set())
        self.buffers: list[_Buffer] = []
        self.constants: dict[tuple, Tensor] = {}

    def step(self, y, k, q, g, times, h: Tensor, args) -> Attempt:
        """Steps rows from ``y`` with slope ``k`` over ``h``, a number or ``[b]``; ``times [b]`` are the stage times."""
        tableau, problem = self.tableau, self.problem
        widths = [like_rows(h, part).to(part.dtype) if h.dim() else h for part in y]
        integrands, last = [g], len(tableau.a) - 1
        if self.sums:
            moves = [[slope * width for slope, width in zip(k, widths)]]
        else:
            if not self.buffers or self.buffers[0].shape != y[0].shape:
                self.buffers = [_Buffer(tableau, part) for part in y]
            moves = self.buffers
            for buffer, part, slope, width in zip(moves, y, k, widths):
                buffer.start = part.reshape(-1)
                torch.mul(slope, width, out=buffer.stages[0])
        z = y
        for stage in range(1, last + 1):
            z = self._point(y, moves, stage)
            k, g = problem(times[stage], z, args, stage in self.counting)
            integrands.append(g)
            if self.sums:
                moves.append([slope * width for slope, width in zip(k, widths)])
            else:
                for buffer, slope, width in zip(moves, k, widths):
                    torch.mul(slope, width, out=buffer.stages[stage])
        if not tableau.fsal:
            z = self._point(y, moves, last + 1)
            k, g = problem(times[-1], z, args)
        q = [part + self._weighed(tableau.step, integrands, at) * _wide(h, part) for at, part in enumerate(q)]
        return Attempt(z, k, q, g, moves, integrands)

    def ratio(self, attempt: Attempt, y: list[Tensor], q: list[Tensor], h: Tensor, unit: float) -> Tensor:
        """Computes the largest error over the allowed error, times ``unit``; ``[b]`` if ``h`` is, else one number.

        The error of a part or an integral is the root mean square over its entries; those without a bound do not count.
        """
        largest = None
        for found in self.ratios(attempt, y, q, h, unit):
            largest = found if largest is None else torch.maximum(largest, found)
        return largest if largest.dtype is self.problem.dtype else largest.to(self.problem.dtype)

    def ratios(self, attempt: Attempt, y: list[Tensor], q: list[Tensor], h: Tensor, unit: float) -> Iterator[Tensor]:
        """Computes the ratios of which :meth:`ratio` is the largest: one for each part and integral with a bound."""
        for index, (bound, old, new) in enumerate(zip(self.bounds, [*y, *q], [*attempt.y, *attempt.q])):
            if bound is None:
                continue
            if index < len(y):
                yield self._part_ratio(attempt, index, old, new, bound, h, unit)
                continue
            error = self._weighed(self.tableau.estimate, attempt.integrands, index - len(y))
            yield self._relative(error * _wide(h, error), old, new, bound, h, unit)

    def _part_ratio(self, attempt: Attempt, index: int, old, new, bound: Tolerance, h: Tensor, unit: float) -> Tensor:
        """Computes the error of one part of the state over the allowed error."""
        if self.sums:
            error = self._weighed(self.tableau.estimate, attempt.moves, index)
        else:
            error = attempt.moves[index].error().view_as(old)
        return self._relative(error, old, new, bound, h, unit)

    def _relative(self, error: Tensor, old, new, bound: Tolerance, h: Tensor, unit: float) -> Tensor:
        """Computes the root mean square of errors over the allowed errors: ``[b]`` if ``h`` is, else one number."""
        each = h.dim() > 0
        size = max(1, old.shape[1:].numel() if each else old.numel()) ** 0.5
        relative = error / self._allowed(old, new, bound, size / unit)
        return torch.linalg.vector_norm(per_row(relative), dim=1) if each else torch.linalg.vector_norm(relative)

    def interpolate(self, y: list[Tensor], attempt: Attempt, weights: list[float] | Tensor) -> list[Tensor]:
        """Computes the state inside a step, ``y + sum_j w_j h k_j``; ``weights`` per stage, or ``[stages, b]``."""
        states = []
        for index, part in enumerate(y):
            for stage, weight in enumerate(weights):
                move = attempt.moves[stage][index] if self.sums else attempt.moves[index].stages[stage]
                if isinstance(weight, Tensor):
                    part = torch.addcmul(part, like_rows(weight, part).to(part.dtype), move)
                elif weight:
                    part = torch.add(part, move, alpha=weight)
            states.append(part)
        return states

    def _point(self, y: list[Tensor], moves: list, stage: int) -> list[Tensor]:
        """Computes the state at a stage; one past the last stage is the end of the step."""
        if not self.sums:
            return [
                torch.addmv(each.start, each.slopes[stage], each.rows[stage]).view_as(part)
                for part, each in zip(y, moves)
            ]
        weights = self.tableau.step if stage == len(self.tableau.a) else self.tableau.stages[stage]
        return [weights.advance(part, stages_of(moves, at), 1.0) for at, part in enumerate(y)]

    @staticmethod
    def _weighed(weights: Combination, values: list[list[Tensor]], index: int) -> Tensor:
        return weights.bracket(stages_of(values, index)) * weights.weight

    def _allowed(self, old: Tensor, new: Tensor, bound: Tolerance, factor: float) -> Tensor:
        """Computes the error allowed for each entry, times ``factor``; never zero, so that a zero state is accepted."""
        floor = max(factor * bound.atol, torch.finfo(old.dtype).tiny)
        key = (old.dtype, floor)
        if key not in self.constants:
            self.constants[key] = upload(floor, old.dtype, old.device)
        return torch.add(self.constants[key], torch.maximum(old.abs(), new.abs()), alpha=factor * bound.rtol)


class _Buffer:
    """Holds the scaled slopes of a part of the state, and the views of them that the stages use."""

    def __init__(self, tableau: Tableau, part: Tensor):
        count = len(tableau.a)
        whole = part.new_empty((count, *part.shape))
        weights = upload([*tableau.table, tableau.errors], part.dtype, part.device)
        self.shape, self.stages, self.flat = part.shape, whole.unbind(0), whole.view(count, -1).T
        # Stage i uses the slopes before it; the end of the step uses all.
        counts = [min(stage, count) for stage in range(count + 1)]
        self.slopes = [self.flat[:, :seen] for seen in counts]
        self.rows = [weights[stage, :seen] for stage, seen in enumerate(counts)]
        self.estimate, self.start = weights[-1], part

    def error(self) -> Tensor:
        """Computes the error estimate of a whole step."""
        return torch.mv(self.flat, self.estimate)


def _wide(h: Tensor, value: Tensor) -> Tensor:
    return like_rows(h, value).to(value.dtype) if h.dim() else h.to(value.dtype)
