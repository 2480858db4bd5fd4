"""How gradients pass through a solve: by the graph of every operation, or step by step from what each step began with.

A solver that takes ``gradient=`` asks it for a tape before the first step. ``None`` means that nothing is to be
recorded. Otherwise the solver runs without a graph, appends a :class:`~cflow.solvers.gradients.adjoint.Step` per step,
and at the end has its results joined to the graph by :meth:`Tape.attach`::

    tape = self.gradient.begin(problem)
    with without_graph(tape):
        ...
        if tape is not None:
            tape.steps.append(Step(tableau, y, times, h))
    if tape is not None:
        y, integrals, outputs = tape.attach(y, integrals, outputs)
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from cflow.registry import register
from cflow.solvers.gradients.adjoint import Tape
from cflow.solvers.problem import Problem
from cflow.solvers.solution import check_tolerances

__all__ = ["NO_ADJOINT", "Backprop", "Checkpointed", "ContinuousAdjoint", "Gradient", "check_gradient", "without_graph"]


class Gradient(ABC):
    """Says how a solver makes its result differentiable; step sizes and times are constants in all of them."""

    through: ClassVar[Literal["operations", "steps", "equation"]] = "steps"
    """What is differentiated: all operations of a solve, its steps taken again, or an equation of its own."""

    @abstractmethod
    def begin(self, problem: Problem) -> Tape | None:
        """Gives the tape that a solve must keep, or None when it is to run as usual."""


@register("solvers.Backprop")
@dataclass(frozen=True)
class Backprop(Gradient):
    """Differentiates through the solver's own operations, as any code in torch.

    Cost: the backward pass evaluates nothing again, but the graph of every evaluation is kept: memory is steps times
    stages times the network's activations. Any number of derivatives and forward mode work. Where ``f`` itself is not
    finite at a sample's start, gradients that samples share are NaN. Take it for
    small networks or few steps, and where a second derivative is needed; :class:`Checkpointed` otherwise.

    Example:
        >>> from cflow import solvers
        >>> y0 = torch.ones(1, 1, requires_grad=True)
        >>> solvers.Euler(2, gradient=Backprop()).solve(lambda t, y: y, y0, 0.0, 1.0).y.backward()
        >>> y0.grad.item()
        2.25
    """

    through = "operations"

    def begin(self, problem):
        """Gives None: there is nothing to record."""
        return None


@register("solvers.Checkpointed")
@dataclass(frozen=True)
class Checkpointed(Gradient):
    r"""Differentiates a solve exactly, keeping the state of every step and the graph of one evaluation at a time.

    For a step :math:`Y_i = y + h \sum_{j<i} a_{ij} k_j,\ k_i = f(t_i, Y_i),\ y^+ = y + h \sum_i b_i k_i`, the cotangent
    :math:`\lambda` of :math:`y^+` is carried back to that of :math:`y` stage by stage, from the last to the first:

    .. math:: \bar k_i = h \Big(b_i \lambda + \sum_{j>i} a_{ji} \bar Y_j\Big), \qquad
              (\bar Y_i, \bar\theta_i) = \bar k_i^\top \frac{\partial f}{\partial (Y, \theta)}(t_i, Y_i), \qquad
              \lambda \leftarrow \lambda + \sum_i \bar Y_i

    The gradient is that of the discrete solution, the one that :class:`Backprop` gives, to rounding. Gradients of
    parameters are summed on the way (in float32 at least) and are never part of a state that is integrated.

    Cost: memory of one state per step and one evaluation's graph. The backward pass of a step with s stages takes
    ``2 s - 1`` evaluations, s of them with a graph and its backward: forward and backward together take 1.3 (Euler) to
    1.6 (RK4) times as long as with ``Backprop``, and up to twice where the network is so small that calls cost more
    than arithmetic. The autocast state of the forward pass holds in the backward pass. Take it to train through a
    solver; for a small network in few steps, :class:`Backprop` is faster.

    Raises:
        RuntimeError: in the backward pass, if ``f`` uses a tensor that requires a gradient and is neither in ``args``
            nor among ``params`` (found by themselves where ``f`` is a module, or refers to modules and tensors from
            its closure, attributes or globals); and where a second derivative is asked for.

    Source: Matsubara, Miyatake and Yaguchi, Symplectic Adjoint Method for Exact Gradient of Neural ODE with Minimal
    Memory, 2021, arXiv:2102.09750, where the stages are walked in the same order; Hager, Runge-Kutta methods in optimal
    control and the transformed adjoint system, 2000, Numerische Mathematik 87, for the adjoint of the discrete method.

    Example:
        >>> from cflow import solvers
        >>> net = torch.nn.Linear(2, 2)
        >>> solver = solvers.RK4(10, gradient=Checkpointed())
        >>> solver.solve(lambda t, y: net(y), torch.ones(4, 2), 0.0, 1.0).y.sum().backward()
        >>> net.weight.grad.shape
        torch.Size([2, 2])
    """

    def begin(self, problem):
        """Gives a tape where gradients are enabled."""
        return Tape(problem) if torch.is_grad_enabled() else None


@register("solvers.ContinuousAdjoint")
@dataclass(frozen=True)
class ContinuousAdjoint(Gradient):
    r"""Differentiates by integrating the adjoint equation backward in time; for :class:`TorchDiffEq` alone.

    .. math:: \dot\lambda = -\lambda^\top \frac{\partial f}{\partial y}, \qquad
              \dot{\bar\theta} = -\lambda^\top \frac{\partial f}{\partial \theta}

    The state is integrated back beside it, so nothing is kept but the end: memory of one evaluation's graph. The
    gradient is that of the exact solution up to the tolerance, not that of the computed one, and wrong where the field
    cannot be integrated backward (it contracts strongly). Prefer :class:`Checkpointed` unless the states of all steps
    do not fit in memory.

    Args:
        rtol, atol, method: of the solve backward; those of the forward solve unless given.
        seminorm: leaves the gradients of parameters out of step control, as they feed back into nothing.

    Source: Chen et al., Neural Ordinary Differential Equations, 2018, arXiv:1806.07366; Kidger, Chen and Lyons, "Hey,
    that's not an ODE": Faster ODE Adjoints via Seminorms, 2020, arXiv:2009.09457.

    Example:
        >>> ContinuousAdjoint(rtol=1e-6, atol=1e-6).seminorm
        True
    """

    rtol: float | None = None
    atol: float | None = None
    method: str | None = None
    seminorm: bool = True

    def __post_init__(self):
        check_tolerances("ContinuousAdjoint", *(1.0 if each is None else each for each in (self.rtol, self.atol)))

    through = "equation"

    def begin(self, problem):
        """Refuses: our own steps have an exact gradient at the same price."""
        raise ValueError(f"{problem.owner}(gradient={self!r}): {NO_ADJOINT}")


NO_ADJOINT = (
    "this solver has no continuous adjoint, since the gradient of its own steps is exact at the same price; pass "
    "gradient=Checkpointed(), or solve by TorchDiffEq(method, ..., gradient=ContinuousAdjoint())."
)


def check_gradient(owner: str, gradient: Gradient, refused: Mapping[str, str]) -> None:
    """Raises for anything that is not a gradient mode, and for a mode that ``refused`` gives a reason against."""
    if not isinstance(gradient, Gradient):
        raise TypeError(
            f"{owner}(gradient={gradient!r}): how gradients pass is an option object; pass solvers.Backprop() or "
            f"solvers.Checkpointed()."
        )
    if gradient.through in refused:
        raise ValueError(f"{owner}(gradient={gradient!r}): {refused[gradient.through]}")


def without_graph(tape: Tape | None):
    """Gives the mode a solve runs in: without a graph when there is a tape."""
    return contextlib.nullcontext() if tape is None else torch.no_grad()
