"""Runge-Kutta methods on a manifold, with the options and the grids of :class:`cflow.solvers.FixedGrid`."""

# Annotations are evaluated here, as in the base class.
import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from cflow.registry import register
from cflow.solvers import tableau as tableaus
from cflow.solvers.geodesic.points import check_points
from cflow.solvers.gradients.adjoint import Output, Step
from cflow.solvers.grid.fixed import FixedGrid, Outputs
from cflow.solvers.problem import Problem
from cflow.solvers.tableau import Tableau, stages_of

__all__ = ["RKMK4", "GeodesicEuler", "GeodesicGrid", "GeodesicMidpoint", "GeodesicRK4", "ProjectedEuler"]


@dataclass(frozen=True, repr=False)
class GeodesicGrid(FixedGrid):
    r"""Integrates on a manifold with a Runge-Kutta method on a fixed grid; a subclass sets its tableau.

    A step is one of the method in normal coordinates at its start x, where slopes at the stages are tangent vectors:

    .. math:: k_i = A_i\, f\Big(t + c_i h,\; \exp_x\big(h \sum_{j < i} a_{ij} k_j\big)\Big),
              \qquad x^+ = \exp_x\Big(h \sum_i b_i k_i\Big)

    :math:`A_i` takes a tangent vector at the stage to one at x; it sets the order of the method on a curved manifold.
    ``f`` returns tangent vectors. Integrals are those of the method: :math:`q^+ = q + h \sum_i b_i g_i`.

    The arguments, cost and errors are those of :class:`cflow.solvers.FixedGrid`, with one ``exp`` per stage.

    Raises:
        ValueError: without a manifold, and if the state is not one tensor of its points.
    """

    on_manifolds = True
    why_no_graph = "its steps are on a manifold"

    def _check(self, problem: Problem) -> None:
        check_points(problem)

    def _integrate(self, problem: Problem, nodes, times, outputs: Outputs, tape) -> tuple[list[Tensor], list[Tensor]]:
        (y,), integrals, used = problem.y0, [], self.calls_per_step()
        if used == 1 and tape is None and problem.plain and not outputs.times:
            return [self._euler(problem, y, nodes, times)], []

        def again(step: Step, y: list[Tensor], args: tuple):
            end, added = self.step(problem, y[0], step.times, step.h, args)
            return [end], added, [[end]] * len(step.outputs)

        for index, (start, end) in enumerate(itertools.pairwise(nodes)):
            before, at_stages = y, times[index * used : (index + 1) * used]
            y, added = self.step(problem, y, at_stages, end - start)
            integrals = [q + each for q, each in zip(integrals, added)] if integrals else added
            kept = [Output(slot) for slot in outputs.keep(end, [y])]
            if tape is not None:
                tape.steps.append(Step(self.tableau, [before], at_stages, end - start, outputs=kept, again=again))
        return [y], integrals

    def _euler(self, problem: Problem, y: Tensor, nodes, times) -> Tensor:
        """Takes steps of one evaluation with little overhead for small networks."""
        slope, manifold = problem.slope(), problem.manifold
        for (start, end), t in zip(itertools.pairwise(nodes), times):
            y = self._end(manifold, y, slope(t, y) * (end - start))
        problem.calls += len(times) - 1
        problem.rows += (len(times) - 1) * problem.batch
        return y

    def step(self, problem: Problem, y: Tensor, times, h: float, args=None) -> tuple[Tensor, list[Tensor]]:
        """Computes the points at the end of a step of length ``h``, and what it adds to the integrals of ``problem``.

        Args:
            problem: the problem.
            y: points ``[B, *event]`` at the start.
            times: the times ``[B]`` of the stages.
            h: the length of the step, negative backward in time.
            args: arguments of ``f`` in place of those of the problem. Default: None, those of the problem.
        """
        manifold, weights = problem.manifold, self.tableau.step
        slopes: list[Tensor] = []
        integrands: list[list[Any]] = []
        for number, (t, stage) in enumerate(zip(times, self.tableau.stages)):
            u = None if stage is None else stage.bracket(slopes) * (stage.weight * h)
            point = y if u is None else manifold.exp(y, u)
            (k,), g = problem(t, [point], args, integrals=number in weights.stages)
            slopes.append(k if u is None else self._at_start(manifold, y, u, point, k))
            integrands.append(g)
        y = self._end(manifold, y, weights.bracket(slopes) * (weights.weight * h))
        names = range(len(problem.tolerances))
        return y, [weights.bracket(stages_of(integrands, name)) * (weights.weight * h) for name in names]

    def _at_start(self, manifold, x: Tensor, u: Tensor, y: Tensor, k: Tensor) -> Tensor:
        """Takes a tangent vector at a stage ``y = exp(x, u)`` to the start ``x`` of the step."""
        return manifold.normal_velocity(x, y, k)

    def _end(self, manifold, x: Tensor, u: Tensor) -> Tensor:
        """Computes the end of the step with tangent vector ``u`` at its start ``x``."""
        return manifold.exp(x, u)


