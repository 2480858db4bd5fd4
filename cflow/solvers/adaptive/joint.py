"""The loop in which a batch takes common steps, with one error for all samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.solvers.adaptive.controllers import LEAST
from cflow.solvers.adaptive.outputs import Trajectory
from cflow.solvers.adaptive.stages import STRETCH, Attempt, Stages
from cflow.solvers.gradients.adjoint import Output, Step, Tape
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution, Stats, Status
from cflow.solvers.state import gather

__all__ = ["Joint"]


class Joint:
    """One solve with common steps: time, step and control are numbers on the host; one host read per attempt."""

    def __init__(self, solver, problem: Problem, bounds, tape: Tape | None):
        self.solver, self.problem, self.bounds, self.tape = solver, problem, bounds, tape
        self.sign = 1.0 if problem.t1 > problem.t0 else -1.0
        self.shortest, self.longest = solver.shortest(problem), solver.longest(problem)
        self.exponents = solver.controller.exponents(solver.tableau.embedded_order + 1)
        self.graph = torch.is_grad_enabled() and tape is None
        self.trajectory = Trajectory(problem, solver.tableau, self.graph)
        self.dense = bool(solver.tableau.dense)
        self.rows: Tensor | None = None  # the remaining rows, if some have been ended
        self.args, self.attempts, self.accepted, self.passed = problem.args, 0, 0, 0
        self.t, self.ceiling, self.errors = problem.t0, solver.controller.grow, [1.0, 1.0]
        zeros = torch.zeros(problem.batch, dtype=torch.int64, device=problem.device)
        self.status, self.steps, self.taken, self.left = zeros, zeros.clone(), zeros.clone(), zeros.clone()
        self.reached = torch.full((problem.batch,), problem.t0, dtype=problem.dtype, device=problem.device)
        self.stages = self._stages()

    def _stages(self) -> Stages:
        return self.solver.stages(self.problem, self.bounds, self.graph)

    def solution(self) -> Solution:
        """Integrates to the end; without a continuous extension it stops at the output times."""
        problem, inner = self.problem, self.trajectory.inner
        self.y = self.full = problem.y0
        t = torch.full((problem.batch,), problem.t0, dtype=problem.dtype, device=problem.device)
        self.k, self.g = problem(t, self.y)
        self.q = self.full_q = [torch.zeros_like(value) for value in self.g]
        self.h = float(self.solver.begin(problem, self.bounds, self.k).amax())
        stops = [*([] if self.dense else dict.fromkeys(inner)), problem.t1]
        for stop in stops:
            self._advance_to(stop)
            for slot in [slot for slot, each in enumerate(inner) if each == stop and self.t == stop]:
                self.trajectory.store(slot, self.rows, self.y)
                self.passed += 1
                if self.tape is not None:
                    self.tape.mark(slot, self.solver.tableau, self.y, self._clock(stop), self.rows)
        self._leave(None, None)
        stats = Stats(problem.calls, problem.rows, self.steps, self.taken, self.steps - self.taken, self.reached)
        return self.trajectory.solution(self.tape, self.full, self.full_q, self.left, stats, self.status)

    def _advance_to(self, end: float) -> None:
        """Steps to ``end``, or until no row remains."""
        solver, uncut = self.solver, self.h
        while self.t != end and len(self.y[0]):
            if self.attempts >= solver.max_steps:
                self._leave(None, int(Status.MAX_STEPS))
                return
            last = self.sign * (end - self.t) <= self.h * STRETCH
            t_new = end if last else self.t + self.sign * self.h
            uncut = self.h if last else uncut
            accepted, proposed = self._attempt(t_new)
            self.h = max(proposed, uncut) if last and accepted else proposed

    def _attempt(self, t_new: float) -> tuple[bool, float]:
        """Attempts a step to ``t_new``; returns whether it was accepted, and the length of the next one."""
        solver, control, unit, tableau = self.solver, self.solver.controller, self.solver.unit, self.solver.tableau
        step = t_new - self.t
        nodes = [*(t_new if node == 1 else self.t + node * step for node in tableau.nodes), t_new]
        # One upload for all times of the attempt and its length.
        uploaded = torch.tensor([*nodes, step], dtype=self.problem.dtype, device=self.problem.device)
        times = uploaded[:-1].unsqueeze(1).expand(-1, len(self.y[0])).unbind(0)
        tried = self.stages.step(self.y, self.k, self.q, self.g, times, uploaded[-1], self.args)
        with torch.no_grad():
            ratio = self.stages.ratio(tried, self.y, self.q, uploaded[-1], unit).item()
        self.attempts += 1
        finite = math.isfinite(ratio)
        floor = abs(step) <= self.shortest * STRETCH
        accept = finite and (ratio <= unit or (floor and solver.on_dt_min == "accept"))
        factor = math.inf if ratio == 0 else ratio ** self.exponents[0] if finite else 0.0
        if finite:
            for error, exponent in zip(self.errors, self.exponents[1:]):
                factor *= error**exponent
        proposed = min(abs(step) * min(max(factor, control.shrink), self.ceiling), self.longest)
        self.ceiling = control.grow if accept else 1.0
        if not accept and (floor if solver.dt_min else proposed < self.shortest):
            self._drop(tried, uploaded[-1])
            return False, self.h
        if accept:
            self._moved(tried, times, step, t_new)
            self.errors = [max(ratio, LEAST), self.errors[0]]
            self.accepted += 1
        return accept, max(proposed, self.shortest)

    def _moved(self, tried, times, step: float, t_new: float) -> None:
        """Accepts an attempt, after storing the states at the output times inside it."""
        record = None
        if self.tape is not None:
            record = Step(self.solver.tableau, self.y, list(times), step, self.rows, again=self.stages.again)
            self.tape.steps.append(record)
        inner = self.trajectory.inner if self.dense else []
        while self.passed < len(inner) and self.sign * (inner[self.passed] - t_new) <= 0:
            weights = self.trajectory.weights((inner[self.passed] - self.t) / step)
            self.trajectory.store(self.passed, self.rows, self.stages.interpolate(self.y, tried, weights))
            if record is not None:
                record.outputs.append(Output(self.passed, weights))
            self.passed += 1
        self.y, self.k, self.q, self.g, self.t = tried.y, tried.k, tried.q, tried.g, t_new

    def _drop(self, tried: Attempt, step: Tensor) -> None:
        """Ends the rows that cannot continue: those whose own error is too large, or not finite."""
        with torch.no_grad():
            ratio = self.stages.ratio(tried, self.y, self.q, step.expand(len(self.y[0])), self.solver.unit)
        good = torch.nonzero(ratio <= self.solver.unit).flatten()
        cause = torch.where(ratio.isfinite(), int(Status.STEP_TOO_SMALL), int(Status.NON_FINITE))
        self._leave(good, cause)

    def _leave(self, good: Tensor | None, status: Tensor | int | None) -> None:
        """Puts all rows back with their results, and continues with the rows ``good`` (indices), or with none."""
        rows = slice(None) if self.rows is None else self.rows
        whole = self.trajectory.places if self.rows is None else self.rows
        put = lambda full, mine: [mine_ if self.rows is None else full_.index_copy(0, whole, mine_)
                                  for full_, mine_ in zip(full, mine)]  # fmt: skip
        self.full, self.full_q = put(self.full, self.y), put(self.full_q, self.q)
        for store, value in ((self.steps, self.attempts), (self.taken, self.accepted), (self.left, self.passed)):
            store[rows] = value
        self.reached[rows] = self.t
        if status is not None:
            fate = torch.zeros_like(whole) + status
            if good is not None:
                fate[good] = int(Status.SUCCESS)
            self.status.index_copy_(0, whole, fate)
        keep = whole[:0] if good is None else good
        self.y, self.k, self.q, self.g = (gather(each, keep) for each in (self.y, self.k, self.q, self.g))
        self.rows = whole[keep]
        self.args, self.stages = gather(self.problem.args, self.rows), self._stages()

    def _clock(self, t: float) -> Tensor:
        return torch.full((len(self.y[0]),), t, dtype=self.problem.dtype, device=self.problem.device)
