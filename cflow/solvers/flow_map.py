"""Whole steps by a field of two times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cflow.fields.contract import as_field
from cflow.registry import register
from cflow.solvers import tableau as tableaus
from cflow.solvers.fixed import FixedGrid, through
from cflow.solvers.gradients import Backprop
from cflow.solvers.solution import Solution
from cflow.solvers.solver import read_outputs, read_time
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

    def solve(
        self, f, y0, t0, t1, *, args=(), params=None, quadratures=None, manifold=None, path=None, generator=None,
        at=None,
    ) -> Solution:  # fmt: skip
        """Walks the grid from ``t0`` to ``t1``."""
        t0, t1 = read_time("FlowMap", "t0", t0), read_time("FlowMap", "t1", t1)
        if quadratures:
            raise ValueError(
                f"FlowMap.solve(quadratures={list(quadratures)}): a whole step says nothing of what lies within it, a "
                f"log-determinant least of all; ask for densities with an ODE solver such as Dopri5()."
            )
        if not as_field(f).two_times:
            raise ValueError(
                "FlowMap.solve: the field reads one time and gives a velocity, not the average over a step; solve with "
                "Euler(steps=...) or Heun(steps=...), or train a field of two times (objectives.MeanFlow, say)."
            )
        if t1 < t0:
            raise ValueError(
                f"FlowMap.solve(t0={t0}, t1={t1}): average velocities are learned for steps towards the data; go back "
                f"with an ODE solver such as Dopri5()."
            )
        if not isinstance(self.gradient, Backprop):
            raise ValueError(
                f"FlowMap(gradient={self.gradient!r}): few steps need no checkpoints; leave it at Backprop()."
            )
        nodes = self.nodes(t0, t1)
        nodes = through(nodes, read_outputs("FlowMap", at, t0, t1)) if at is not None else nodes
        return super().solve(
            _Steps(f, nodes), y0, t0, t1, args=args, params=params, manifold=manifold, path=path, generator=generator,
            at=at,
        )  # fmt: skip


class _Steps:
    """Asks a field of two times for one step of a grid after the other."""

    def __init__(self, f: Callable, nodes: list[float]):
        self.f, self.nodes, self.ends = f, nodes, None

    def __call__(self, t: Tensor, y: Tensor, *args) -> Tensor:
        if self.ends is None:  # one upload for all steps
            self.ends = iter(upload(self.nodes[1:], t.dtype, t.device).unbind(0))
        return self.f(t, y, *args, s=next(self.ends).expand(t.shape[0]))
