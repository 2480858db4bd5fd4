"""How gradients pass through a solve: by the graph of all operations, or step by step from stored states.

A solver with an option ``gradient=`` asks it for a tape before the first step. ``None`` means that nothing is recorded.
Otherwise the solver runs without a graph and appends a ``Step`` for each step. At the end, ``Tape.attach`` connects the
results to the graph::

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
    """Sets how the result of a solver is differentiated; step sizes and times are always constants.

    Example:
        >>> from cflow import solvers
        >>> y0 = torch.ones(1, 1, requires_grad=True)
        >>> solver = solvers.RK4(10, gradient=solvers.Checkpointed())
        >>> torch.autograd.grad(solver.solve(lambda t, y: 2 * y, y0, 0.0, 1.0).y, y0)[0].item()   # about e^2
        7.388...
    """

    through: ClassVar[Literal["operations", "steps", "equation"]] = "steps"
    """What is differentiated: all operations of a solve, its steps computed again, or a separate equation."""

    @abstractmethod
    def begin(self, problem: Problem) -> Tape | None:
        """Returns the tape that a solve of ``problem`` must keep, or None if nothing is recorded."""


@register("solvers.Backprop")
@dataclass(frozen=True)
class Backprop(Gradient):
    """Differentiates through the solver's own operations, like any code in torch.

    Cost: the backward pass evaluates nothing again, but the graph of every evaluation is kept: memory is steps times
    stages times the activations of the network. Higher derivatives and forward mode work. If ``f`` is not finite at the
    start of a sample, gradients that samples share are NaN. Use it for small networks or few steps, and for second
    derivatives; otherwise use :class:`Checkpointed`.

    Example:
        >>> from cflow import solvers
        >>> y0 = torch.ones(1, 1, requires_grad=True)
        >>> solvers.Euler(2, gradient=Backprop()).solve(lambda t, y: y, y0, 0.0, 1.0).y.backward()
        >>> y0.grad.item()
        2.25
    """

    through = "operations"

    def begin(self, problem):
        """Returns None: nothing is recorded."""
        return None


@register("solvers.Checkpointed")
@dataclass(frozen=True)
class Checkpointed(Gradient):
    r"""Differentiates a solve exactly; keeps the state of every step, and the graph of one evaluation at a time.

    For a step :math:`Y_i = y + h \sum_{j < i} a_{ij} k_j,\ k_i = f(t_i, Y_i),\ y^+ = y + h \sum_i b_i k_i`, the
    cotangent :math:`\lambda` of :math:`y^+` is propagated to that of :math:`y` stage by stage, from the last to the
    first:

    .. math:: \bar k_i = h \Big(b_i \lambda + \sum_{j>i} a_{ji} \bar Y_j\Big), \qquad
              (\bar Y_i, \bar\theta_i) = \bar k_i^\top \frac{\partial f}{\partial (Y, \theta)}(t_i, Y_i), \qquad
              \lambda \leftarrow \lambda + \sum_i \bar Y_i

    The gradient is that of the discrete solution: it equals that of :class:`Backprop` up to rounding. Gradients of
    parameters are summed on the way (in float32 at least) and are never part of an integrated state.

    Cost: memory of one state per step, and of the graph of one evaluation. The backward pass of a step with s stages
    takes ``2 s - 1`` evaluations, s of them with a graph and its backward pass. Forward and backward together take 1.3
    (Euler) to 1.6 (RK4) times as long as with ``Backprop``, and up to twice as long if the network is so small that
    overhead exceeds arithmetic. The backward pass uses the autocast state of the forward pass. Use it to train through
    a solver; for a small network in few steps, :class:`Backprop` is faster.

    Raises:
        RuntimeError: in the backward pass, if ``f`` uses a tensor that requires a gradient and is neither in ``args``
            nor in ``params`` (found automatically if ``f`` is a module, or refers to modules and tensors in its
            closure, attributes or globals); and for a second derivative.

    Source: Matsubara, Miyatake and Yaguchi, Symplectic Adjoint Method for Exact Gradient of Neural ODE with Minimal
    Memory, 2021, arXiv:2102.09750, with the same order of stages; Hager, Runge-Kutta methods in optimal control and the
    transformed adjoint system, 2000, Numerische Mathematik 87, for the adjoint of the discrete method.

    Example:
        >>> from cflow import solvers
        >>> net = torch.nn.Linear(2, 2)
        >>> solver = solvers.RK4(10, gradient=Checkpointed())
        >>> solver.solve(lambda t, y: net(y), torch.ones(4, 2), 0.0, 1.0).y.sum().backward()
        >>> net.weight.grad.shape
        torch.Size([2, 2])
    """

    def begin(self, problem):
        """Returns a tape if gradients are enabled."""
        return Tape(problem) if torch.is_grad_enabled() else None


@register("solvers.ContinuousAdjoint")
@dataclass(frozen=True)
class ContinuousAdjoint(Gradient):
    r"""Differentiates by integrating the adjoint equation backward in time; only for :class:`TorchDiffEq`.

    .. math:: \dot\lambda = -\lambda^\top \frac{\partial f}{\partial y}, \qquad
              \dot{\bar\theta} = -\lambda^\top \frac{\partial f}{\partial \theta}

    The state is integrated back along with it, so only the end is kept: memory of the graph of one evaluation. The
    gradient is that of the exact solution up to the tolerance, not that of the computed one. It is wrong if the field
    cannot be integrated backward (it contracts strongly). Prefer :class:`Checkpointed`, unless the states of all steps
    do not fit in memory.

    Args:
        rtol, atol, method: tolerances and method of the backward solve. Default: those of the forward solve.
        seminorm: whether the gradients of parameters are left out of step control; nothing else depends on them.

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
        """Raises: the solvers here have an exact gradient at the same cost."""
        raise ValueError(f"{problem.owner}(gradient={self!r}): {NO_ADJOINT}")


NO_ADJOINT = (
    "this solver has no continuous adjoint, but an exact gradient at the same cost; pass gradient=Checkpointed(), or "
    "use "
    "TorchDiffEq(method, gradient=ContinuousAdjoint())."
)


def check_gradient(owner: str, gradient: Gradient, refused: Mapping[str, str]) -> None:
    """Raises unless ``gradient`` is a gradient mode, and for a mode that ``refused`` maps to a reason."""
    if not isinstance(gradient, Gradient):
        raise TypeError(
            f"{owner}(gradient={gradient!r}): expected a gradient mode; pass solvers.Backprop() or "
            f"solvers.Checkpointed()."
        )
    if gradient.through in refused:
        raise ValueError(f"{owner}(gradient={gradient!r}): {refused[gradient.through]}")


def without_graph(tape: Tape | None):
    """Returns the context in which a solve runs: without a graph if there is a tape."""
    return contextlib.nullcontext() if tape is None else torch.no_grad()
