"""The method of Dormand and Prince on manifolds, with adaptive steps."""

from collections.abc import Mapping  # noqa: F401 - an annotation that the constructor inherits; the reference reads it
from dataclasses import dataclass
from typing import Literal  # noqa: F401 - the same

import torch
from torch import Tensor

from cflow.registry import register
from cflow.solvers.adaptive.controllers import PID  # noqa: F401 - the same
from cflow.solvers.adaptive.methods import Dopri5
from cflow.solvers.adaptive.stages import Attempt, Stages
from cflow.solvers.geodesic.points import check_points
from cflow.solvers.gradients.modes import Gradient  # noqa: F401 - the same
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Tolerance
from cflow.solvers.state import like_rows
from cflow.solvers.tableau import stages_of

__all__ = ["GeodesicDopri5"]


@register("solvers.GeodesicDopri5")
@dataclass(frozen=True, repr=False)
class GeodesicDopri5(Dopri5):
    r"""Integrates on a manifold with the method of Dormand and Prince, order 5, in normal coordinates.

    Each step is one of :class:`Dopri5` for the coordinates :math:`u = \log_x` of the point at the start x of the step
    (see :class:`GeodesicRK4`), and ends at :math:`\exp_x u`. The error is a tangent vector e at x. A step is accepted
    if

    .. math:: \big(\langle e, e \rangle_x / \dim\big)^{1/2} \le \text{atol} + \text{rtol},

    since lengths on a manifold have no origin to which they are relative. States at output times are those of the
    continuous extension in these coordinates. Arguments, steps per sample, failures and costs are those of
    :class:`cflow.solvers.Adaptive`, with one ``exp`` and one ``normal_velocity`` per stage.

    Raises:
        ValueError: without a manifold, and if the state is not one tensor of its points; and as ``Adaptive``.

    Example:
        >>> from cflow import manifolds
        >>> turn = lambda t, x: torch.stack((-x[:, 1], x[:, 0], 0 * x[:, 2]), 1)
        >>> x0 = torch.tensor([[0.6, 0.0, 0.8]])
        >>> GeodesicDopri5().solve(turn, x0, 0.0, torch.pi / 2, manifold=manifolds.Sphere(2)).y
        tensor([[..., 6.0000e-01, 8.0000e-01]])
    """

    on_manifolds = True
    why_no_graph = "its steps are on a manifold"

    def _check(self, problem: Problem) -> None:
        check_points(problem)
        super()._check(problem)

    def stages(self, problem: Problem, bounds: list[Tolerance | None], graph: bool) -> Stages:
        """Returns what computes a step in normal coordinates, and its error."""
        return _GeodesicStages(self.tableau, problem, bounds, graph)

    @torch.no_grad()
    def begin(self, problem: Problem, bounds: list[Tolerance | None], k: list[Tensor]) -> Tensor:
        """Computes first steps ``[B]`` (positive) from the lengths of the first and the second derivative."""
        t = torch.full((problem.batch,), problem.t0, dtype=problem.dtype, device=problem.device)
        shortest, longest = self.shortest(problem), self.longest(problem)
        if self.first_step is not None:
            return torch.full_like(t, min(max(self.first_step, shortest), longest))
        (y,), (k0,), manifold = problem.y0, k, problem.manifold
        slope = self._size(manifold, y, k0)
        h = (0.01 / slope).clamp(max=longest)  # a hundredth of a unit of length, or the whole interval
        h = torch.where(torch.isfinite(h), h, 0.0)
        signed = like_rows(h if problem.t1 > problem.t0 else -h, y).to(y.dtype)
        probe = manifold.exp(y, signed * k0)
        later, _ = problem(torch.clamp(t + signed.flatten(), *sorted((problem.t0, problem.t1))), [probe])
        bend = self._size(manifold, y, manifold.transport(probe, y, later[0]) - k0) / h
        bend = torch.where(torch.isfinite(bend), bend, slope)
        largest = torch.maximum(slope, bend) / (self.atol + self.rtol)
        other = torch.where(
            largest <= 1e-15, (h * 1e-3).clamp(min=1e-6), (0.01 / largest) ** (1 / (self.tableau.embedded_order + 1))
        )
        h = torch.minimum(100 * h, other)
        return torch.where(torch.isfinite(h), h, 0.0).clamp(shortest, longest)

    def _size(self, manifold, y: Tensor, u: Tensor) -> Tensor:
        """Computes the root mean square of the components of tangent vectors; for common steps, over the batch too."""
        square = manifold.inner(y, u, u) / manifold.dim
        return square.sqrt() if self.per_sample else square.mean().sqrt().expand(len(square))


