"""Maximum likelihood of a continuous flow, as FFJORD trains it: estimated divergences, regularisers, random ends."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cflow.arguments import calling_line
from cflow.continuous.flow import ContinuousFlow
from cflow.divergence import Divergence, Hutchinson
from cflow.fields.end_time import Lengthened
from cflow.objectives.likelihood.maximum_likelihood import LikelihoodBatch, MaximumLikelihood
from cflow.registry import register
from cflow.solvers import Checkpointed, Dopri5, Solution, Solver
from cflow.solvers.solver import check_is_solver

__all__ = ["FFJORD", "FFJORDBatch"]


@dataclass
class FFJORDBatch(LikelihoodBatch):
    """Data with what stays fixed during their solve: the divergence's probe of each row, and the solve's length."""

    probe: Tensor | None = None
    length: Tensor | None = None


@register("objectives.FFJORD")
class FFJORD(MaximumLikelihood):
    r"""Trains a continuous flow by the log-density of the data, with a solver and a divergence for training alone.

    .. math:: L = -\log p_\theta(x \mid c) + \lambda_K \int_0^1 \|v\|^2 \, dt
              + \lambda_J \int_0^1 \|J^\top\epsilon\|^2 \, dt, \qquad
              \log p_\theta(x) = \log p_0(x_0) - \int_0^1 \epsilon^\top J \epsilon \, dt

    along the trajectory from ``x`` at ``t = 1`` to ``x_0`` at ``t = 0``, with :math:`J = \partial v / \partial x` and
    one probe :math:`\epsilon` per sample and solve, drawn anew for every step. What the flow is evaluated by (its
    ``solver`` and ``divergence``) is left as it is: evaluate with an exact divergence and a tighter tolerance.

    The loss is in nats per item, of the data as measured. RNODE divides likelihood and regularisers alike by the
    dimension D, and here neither is, so its coefficients mean the same: ``kinetic=0.01, jacobian=0.01`` is its setting.
    A regularised loss is not a likelihood: ``fit`` records ``nats``, the negative (estimated) log-density, beside the
    integrals ``kinetic`` and ``jacobian`` (per item, unweighted), with ``nfe``, the calls of the field that a solve
    took, and ``rejected``, the steps per sample that were taken in vain. It warns once when ``nfe`` has grown past four
    times what it was in the first three rows, and past 100.

    **Random ends** (``steer``). In training mode a step integrates over a length :math:`T \sim U(1 - b, 1 + b)`, one
    for the batch: the field :math:`T v(1 - T (1 - t), x)` over [0, 1], which is ``v`` from the data at ``t = 1`` to a
    base at ``t = 1 - T``. The base end is the random one, and ``v`` is asked at times from ``-b`` to 1. Regularisers
    are integrals over the stretch that is walked. In evaluation mode (``fit``'s validation) the length is one.

    Args:
        divergence: of the training solves; ``Hutchinson()`` where none is given. ``Analytic()`` has no noise, and is
            the fastest where the field has a closed form.
        kinetic: the weight :math:`\lambda_K` of the kinetic energy.
        jacobian: the weight :math:`\lambda_J` of the Jacobian's squared Frobenius norm, estimated by the divergence's
            own vector-Jacobian products (exact for ``Exact``).
        solver: of the training solves; unless given, ``Dopri5(rtol=1e-5, atol=1e-5, per_sample=False,
            gradient=Checkpointed())``: one step for the batch, which is accurate on average. Its ``gradient`` says how
            gradients pass: ``Checkpointed()`` keeps one evaluation's graph, ``Backprop()`` keeps all and takes half
            the time, and ``TorchDiffEq("dopri5", gradient=ContinuousAdjoint())`` is what FFJORD itself did. A fixed
            grid has no error control, and training finds fields that it scores wrongly: regularise by ``jacobian``,
            and compare ``nats`` with the flow's own ``log_prob``. Under bf16 autocast take a fixed grid all the same:
            the rounding of bf16 is above the tolerances of the others.
        steer: half the width ``b`` of the law of lengths; 0 for a fixed length of one.
        condition_dropout: the share of items whose context is replaced by "no condition".

    Shapes: returns ``[B]``. Cost: one solve with its gradient; per call of the field, a product with its transposed
    Jacobian per probe. The regularisers come from the same products.

    Raises:
        TypeError: for options that are no objects.
        ValueError: for weights or widths out of range, a solver whose gradient mode it cannot honour, a divergence
            without the norm that ``jacobian`` asks for; for a flow that is not continuous or has no density, and for
            ``steer`` on a path that predicts something else than a velocity, which is known inside [0, 1] alone.
        FloatingPointError: where the solve of a sample fails; the message says which, and what to do.

    Source: Grathwohl et al., FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models, 2018,
    arXiv:1810.01367; Finlay et al., How to train your neural ODE: the world of Jacobian and kinetic regularization,
    2020, arXiv:2002.02798 (regularisers); Ghosh et al., STEER: Simple Temporal Regularization For Neural ODEs, 2020,
    arXiv:2006.10711 (random ends; there the data are at time 0).

    Example:
        >>> import cflow
        >>> from cflow import bases, fields
        >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2))
        >>> objective = FFJORD(kinetic=0.01, jacobian=0.01)
        >>> objective(flow, torch.randn(16, 2)).shape
        torch.Size([16])
        >>> sorted(objective.metrics)
        ['jacobian', 'kinetic', 'nats', 'nfe', 'rejected']
    """

    draws = True

    def __init__(
        self,
        divergence: Divergence | None = None,
        kinetic: float = 0.0,
        jacobian: float = 0.0,
        solver: Solver | None = None,
        steer: float = 0.0,
        condition_dropout: float = 0.0,
    ):
        super().__init__(condition_dropout)
        self.divergence = Hutchinson() if divergence is None else divergence
        usual = Dopri5(rtol=1e-5, atol=1e-5, per_sample=False, gradient=Checkpointed())
        self.solver = usual if solver is None else solver
        self.kinetic, self.jacobian, self.steer = kinetic, jacobian, steer
        self._check_options()

    def _check_options(self) -> None:
        if not isinstance(self.divergence, Divergence):
            raise TypeError(
                f"FFJORD(divergence={self.divergence!r}): options are objects; pass one such as "
                f"divergence.Hutchinson()."
            )
        check_is_solver("FFJORD: solver", self.solver)
        for name in ("kinetic", "jacobian"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"FFJORD({name}={value}): a regulariser is weighed by a finite number that is not negative; pass "
                    f"0.01, say, or 0 to leave it out."
                )
        if not 0 <= self.steer < 1:
            raise ValueError(
                f"FFJORD(steer={self.steer}): the length of a solve is drawn between 1 - steer and 1 + steer and must "
                f"stay positive; pass a number in [0, 1), such as 0.25."
            )
        if self.jacobian > 0 and not self.divergence.frobenius:
            raise ValueError(
                f"FFJORD(divergence={self.divergence!r}, jacobian={self.jacobian}): this divergence comes without the "
                f"Jacobian's norm, which the regulariser weighs; pass divergence.Hutchinson(), or jacobian=0."
            )
        if self.solver.gradient is None:
            raise ValueError(
                f"FFJORD(solver={self.solver!r}): training needs the gradient of a solve, and this solver has no "
                f"gradient= to choose; pass a solver that has, such as solvers.Dopri5() or solvers.RK4(steps=8)."
            )
        if self.solver.needs_score:
            raise ValueError(
                f"FFJORD(solver={self.solver!r}): this solver simulates noise, and the log-density is carried along "
                f"the flow's ODE; pass a solver such as solvers.Dopri5() or solvers.RK4(steps=8)."
            )

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("nats", *self._energies, "nfe", "rejected")

    @property
    def _energies(self) -> tuple[str, ...]:
        """Names the regularisers that have a weight; they are the quadratures of the same names."""
        return tuple(name for name in ("kinetic", "jacobian") if getattr(self, name) > 0)

    def prepare(self, base: nn.Module, x: tuple, context: Tensor | None = None, generator=None) -> FFJORDBatch:
        batch = super().prepare(base, x, context, generator)
        u = batch.u
        # Where a transform is trained, data are still outside of it; probes are of the shape of what is modelled.
        inside = u if u.shape[1:] == base.event_shape else u.new_empty((len(u), *base.event_shape))
        probe = self.divergence.begin(inside, generator)
        length = None
        if self.steer > 0:
            length = 1 + self.steer * (2 * torch.rand((), generator=generator, dtype=u.dtype, device=u.device) - 1)
        return FFJORDBatch(u, batch.ladj, context, batch.drop, probe, length)

    def loss(self, flow: Any, batch: FFJORDBatch, *, generator=None) -> Tensor:
        self._check_flow(flow)
        u, outer = self._modelled(flow, batch, generator)
        length = batch.length if flow.training else None
        context = self.dropped(flow, batch.context, batch.drop)
        solution = flow.transport(
            u, 1.0, 0.0, context, ladj=True, quadratures=self._energies, solver=self.solver,
            divergence=self.divergence if batch.probe is None else _Drawn(self.divergence, batch.probe),
            guidance=None if length is None else functools.partial(Lengthened, length=length),
        )  # fmt: skip
        self._check_success(solution)
        nats = -(flow.base.log_prob(solution.y) + solution.quadratures["ladj"] + outer)
        # Over its own time a stretch of length T has an energy T times smaller than over [0, 1].
        walked = {name: solution.quadratures[name] / (1.0 if length is None else length) for name in self._energies}
        loss = nats
        for name, value in walked.items():
            loss = loss + getattr(self, name) * value
        means = {name: value.detach().mean() for name, value in (("nats", nats), *walked.items())}
        self.log(**means, nfe=solution.stats.nfe, rejected=solution.stats.rejected.float().mean())
        return loss

    def _check_flow(self, flow: Any) -> None:
        if not isinstance(flow, ContinuousFlow):
            raise ValueError(
                f"FFJORD: a {type(flow).__qualname__} has no vector field to solve along; train it with "
                f"objectives.MaximumLikelihood(), or build a ContinuousFlow(field, base)."
            )
        self._check_density(flow)
        if self.steer > 0 and flow.path is not None and flow.path.predict != "velocity":
            raise ValueError(
                f"FFJORD(steer={self.steer}): on {flow.path!r} the network's prediction gives a velocity inside "
                f"[{flow.interval[0]:.3g}, {flow.interval[1]:.6g}] alone, and random ends ask for it before time 0; "
                f"train with steer=0, or a flow that predicts the velocity."
            )

    def _check_success(self, solution: Solution) -> None:
        """Raises where a sample was not carried to the base.

        Without error control a solve fails by numbers that are not finite, which the loss shows by itself: no
        accelerator waits for it.
        """
        if self.solver.step_tolerance is None and solution.status.device.type != "cpu":
            return
        try:
            solution.require_success()
        except RuntimeError as failure:
            raise FloatingPointError(
                f"FFJORD(solver={self.solver!r}): {failure} In training it is mostly the field that has become too "
                f"steep: lower lr or clip gradients, regularise (kinetic=0.01, jacobian=0.01), or train on a fixed "
                f"grid such as solvers.RK4(steps=8, gradient=Checkpointed())."
            ) from None

    def review(self, history: Sequence[dict[str, Any]]) -> None:
        """Warns at the first row whose ``nfe`` is more than four times that of the first three rows, and above 100."""
        if len(history) <= _FIRST:
            return
        calls = [row["nfe"] for row in history]
        begun = sum(calls[:_FIRST]) / _FIRST
        limit = max(_GROWTH * begun, _FEW)
        if calls[-1] <= limit or max(calls[_FIRST:-1], default=0.0) > limit:
            return
        warnings.warn_explicit(
            f"FFJORD: at step {history[-1]['step']} a solve takes {calls[-1]:.0f} calls of the field, and took "
            f"{begun:.0f} at first: the flow becomes stiff, and training slower with it. Regularise "
            f"(kinetic=0.01, jacobian=0.01), train on a fixed grid (solver=solvers.RK4(steps=8, "
            f"gradient=Checkpointed())), or loosen the tolerance.",
            UserWarning,
            **calling_line(),
        )


_GROWTH, _FIRST, _FEW = 4.0, 3, 100.0


class _Drawn(Divergence):
    """A divergence whose probe has been drawn already."""

    def __init__(self, divergence: Divergence, probe: Tensor):
        self.divergence, self.probe = divergence, probe
        self.exact, self.frobenius = divergence.exact, divergence.frobenius

    def begin(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.probe

    def __call__(self, f, t, x, probe, *args):
        return self.divergence(f, t, x, probe, *args)
