"""Solves as functions on tensors that stay where they are, as a graph holds them: a whole grid, or some attempts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cflow.solvers.per_sample import PerSample, Rows, Tried
from cflow.solvers.solution import Solution, Stats
from cflow.solvers.solver import Problem
from cflow.solvers.state import on_tensors
from cflow.solvers.uploads import upload

__all__ = ["Captured", "CapturedGrid", "CapturedSteps"]

Record = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]
"""Captures a function: gives what it returned, tensors that each replay writes anew, and the replay."""


class Captured(ABC):
    """A solve with inputs of its own, into which each call copies."""

    def __init__(self, y0: Any, args: tuple):
        self.y0, self.args = on_tensors(torch.clone, (y0, args))
        self.inputs = _tensors((self.y0, self.args))

    def __call__(self, y0: Any, args: tuple) -> Solution:
        """Solves from ``y0``; the next call writes over the tensors of the solution."""
        for mine, given in zip(self.inputs, _tensors((y0, args))):
            mine.copy_(given)
        return self._replayed()

    @abstractmethod
    def _replayed(self) -> Solution:
        """Solves from the inputs."""


class CapturedGrid(Captured):
    """A whole solve in one graph."""

    def __init__(self, record: Record, solver, f, y0, t0, t1, args, **options):
        super().__init__(y0, args)
        solve = lambda: solver.solve(f, self.y0, t0, t1, args=self.args, **options)
        self.solution, self.replay = record(solve)

    def _replayed(self):
        self.replay()
        return self.solution


class CapturedSteps(Captured):
    """An adaptive solve in two graphs: the beginning, and some attempts of all rows, replayed until all have ended."""

    def __init__(self, record: Record, solver, f, y0, t0, t1, args, *, quadratures, at, **options):
        super().__init__(y0, args)
        self.solver, per_attempt = solver, solver.check_every or 4
        self.every = min(per_attempt, solver.max_steps)

        def begin() -> _Loop:
            problem = Problem(solver, f, self.y0, t0, t1, self.args, quadratures, None, at)
            solver.check_interval(problem)
            return _Loop(solver, problem, self.every)

        self.loop, self.begin = record(begin)
        self.begin_calls = self.loop.problem.calls
        self.begin()  # capturing computes nothing, and the warm-up of the attempts begins somewhere
        _, self.attempts = record(self.loop.several)
        self.calls = self.loop.problem.calls

    def _replayed(self):
        loop, limit = self.loop, self.solver.max_steps
        self.begin()
        rows, nfe, loop.attempts = loop.rows, self.begin_calls, 0
        while loop.attempts + self.every <= limit:
            self.attempts()
            loop.attempts += self.every
            nfe += self.calls
            if not bool(loop.going.any()):
                break
        else:
            # What is left of the limit is less than a graph holds.
            rows, calls = loop.rest()
            nfe += calls
        return loop.collected(rows, nfe)


class _Loop(PerSample):
    """The loop of :class:`PerSample` on tensors that stay where they are: no row is dropped, nothing read in between.

    A step for the whole batch is a step per sample with one error: the rows' own, put together over those that are
    still on their way. Where it cannot be made short enough, the rows whose own error is the cause are given up.
    """

    def __init__(self, solver, problem: Problem, every: int):
        super().__init__(solver, problem, solver.bounds(problem), None)
        self.joint, self.every, self.looks = not solver.per_sample, every, False
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
        for mine, new in zip((*_tensors(vars(self.rows)), self.going), (*_tensors(vars(rows)), going)):
            if mine is not new:
                mine.copy_(new)

    def rest(self) -> tuple[Rows, int]:
        """Makes the attempts that are left one by one, as without a graph; gives the rows and the number of calls."""
        self.problem.calls = 0
        self.stages = self._stages()
        rows, _, _ = self._attempts(replace(self.rows), self.going, self.end, False)
        return rows, self.problem.calls

    def collected(self, rows: Rows, nfe: int) -> Solution:
        """Builds the solution."""
        rejected, evaluations = rows.steps - rows.accepted, nfe * self.problem.batch
        stats = Stats(nfe, evaluations, rows.steps, rows.accepted, rejected, rows.t)
        return self.trajectory.solution(None, rows.y, rows.q, rows.passed, stats, rows.status)

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


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