class _GeodesicStages(Stages):
    """Computes steps in normal coordinates at their start."""

    def __init__(self, tableau, problem, bounds, graph):
        super().__init__(tableau, problem, bounds, graph)
        self.sums, self.manifold = True, problem.manifold

    def step(self, y, k, q, g, times, h, args):
        end, slope, moves, integrands, g = self._stages(y[0], k[0], g, times, h, args, len(self.tableau.a))
        q = [part + added for part, added in zip(q, self._integrals(integrands, h))]
        return Attempt([end], [slope], q, g, moves, integrands)

    def _stages(self, y, k, g, times, h, args, count: int):
        """Evaluates ``count`` stages: the last point and slope, slopes times the step at the start, integrands."""
        width = like_rows(h, y).to(y.dtype) if h.dim() else h
        moves, integrands, point = [[k * width]], [g], y
        for stage in range(1, count):
            point = self._point([y], moves, stage)[0]
            (k,), g = self.problem(times[stage], [point], args, stage in self.counting)
            moves.append([self.manifold.normal_velocity(y, point, k) * width])
            integrands.append(g)
        return point, k, moves, integrands, g

    def _integrals(self, integrands, h):
        added = [self._weighed(self.tableau.step, integrands, at) for at in range(len(self.problem.tolerances))]
        return [value * (like_rows(h, value) if h.dim() else h).to(value.dtype) for value in added]

    def _point(self, y, moves, stage):
        weights = self.tableau.step if stage == len(self.tableau.a) else self.tableau.stages[stage]
        return [self.manifold.exp(y[0], weights.bracket(stages_of(moves, 0)) * weights.weight)]

    def _part_ratio(self, attempt, index, old, new, bound, h, unit):
        error = self._weighed(self.tableau.estimate, attempt.moves, index)
        square = self.manifold.inner(old, error, error) / self.manifold.dim
        return unit / (bound.atol + bound.rtol) * (square if h.dim() else square.mean()).sqrt()

    def interpolate(self, y, attempt, weights):
        u = 0.0
        for (move,), weight in zip(attempt.moves, weights):
            u = u + (like_rows(weight, move).to(move.dtype) if isinstance(weight, Tensor) else weight) * move
        return [self.manifold.exp(y[0], u)]

    def again(self, step, y, args):
        """Computes a recorded step again: the end, what it adds to the integrals, and its outputs."""
        last = len(self.tableau.a) - 1
        k, g = self.problem(step.times[0], y, args)
        h = torch.as_tensor(step.h, dtype=self.problem.dtype, device=self.problem.device)
        # The last stage is the first one of the next step, and counts for outputs alone.
        count = last + 1 if step.outputs else last
        _, _, moves, integrands, _ = self._stages(y[0], k[0], g, step.times, h, args, count)
        integrands += [integrands[-1]] * (last + 1 - count)
        (end,) = self._point(y, moves + moves[-1:], last + 1)
        added = self._integrals(integrands, h)
        if h.dim():
            still = h == 0
            end = torch.where(like_rows(still, end), y[0], end)
            added = [torch.where(like_rows(still, value), 0.0, value) for value in added]
        attempt = Attempt([end], k, added, g, moves, integrands)
        return [end], added, [self.interpolate(y, attempt, output.weights) for output in step.outputs]
