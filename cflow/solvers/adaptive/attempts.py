"""The loop of adaptive solves for CUDA graphs: a few attempts at a time, on tensors that keep their memory."""

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
    """The loop of :class:`PerSample` on tensors that keep their memory: no row is dropped, and no value is read.

    With common steps, all rows have the same error, which combines the errors of the rows that have not ended. If the
    step cannot be made short enough, the rows whose own error is the cause are ended.

    Attributes:
        every: the number of attempts in one call of :meth:`several`.
        limit: the number of attempts after which a sample is ended.
        going: which rows have not ended, ``[B]``; every call overwrites it.
    """

    def __init__(self, solver, problem: Problem):
        super().__init__(solver, problem, solver.bounds(problem), None)
        self.joint, self.looks, self.limit = solver.shares_steps, False, solver.max_steps
        self.every = min(solver.check_every or 4, self.limit)
        self.end = upload(problem.t1, problem.dtype, problem.device)
        # Several of these may be the same tensor, or the input, and all are overwritten.
        copies = {each.name: on_tensors(torch.clone, getattr(self.rows, each.name)) for each in fields(Rows)}
        self.rows = Rows(**copies)
        self.going = self.rows.h != 0

    def several(self) -> None:
        """Makes attempts and overwrites the rows with the result."""
        self.problem.calls = 0
        self.stages = self._stages()  # its buffers then belong to the graph
        rows, going = self.rows, self.going
        for _ in range(self.every):
            rows, going = self._unseen(rows, going, self.end, False)
        for mine, new in zip((*tensors_of(vars(self.rows)), self.going), (*tensors_of(vars(rows)), going)):
            if mine is not new:
                mine.copy_(new)

    def rest(self) -> tuple[Rows, int]:
        """Makes the remaining attempts one by one, without a graph; returns the rows and the number of evaluations."""
        self.problem.calls = 0
        self.stages = self._stages()
        rows, _, _ = self._attempts(replace(self.rows), self.going, self.end, False)
        return rows, self.problem.calls

    def collected(self, rows: Rows, nfe: int) -> Solution:
        """Builds the solution; raises for failed samples if the solver does."""
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
        # A row that has ended is judged by its own error, so that it does not move.
        return torch.where(going, shared, own).to(rows.t.dtype), own.to(rows.t.dtype)

    def _try(self, rows: Rows, going: Tensor, end: Tensor) -> Tried:
        tried = super()._try(rows, going, end)
        if self.joint:
            cause = (tried.own <= self.solver.unit).logical_not()
            tried.proposed = torch.where(tried.stuck > cause, tried.step, tried.proposed)
            tried.stuck = tried.stuck & cause
        return tried
