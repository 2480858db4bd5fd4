"""Whole steps by a field of two times."""

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
    r"""Walks a grid by average velocities, each of which the field gives for a whole step.

    .. math:: y^+ = y + (s - t)\, u(t, y, s)

    As good with one step as the field has learned it (:class:`cflow.objectives.MeanFlow`,
    :class:`~cflow.objectives.Shortcut`, :class:`~cflow.objectives.LagrangianSelfDistillation`); more steps cost as many
    calls and divide what is left. Steps lead from the base to the data, as they were trained.

    Cost: one call of ``f`` per step; nothing is read from the device.

    Raises:
        ValueError: for a field of one time, integrals (a step says nothing of what lies within it), backward time, and
            the gradient ``Checkpointed``; and as :class:`FixedGrid`.

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
    refused_gradients = dict.fromkeys(("steps", "equation"), "few steps need no checkpoints; leave it at Backprop().")

    def _check(self, problem: Problem) -> None:
        t0, t1 = problem.t0, problem.t1
        if problem.tolerances:
            raise ValueError(
                f"FlowMap.solve(quadratures={list(problem.tolerances)}): a whole step says nothing of what lies within "
                f"it, a log-determinant least of all; ask for densities with an ODE solver such as Dopri5()."
            )
        if not getattr(problem.f, "two_times", False):  # any callable may be solved
            raise ValueError(
                "FlowMap.solve: the field reads one time and gives a velocity, not the average over a step; solve with "
                "Euler(steps=...) or Heun(steps=...), or train a field of two times (objectives.MeanFlow, say)."
            )
        if t1 < t0:
            raise ValueError(
                f"FlowMap.solve(t0={t0}, t1={t1}): average velocities are learned for steps towards the data; go back "
                f"with an ODE solver such as Dopri5()."
            )

    def _solve(self, problem: Problem) -> Solution:
        problem.f = _Steps(problem.f, self.layout(problem))
        return super()._solve(problem)


class _Steps:
    """Asks a field of two times for one step of a grid after the other."""

    def __init__(self, f: Callable, nodes: list[float]):
        self.f, self.nodes, self.ends = f, nodes, None

    def __call__(self, t: Tensor, y: Tensor, *args) -> Tensor:
        if self.ends is None:  # one upload for all steps
            self.ends = iter(upload(self.nodes[1:], t.dtype, t.device).unbind(0))
        return self.f(t, y, *args, s=next(self.ends).expand(t.shape[0]))
