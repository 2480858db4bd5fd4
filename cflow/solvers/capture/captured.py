"""Solves on tensors that keep their memory, as a CUDA graph needs: a whole grid, or some attempts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution
from cflow.solvers.state import on_tensors, tensors_of

__all__ = ["Captured", "CapturedGrid", "CapturedSteps"]

Record = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]
"""Captures a function: returns its result, whose tensors each replay overwrites, and the replay."""


class Captured(ABC):
    """A solve with its own input tensors, into which each call copies."""

    def __init__(self, y0: Any, args: tuple):
        self.y0, self.args = on_tensors(torch.clone, (y0, args))
        self.inputs = tensors_of((self.y0, self.args))

    def __call__(self, y0: Any, args: tuple) -> Solution:
        """Solves from ``y0``; the next call overwrites the tensors of the solution."""
        for mine, given in zip(self.inputs, tensors_of((y0, args))):
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
    """An adaptive solve in two graphs: the start, and some attempts of all rows, replayed until all have ended."""

    def __init__(self, record: Record, solver, f, y0, t0, t1, args, **options):
        super().__init__(y0, args)
        begin = lambda: solver.attempts(Problem(solver, f, self.y0, t0, t1, args=self.args, **options))
        self.loop, self.begin = record(begin)
        self.begin_calls = self.loop.problem.calls
        self.begin()  # capturing computes nothing, and the warm-up of the attempts needs a start
        _, self.attempts = record(self.loop.several)
        self.calls = self.loop.problem.calls

    def _replayed(self):
        loop = self.loop
        self.begin()
        rows, nfe, loop.attempts = loop.rows, self.begin_calls, 0
        while loop.attempts + loop.every <= loop.limit:
            self.attempts()
            loop.attempts += loop.every
            nfe += self.calls
            if not bool(loop.going.any()):
                break
        else:
            # Fewer attempts remain than the graph holds.
            rows, calls = loop.rest()
            nfe += calls
        return loop.collected(rows, nfe)
