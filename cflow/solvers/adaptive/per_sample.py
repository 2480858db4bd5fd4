"""The loop in which every sample of a batch has its own steps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cflow.solvers.adaptive.controllers import LEAST
from cflow.solvers.adaptive.outputs import Trajectory
from cflow.solvers.adaptive.stages import STRETCH, Attempt, Stages
from cflow.solvers.gradients.adjoint import Output, Step, Tape
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution, Stats, Status
from cflow.solvers.state import gather, like_rows
from cflow.solvers.uploads import upload

__all__ = ["PerSample"]


@dataclass
class Rows:
    """Holds the state of the loop for each sample; all fields are gathered, and put back, together."""

    y: list[Tensor]
    k: list[Tensor]
    g: list[Tensor]
    q: list[Tensor]
    t: Tensor
    h: Tensor  # the next step, with the sign of time; zero for a sample that has ended
    steps: Tensor
    accepted: Tensor
    status: Tensor
    ceiling: Tensor  # how much the next step may grow
    errors: list[Tensor]  # of the steps before the last one, for controllers that use them
    uncut: Tensor  # the step, before it was cut to end at the last stop
    passed: Tensor  # the number of output times passed

    def take(self, rows: Tensor) -> Rows:
        """Returns the given rows of every field."""
        return Rows(**{field.name: gather(getattr(self, field.name), rows) for field in fields(self)})

    def put(self, rows: Tensor, other: Rows) -> Rows:
        """Returns a copy in which the given rows of every field come from ``other``."""

        def copy(mine, theirs):
            if isinstance(mine, list):
                return [copy(one, two) for one, two in zip(mine, theirs)]
            return mine.index_copy(0, rows, theirs)

        names = [field.name for field in fields(self)]
        return Rows(**{name: copy(getattr(self, name), getattr(other, name)) for name in names})


@dataclass
class Tried:
    """Holds one attempted step of every sample, and the decision about it."""

    attempt: Attempt
    times: list[Tensor]
    t_new: Tensor
    step: Tensor
    ratio: Tensor  # the error that decides about the step, divided by the allowed error
    own: Tensor  # the same for the error of the row alone
    accept: Tensor
    proposed: Tensor
    stuck: Tensor
    good: Tensor  # accepted, of samples that had not ended
    going: Tensor  # not ended after the attempt
    crossed: Tensor | None = None  # the number of output times that an accepted step passes


class PerSample:
    """One solve with steps per sample."""

    def __init__(self, solver, problem: Problem, bounds, tape: Tape | None):
        self.solver, self.problem, self.bounds, self.tape = solver, problem, bounds, tape
        self.tableau, self.forward = solver.tableau, problem.t1 > problem.t0
        self.shortest, self.longest = solver.shortest(problem), solver.longest(problem)
        self.exponents = solver.controller.exponents(self.tableau.embedded_order + 1)
        history = 2 if self.exponents[2] else 1 if self.exponents[1] else 0
        t = torch.full((problem.batch,), problem.t0, dtype=problem.dtype, device=problem.device)
        k, g = problem(t, problem.y0)
        with torch.no_grad():
            status = problem.status([*problem.y0, *k], [])
            fine = status == Status.SUCCESS
            h = solver.begin(problem, bounds, k) * fine
        zeros = torch.zeros_like(status)
        # Tensors that autograd records must not be overwritten.
        self.graph = torch.is_grad_enabled() and tape is None
        # Step control is never differentiated. Entering no_grad costs as much as an operation: only where needed.
        self.quiet = torch.no_grad if self.graph else nullcontext
        self.rows = Rows(
            problem.y0, k, g, [torch.zeros_like(value) for value in g], t, h if self.forward else -h, zeros,
            zeros.clone(), status, torch.full_like(t, solver.controller.grow), [torch.ones_like(t)] * history,
            torch.zeros_like(t), zeros.clone(),
        )  # fmt: skip
        self.trajectory = Trajectory(problem, self.tableau, self.graph)
        self.dense = bool(self.tableau.dense)
        self.attempts, self.index, self.args = 0, None, problem.args
        self.nodes = upload(self.tableau.nodes, t.dtype, t.device).unsqueeze(1)
        self.grow, self.one, self.shrink = upload(
            [solver.controller.grow, 1.0, solver.controller.shrink], t.dtype, t.device
        ).unbind(0)
        self.every = solver.check_every or (1 if problem.device.type == "cpu" else 4)
        if self.graph or tape is not None or self.trajectory.inner:
            self.every = 1
        self.looks = self.every == 1  # reads after each attempt
        # Samples wait for each other if steps are cut, so their attempts are counted one by one.
        self.waits = bool(self.trajectory.inner) and not self.dense
        self.stages = self._stages()

    def _stages(self) -> Stages:
        return self.solver.stages(self.problem, self.bounds, self.graph)

    def solution(self) -> Solution:
        """Integrates to the end; without a continuous extension it stops at the output times."""
        problem, inner = self.problem, self.trajectory.inner
        for stop in [*([] if self.dense else dict.fromkeys(inner)), problem.t1]:
            self._advance_to(upload(stop, problem.dtype, problem.device), stop != problem.t1)
            if stop != problem.t1:
                self._stopped([slot for slot, t in enumerate(inner) if t == stop])
        rows = self.rows
        stats = Stats(problem.calls, problem.rows, rows.steps, rows.accepted, rows.steps - rows.accepted, rows.t)
        return self.trajectory.solution(self.tape, rows.y, rows.q, rows.passed, stats, rows.status)

    def _stopped(self, slots: list[int]) -> None:
        """Stores the states at an output time that all samples have reached, and restores the uncut steps."""
        rows = self.rows
        fine = rows.status == Status.SUCCESS
        rows.h = torch.where(fine, rows.uncut, 0.0)
        for slot in slots:
            self.trajectory.store(slot, None, rows.y)
            rows.passed = rows.passed + fine
            if self.tape is not None:
                self.tape.mark(slot, self.tableau, rows.y, rows.t)

    def _advance_to(self, end: Tensor, stop: bool) -> None:
        """Steps every sample that has not failed to ``end``, and drops finished samples on the way."""
        full, rows = self.rows, self.rows
        self.index, self.args = None, self.problem.args
        going = rows.h != 0
        read = self.waits or self.tape is not None
        count = self.count = int(going.sum()) if read else self.problem.batch
        failed = self.tape is not None and count < self.problem.batch
        while count:
            # The field of a failed sample may be infinite: evaluated again, it would make shared gradients NaN.
            if count < len(rows.t) / 2 or failed:
                failed = False
                full = rows if self.index is None else full.put(self.index, rows)
                # The count is known, so a sort finds the remaining rows without another read.
                chosen = torch.argsort(going.to(torch.uint8), descending=True, stable=True)[:count]
                self.index = chosen if self.index is None else self.index[chosen]
                rows, going = full.take(self.index), going[chosen]
                self.args, self.stages = gather(self.problem.args, self.index), self._stages()
            rows, going, count = self._attempts(rows, going, end, stop)
        self.rows = rows if self.index is None else full.put(self.index, rows)

    def _attempts(self, rows: Rows, going: Tensor, end: Tensor, stop: bool) -> tuple[Rows, Tensor, int]:
        """Attempts steps until the next host read; returns the rows, which of them have not ended, and how many."""
        before, failed = going, 0
        if self.looks:
            tried = self._try(rows, going, end)
            looked = self._look(rows, going, tried)
            rows, going = self._take(rows, going, tried, looked, stop), tried.going
            self.attempts += 1
            count, failed = looked[:2]
        else:
            for _ in range(min(self.every, self.solver.max_steps - self.attempts)):
                rows, going = self._unseen(rows, going, end, stop)
                self.attempts += 1
            count = int(going.sum())
        if failed or (count and self.attempts >= self.solver.max_steps):
            if failed:
                rows, going = self._give_up(rows, going, tried)
                count -= failed
            if self.attempts >= self.solver.max_steps:
                over = going & (rows.steps >= self.solver.max_steps) if self.waits else going
                rows.status = torch.where(over, int(Status.MAX_STEPS), rows.status)
                going = going & ~over
                count = int(going.sum()) if self.waits else 0
            rows.h = rows.h * going
        if self.looks and count != self.count and not self.waits:
            # All remaining samples have made the same number of attempts: it is recorded when they end.
            rows.steps = torch.where(before > going, self.attempts, rows.steps)
        self.count = count
        return rows, going, count

    def _unseen(self, rows: Rows, going: Tensor, end: Tensor, stop: bool) -> tuple[Rows, Tensor]:
        """Attempts a step of every sample without reading the result on the host."""
        tried = self._try(rows, going, end)
        return self._give_up(self._take(rows, going, tried, None, stop), tried.going, tried)

    def _give_up(self, rows: Rows, going: Tensor, tried: Tried) -> tuple[Rows, Tensor]:
        """Ends the samples whose steps cannot be made short enough, and sets their status."""
        cause = torch.where(tried.own.isfinite(), int(Status.STEP_TOO_SMALL), int(Status.NON_FINITE))
        rows.status = torch.where(tried.stuck, cause, rows.status)
        going = going & ~tried.stuck
        rows.h = rows.h * going
        return rows, going

    def _try(self, rows: Rows, going: Tensor, end: Tensor) -> Tried:
        """Attempts one step of every sample."""
        with self.quiet():
            ahead = torch.add(rows.t, rows.h, alpha=STRETCH)
            last = ahead >= end if self.forward else ahead <= end
            t_new = torch.where(last, end, rows.t + rows.h)  # a row that has ended does not move
            step = t_new - rows.t  # the actual change of time, including rounding
            times = self._times(rows.t, step, t_new)
        attempt = self.stages.step(rows.y, rows.k, rows.q, rows.g, times, step, self.args)
        with self.quiet():
            ratio, own = self._ratios(attempt, rows, going, step)
            accept, proposed, stuck = self._judge(rows, step, ratio)
            good, on = accept & going, going > (accept & last)
            return Tried(attempt, times, t_new, step, ratio, own, accept, proposed, stuck & on, good, on)

    def _ratios(self, attempt: Attempt, rows: Rows, going: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the error that decides about each row's step, and the row's own error; here they are equal."""
        ratio = self.stages.ratio(attempt, rows.y, rows.q, step, self.solver.unit)
        return ratio, ratio

    def _judge(self, rows: Rows, step: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decides which steps are accepted, how long the next ones are, and which cannot be made short enough."""
        solver = self.solver
        accept = ratio <= solver.unit
        factor = ratio ** self.exponents[0]
        for error, exponent in zip(rows.errors, self.exponents[1:]):
            factor = factor * error**exponent
        factor = torch.clamp(factor.nan_to_num_(nan=0.0), self.shrink, rows.ceiling)
        proposed = factor * step
        if solver.dt_max is not None:
            proposed = proposed.clamp(-self.longest, self.longest)
        if solver.dt_min is None:
            short = proposed <= self.shortest if self.forward else proposed >= -self.shortest
            return accept, proposed, short > accept
        # A step may shrink to the shortest one. If that is not short enough, it is accepted as is, or the sample ends.
        floor = step.abs() <= self.shortest * STRETCH
        if solver.on_dt_min == "accept":
            accept = accept | (floor & ratio.isfinite())
        short = proposed.abs() < self.shortest
        proposed = torch.where(short & (step != 0), self.shortest if self.forward else -self.shortest, proposed)
        return accept, proposed, floor > accept

    def _times(self, t: Tensor, step: Tensor, t_new: Tensor) -> list[Tensor]:
        inner = torch.addcmul(t, self.nodes, step).unbind(0)
        return [*(t_new if node == 1 else time for node, time in zip(self.tableau.nodes, inner)), t_new]

    def _look(self, rows: Rows, before: Tensor, tried: Tried) -> list[int]:
        """Reads at once how many samples continue, are stuck, accepted and not finite; and outputs passed."""
        with self.quiet():
            asked = [tried.going, tried.stuck]
            if self.graph or self.tape is not None:
                asked += [tried.good, before & ~tried.ratio.isfinite()]
            counts = torch.stack(asked).sum(1)
            if self.trajectory.inner and self.dense:
                times, sign = self.trajectory.times, 1 if self.forward else -1
                beyond = torch.searchsorted(sign * times, sign * tried.t_new, right=True)
                tried.crossed = torch.where(tried.good, beyond - rows.passed, 0)
                counts = torch.cat((counts, tried.crossed.amax().reshape(1)))
            return counts.tolist()

    def _take(self, rows: Rows, before: Tensor, tried: Tried, looked: list[int] | None, stop: bool) -> Rows:
        """Returns the rows after an attempt: moved if it was accepted, unchanged if not."""
        accept, attempt = tried.accept, tried.attempt
        if self.graph and looked[3]:
            # Through torch.where, infinities would reach the gradient as 0 * inf: repeat without moving those rows.
            away = before & ~tried.ratio.isfinite()
            t_new, step = torch.where(away, rows.t, tried.t_new), torch.where(away, 0.0, tried.step)
            times = self._times(rows.t, step, t_new)
            attempt = self.stages.step(rows.y, rows.k, rows.q, rows.g, times, step, self.args)
        record = None
        if self.tape is not None and looked[2]:
            moved = torch.where(tried.good, tried.step, 0.0)
            record = Step(self.tableau, rows.y, tried.times, moved, self.index, again=self.stages.again)
            self.tape.steps.append(record)
        passed = rows.passed
        if tried.crossed is not None:
            self._interpolate(rows, attempt, tried, looked[-1], record)
            passed = passed + tried.crossed
        wide = [like_rows(accept, part) for part in rows.y]
        y, k = (
            [torch.where(each, new, old) for each, new, old in zip(wide, news, olds)]
            for news, olds in ((attempt.y, rows.y), (attempt.k, rows.k))
        )
        q, g = rows.q, rows.g
        if q:
            q, g = (
                [torch.where(like_rows(accept, new), new, old) for new, old in zip(news, olds)]
                for news, olds in ((attempt.q, q), (attempt.g, g))
            )
        with self.quiet():
            uncut = rows.uncut
            if stop:
                longer = torch.where(tried.proposed.abs() > rows.h.abs(), tried.proposed, rows.h)
                uncut = torch.where(before > tried.going, longer, uncut)
            errors = rows.errors
            if errors:
                known = [tried.ratio.clamp(min=LEAST), *errors]
                errors = [torch.where(tried.good, new, old) for new, old in zip(known, errors)]
            return Rows(
                y, k, g, q,
                t=torch.where(accept, tried.t_new, rows.t),
                h=tried.proposed * tried.going,
                steps=rows.steps if self.looks and not self.waits else rows.steps + before,
                accepted=rows.accepted + tried.good,
                status=rows.status,
                ceiling=torch.where(accept, self.grow, self.one),
                errors=errors, uncut=uncut, passed=passed,
            )  # fmt: skip

    def _interpolate(self, rows: Rows, attempt: Attempt, tried: Tried, most: int, record: Step | None) -> None:
        """Stores the states at the output times that the step passes; no sample passes more than ``most``."""
        times = self.trajectory.times
        for number in range(most):
            slot = rows.passed + number
            mask = number < tried.crossed
            width = torch.where(mask, tried.step, 1.0)
            theta = torch.where(mask, (times[slot.clamp(max=len(times) - 1)] - rows.t) / width, 0.0)
            weights = self.trajectory.weights(theta)
            self.trajectory.store(slot, self.index, self.stages.interpolate(rows.y, attempt, weights), mask)
            if record is not None:
                for each in sorted(set(slot[mask].tolist())):
                    record.outputs.append(Output(each, weights.unbind(0), mask & (slot == each)))
