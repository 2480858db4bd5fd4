"""Whole steps with a field of two times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cflow.registry import register
from cflow.solvers import tableau as tableaus
from cflow.solvers.geodesic.grid import GeodesicGrid
from cflow.solvers.grid.fixed import FixedGrid
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution
from cflow.solvers.tableau import Tableau
from cflow.solvers.uploads import upload

__all__ = ["FlowMap"]


@register("solvers.FlowMap")
@dataclass(frozen=True, repr=False)
class FlowMap(GeodesicGrid):
    r"""Integrates on a grid with average velocities, which a field of two times computes for whole steps.

    .. math:: y^+ = \exp_y\bigl( (s - t)\, u(t, y, s) \bigr),
              \qquad q^+ = q + (s - t)\, g(t, y, s), \qquad \text{in a flat space } \exp_y w = y + w

    The accuracy of one step depends on the training of the field (:class:`cflow.objectives.MeanFlow`,
    :class:`cflow.objectives.Shortcut`, :class:`cflow.objectives.LagrangianSelfDistillation`); more steps reduce the
    error. The integrands g of quadratures are averages over the step too. A flow passes the average of the divergence,
    which is the log-determinant of the whole step over its length: the density of the solver's own samples,
    ``flow.sample_and_log_prob((100,), solver=FlowMap(steps=1))``.

    Steps go in the directions of the training: from the base to the data, and back after training with ``both_ways``,
    for densities of data. On a manifold a step is a geodesic.

    Cost: one evaluation of ``f`` per step; nothing is read from the device. With a flow's log-determinant, a step takes
    one product in forward mode for each dimension, each about two evaluations.

    Raises:
        ValueError: for a field of one time, and the gradient ``Checkpointed``; and as :class:`FixedGrid`.

    Source: Boffi et al., Flow Map Matching, 2024, arXiv:2406.07507; Davis et al., Generalised Flow Maps for Few-Step
    Generative Modelling on Riemannian Manifolds, 2025, arXiv:2510.21608.

    Example:
        >>> import torch
        >>> class Decay(torch.nn.Module):  # of dy/dt = -y, the average over a step is known
        ...     two_times = True
        ...     def forward(self, t, y, *, s):
        ...         return y * (torch.expm1(t - s) / (s - t))[:, None]
        >>> FlowMap(steps=1).solve(Decay(), torch.ones(1, 1), 0.0, 1.0).y.item()
        0.36787...
    """

    tableau: ClassVar[Tableau] = tableaus.EULER

    takes_whole_steps = True
    refused_gradients = dict.fromkeys(("steps", "equation"), "few steps need no checkpoints; pass Backprop().")

    def _check(self, problem: Problem) -> None:
        if not getattr(problem.f, "two_times", False):  # ``f`` may be any callable
            raise ValueError(
                "FlowMap.solve: the field has one time and returns no average over a step; use Heun(steps=...), or "
                "train a field of two times (objectives.MeanFlow)."
            )
        if problem.manifold is not None:
            super()._check(problem)

    def _solve(self, problem: Problem) -> Solution:
        problem.f = _Steps(problem.f, self.layout(problem))
        return super()._solve(problem)

    def _integrate(self, problem: Problem, nodes, times, outputs, tape) -> tuple[list[Tensor], list[Tensor]]:
        if problem.manifold is None:
            return FixedGrid._integrate(self, problem, nodes, times, outputs, tape)
        return super()._integrate(problem, nodes, times, outputs, tape)


class _Steps:
    """Evaluates a field of two times for one step of a grid after the other."""

    def __init__(self, f: Callable, nodes: list[float]):
        self.f, self.nodes, self.ends = f, nodes, None

    def __call__(self, t: Tensor, y: Tensor, *args) -> Tensor:
        if self.ends is None:  # one upload for all steps
            self.ends = iter(upload(self.nodes[1:], t.dtype, t.device).unbind(0))
        return self.f(t, y, *args, s=next(self.ends).expand(t.shape[0]))
