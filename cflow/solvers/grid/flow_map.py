"""Whole steps with a field of two times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cflow.registry import register
from cflow.solvers import tableau as tableaus
from cflow.solvers.grid.fixed import FixedGrid
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution
from cflow.solvers.tableau import Tableau
from cflow.solvers.uploads import upload

__all__ = ["FlowMap"]


@register("solvers.FlowMap")
@dataclass(frozen=True, repr=False)
class FlowMap(FixedGrid):
    r"""Integrates on a grid with average velocities, which a field of two times computes for whole steps.

    .. math:: y^+ = y + (s - t)\, u(t, y, s)

    The accuracy of one step depends on the training of the field (:class:`cflow.objectives.MeanFlow`,
    :class:`cflow.objectives.Shortcut`, :class:`cflow.objectives.LagrangianSelfDistillation`); more steps reduce the
    error. Steps go from the base to the data, as in training.

    Cost: one evaluation of ``f`` per step; nothing is read from the device.

    Raises:
        ValueError: for a field of one time, quadratures (a whole step has no integrals), backward time, and the
            gradient ``Checkpointed``; and as :class:`FixedGrid`.

    Source: Boffi et al., Flow Map Matching, 2024, arXiv:2406.07507.

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
        t0, t1 = problem.t0, problem.t1
        if problem.tolerances:
            raise ValueError(
                f"FlowMap.solve(quadratures={list(problem.tolerances)}): a whole step has no integrals, such as a "
                f"log-determinant; use an ODE solver such as Dopri5()."
            )
        if not getattr(problem.f, "two_times", False):  # ``f`` may be any callable
            raise ValueError(
                "FlowMap.solve: the field has one time and returns no average over a step; use Heun(steps=...), or "
                "train a field of two times (objectives.MeanFlow)."
            )
        if t1 < t0:
            raise ValueError(
                f"FlowMap.solve(t0={t0}, t1={t1}): a flow map goes towards the data only; use an ODE solver such as "
                f"Dopri5()."
            )

    def _solve(self, problem: Problem) -> Solution:
        problem.f = _Steps(problem.f, self.layout(problem))
        return super()._solve(problem)


class _Steps:
    """Evaluates a field of two times for one step of a grid after the other."""

    def __init__(self, f: Callable, nodes: list[float]):
        self.f, self.nodes, self.ends = f, nodes, None

    def __call__(self, t: Tensor, y: Tensor, *args) -> Tensor:
        if self.ends is None:  # one upload for all steps
            self.ends = iter(upload(self.nodes[1:], t.dtype, t.device).unbind(0))
        return self.f(t, y, *args, s=next(self.ends).expand(t.shape[0]))