@register("solvers.GeodesicEuler")
@dataclass(frozen=True, repr=False)
class GeodesicEuler(GeodesicGrid):
    r"""Integrates along geodesics, order 1, one evaluation of ``f`` per step; see :class:`GeodesicGrid`.

    .. math:: x^+ = \exp_x\big(h f(t, x)\big)

    Example:
        >>> import torch
        >>> from cflow import manifolds
        >>> turn = lambda t, x: torch.stack((-x[:, 1], x[:, 0], 0 * x[:, 2]), 1)  # about the last axis
        >>> x0 = torch.tensor([[1.0, 0.0, 0.0]])
        >>> GeodesicEuler(4).solve(turn, x0, 0.0, torch.pi / 2, manifold=manifolds.Sphere(2)).y
        tensor([[..., 1.0000e+00, 0.0000e+00]])
    """

    tableau: ClassVar[Tableau] = tableaus.EULER


@register("solvers.ProjectedEuler")
@dataclass(frozen=True, repr=False)
class ProjectedEuler(GeodesicGrid):
    r"""Integrates with Euler's method in the ambient space and projects each step, order 1; see :class:`GeodesicGrid`.

    .. math:: x^+ = \operatorname{project}\big(x + h f(t, x)\big)

    For manifolds whose ``exp`` is expensive.

    Example:
        >>> import torch
        >>> from cflow import manifolds
        >>> turn = lambda t, x: torch.stack((-x[:, 1], x[:, 0], 0 * x[:, 2]), 1)
        >>> x0 = torch.tensor([[1.0, 0.0, 0.0]])
        >>> ProjectedEuler(100).solve(turn, x0, 0.0, torch.pi / 2, manifold=manifolds.Sphere(2)).y.round(decimals=4)
        tensor([[1.0000e-04, 1.0000e+00, 0.0000e+00]])
    """

    tableau: ClassVar[Tableau] = tableaus.EULER

    def _end(self, manifold, x, u):
        return manifold.project(x + u)


@register("solvers.GeodesicMidpoint")
@dataclass(frozen=True, repr=False)
class GeodesicMidpoint(GeodesicGrid):
    r"""Integrates along geodesics with the slope at the middle of each step, order 2, two evaluations per step.

    .. math:: m = \exp_x\big(\tfrac h2 f(t, x)\big),
              \qquad x^+ = \exp_x\big(h\, \Gamma_{m \to x} f(t + \tfrac h2, m)\big)

    :math:`\Gamma` is parallel transport: without it the method is of order 1. See :class:`GeodesicGrid`.

    Example:
        >>> import torch
        >>> from cflow import manifolds
        >>> turn = lambda t, x: torch.stack((-x[:, 1], x[:, 0], 0 * x[:, 2]), 1)
        >>> x0 = torch.tensor([[0.6, 0.0, 0.8]])
        >>> GeodesicMidpoint(10).solve(turn, x0, 0.0, torch.pi / 2, manifold=manifolds.Sphere(2)).y
        tensor([[-0.0025,  0.6002,  0.7998]])
    """

    tableau: ClassVar[Tableau] = tableaus.MIDPOINT

    def _at_start(self, manifold, x, u, y, k):
        return manifold.transport(y, x, k)


