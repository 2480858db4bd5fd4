"""The loop of adaptive solves on tensors that stay where they are, a few attempts at a time, as CUDA graphs hold it."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from cflow.solvers.adaptive.per_sample import PerSample, Rows, Tried
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution, Stats
from cflow.solvers.state import on_tensors, tensors_of
from cflow.solvers.uploads import upload

__all__ = ["Attempts"]


class Attempts(PerSample):
    """The loop of :class:`PerSample` on tensors that stay where they are: no row is dropped, nothing read in between.

    A step for the whole batch is a step per sample with one error: the rows' own, put together over those that are
    still on their way. Where it cannot be made short enough, the rows whose own error is the cause are given up.

    Attributes:
        every: attempts made by one call of :meth:`several`.
        limit: attempts after which a sample is given up.
        going: which rows are on their way, ``[B]``, written by every call.
    """

    def __init__(self, solver, problem: Problem):
        super().__init__(solver, problem, solver.bounds(problem), None)
        self.joint, self.looks, self.limit = solver.shares_steps, False, solver.max_steps
        self.every = min(solver.check_every or 4, self.limit)
        self.end = upload(problem.t1, problem.dtype, problem.device)
        # Several of these may be one tensor, or the input, and all are written into.
        copies = {each.name: on_tensors(torch.clone, getattr(self.rows, each.name)) for each in fields(Rows)}
        self.rows = Rows(**copies)
        self.going = self.rows.h != 0

    def several(self) -> None:
        """Makes attempts and writes what became of the rows in their place."""
        self.problem.calls = 0
        self.stages = self._stages()  # whose buffers then belong to the graph
        rows, going = self.rows, self.going
        for _ in range(self.every):
            rows, going = self._unseen(rows, going, self.end, False)
        for mine, new in zip((*tensors_of(vars(self.rows)), self.going), (*tensors_of(vars(rows)), going)):
            if mine is not new:
                mine.copy_(new)

    def rest(self) -> tuple[Rows, int]:
        """Makes the attempts that are left one by one, as without a graph; gives the rows and the number of calls."""
        self.problem.calls = 0
        self.stages = self._stages()
        rows, _, _ = self._attempts(replace(self.rows), self.going, self.end, False)
        return rows, self.problem.calls

    def collected(self, rows: Rows, nfe: int) -> Solution:
        """Builds the solution; raises for samples that failed where the solver does."""
        rejected, evaluations = rows.steps - rows.accepted, nfe * self.problem.batch
        stats = Stats(nfe, evaluations, rows.steps, rows.accepted, rejected, rows.t)
        solution = self.trajectory.solution(None, rows.y, rows.q, rows.passed, stats, rows.status)
        return solution.require_success() if self.solver.on_failure == "raise" else solution

    def _ratios(self, attempt, rows, going, step):
        if not self.joint:
            return super()._ratios(attempt, rows, going, step)
        own = shared = None
        count = going.sum().clamp(min=1).sqrt()
        for each in self.stages.ratios(attempt, rows.y, rows.q, step, self.solver.unit):
            mean = torch.linalg.vector_norm(torch.where(going, each, 0.0)) / count
            own = each if own is None else torch.maximum(own, each)
            shared = mean if shared is None else torch.maximum(shared, mean)
        # A row at rest is judged by itself, so that it stays where it is.
        return torch.where(going, shared, own).to(rows.t.dtype), own.to(rows.t.dtype)

    def _try(self, rows: Rows, going: Tensor, end: Tensor) -> Tried:
        tried = super()._try(rows, going, end)
        if self.joint:
            cause = (tried.own <= self.solver.unit).logical_not()
            tried.proposed = torch.where(tried.stuck > cause, tried.step, tried.proposed)
            tried.stuck = tried.stuck & cause
        return tried
