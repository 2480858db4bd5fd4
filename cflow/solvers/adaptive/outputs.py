"""States of adaptive solves at output times, from the continuous extension of the method, per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from cflow.solvers.gradients.adjoint import Tape
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution, Stats
from cflow.solvers.state import like_rows
from cflow.solvers.tableau import Tableau
from cflow.solvers.uploads import upload

__all__ = ["Trajectory"]


class Trajectory:
    """Stores the states at the output times strictly inside the interval, as samples pass them.

    ``inner`` lists these times; ``first`` is the index of the first one among all output times.
    """

    def __init__(self, problem: Problem, tableau: Tableau, graph: bool):
        at = problem.at or []
        self.problem, self.tableau, self.graph = problem, tableau, graph
        self.inner = [t for t in at if t not in (problem.t0, problem.t1)]
        self.first = sum(t == problem.t0 for t in at)
        self.places = torch.arange(problem.batch, device=problem.device)
        self.times = upload(self.inner, problem.dtype, problem.device)
        self.polynomials: Tensor | None = None  # of the continuous extension, computed at first use
        self.pieces: list[tuple[Tensor, list[Tensor]]] = []
        size = (len(self.inner) + 1) * problem.batch  # the last block receives masked values
        self.kept = [] if graph else [part.new_zeros((size, *part.shape[1:])) for part in problem.y0 if self.inner]

    def weights(self, theta: float | Tensor) -> list[float] | Tensor:
        r"""Computes the weights :math:`b_i(\theta)` of the continuous extension: one per stage, or ``[stages, b]``."""
        table = self.tableau.extension
        if not isinstance(theta, Tensor):
            return [sum(c * theta**power for power, c in enumerate(row, 1)) for row in table]
        if self.polynomials is None:
            self.polynomials = torch.tensor(table, dtype=theta.dtype, device=theta.device)
        *lower, weights = self.polynomials.unsqueeze(-1).unbind(1)
        for coefficients in reversed(lower):
            weights = torch.addcmul(coefficients, weights, theta)
        return weights * theta

    def store(self, slot: int | Tensor, rows: Tensor | None, parts: list[Tensor], mask: Tensor | None = None) -> None:
        """Stores states of some rows (None: all) at the inner time ``slot``, one number or one per row, if ``mask``."""
        places = self.places if rows is None else rows
        if mask is not None:
            slot = torch.where(mask, slot, len(self.inner))
        flat = places + slot * self.problem.batch
        if self.graph:
            self.pieces.append((flat, parts))
        else:
            for kept, part in zip(self.kept, parts):
                kept.index_copy_(0, flat, part)

    def states(self) -> list[list[Tensor]]:
        """Returns the stored states by inner time; zeros for a sample that has not reached it."""
        kept = self.kept
        if self.graph and self.inner:
            flat = torch.cat([each for each, _ in self.pieces]) if self.pieces else self.places[:0]
            size = (len(self.inner) + 1) * self.problem.batch
            kept = []
            for index, like in enumerate(self.problem.y0):
                parts = [parts[index] for _, parts in self.pieces] or [like[:0]]
                kept.append(like.new_zeros((size, *like.shape[1:])).index_copy(0, flat, torch.cat(parts)))
        stretches = [part.unflatten(0, (len(self.inner) + 1, self.problem.batch)) for part in kept]
        return [[part[slot] for part in stretches] for slot in range(len(self.inner))]

    def whole(self, inner: list[list[Tensor]], passed: Tensor, y: list[Tensor]) -> list[list[Tensor]]:
        """Adds the states at the ends; a sample that stopped before a time (``passed [B]``) gets its last state."""
        at = self.problem.at or []
        inner = [
            [torch.where(like_rows(passed > slot, part), part, last) for part, last in zip(states, y)]
            for slot, states in enumerate(inner)
        ]
        last = len(at) - self.first - len(self.inner)
        return [self.problem.y0] * self.first + inner + [y] * last

    def solution(self, tape: Tape | None, y, q, passed: Tensor, stats: Stats, status: Tensor) -> Solution:
        """Builds the solution of an adaptive solve; the tape, if there is one, connects it to the graph."""
        outputs = self.states()
        with torch.set_grad_enabled(self.graph or tape is not None):
            if tape is not None:
                y, q, outputs = tape.attach(y, q, outputs)
            states = self.whole(outputs, passed, y)
            return self.problem.solution(y, q, stats, self.problem.status(y, q, status), states)