@register("solvers.GeodesicRK4")
@dataclass(frozen=True, repr=False)
class GeodesicRK4(GeodesicGrid):
    r"""Integrates with the classical Runge-Kutta method in normal coordinates, order 4, four evaluations per step.

    .. math:: \dot u = d(\log_x)_{\exp_x u} f(t, \exp_x u), \qquad u(0) = 0

    With parallel transport in place of the differential of ``log`` (:meth:`cflow.manifolds.Manifold.normal_velocity`)
    the order would be lower. A step must be shorter than the distance to the cut locus. See :class:`GeodesicGrid`.

    Source: Munthe-Kaas, High order Runge-Kutta methods on manifolds, 1999, Applied Numerical Mathematics 29, with the
    exponential map of the metric in place of that of a group.

    Example:
        >>> import torch
        >>> from cflow import manifolds
        >>> turn = lambda t, x: torch.stack((-x[:, 1], x[:, 0], 0 * x[:, 2]), 1)
        >>> x0 = torch.tensor([[0.6, 0.0, 0.8]])
        >>> GeodesicRK4(10).solve(turn, x0, 0.0, torch.pi / 2, manifold=manifolds.Sphere(2)).y.round(decimals=4)
        tensor([[0.0000, 0.6000, 0.8000]])
    """

    tableau: ClassVar[Tableau] = tableaus.RK4


@register("solvers.RKMK4")
@dataclass(frozen=True, repr=False)
class RKMK4(GeodesicGrid):
    r"""Integrates on a Lie group with the method of Munthe-Kaas, order 4, four evaluations of ``f`` per step.

    .. math:: \dot u = w + \tfrac12 [u, w] + \tfrac1{12} [u, [u, w]], \qquad w = \text{body}(f(t, x\, e^u))

    with the components w of the velocity in the body frame, and the classical Runge-Kutta method for u. On the groups
    here it is :class:`GeodesicRK4` with a series in place of the differential of ``log``, with fewer operations. See
    :class:`GeodesicGrid`.

    Raises:
        ValueError: if the manifold is not a group (:class:`cflow.manifolds.LieGroup`).

    Source: Munthe-Kaas, High order Runge-Kutta methods on manifolds, 1999, Applied Numerical Mathematics 29; Iserles et
    al., Lie-group methods, 2000, Acta Numerica 9.

    Example:
        >>> import torch
        >>> from cflow import manifolds
        >>> group, x0 = manifolds.SO3(), torch.eye(3).unsqueeze(0)
        >>> spin = lambda t, x: group.from_body(x, torch.tensor([[0.0, 0.0, 1.0]]))
        >>> solution = RKMK4(5).solve(spin, x0, 0.0, 1.0, manifold=group)
        >>> group.dist(x0, solution.y), solution.stats.nfe
        (tensor([1.0000]), 20)
    """

    tableau: ClassVar[Tableau] = tableaus.RK4

    def _check(self, problem: Problem) -> None:
        super()._check(problem)
        if not problem.manifold.is_group:
            raise ValueError(
                f"RKMK4.solve(manifold={problem.manifold!r}): it is not a Lie group; use GeodesicRK4, for "
                f"every manifold."
            )

    def _at_start(self, manifold, x, u, y, k):
        u, w = manifold.to_body(x, u), manifold.to_body(y, k)
        turned = manifold.bracket(u, w)
        # With a minus sign, as in the frame of space, the order is 2.
        return manifold.from_body(x, w + turned / 2 + manifold.bracket(u, turned) / 12)
