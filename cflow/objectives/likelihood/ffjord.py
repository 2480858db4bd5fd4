"""Maximum likelihood of a continuous flow as in FFJORD: estimated divergences, regularisers, random ends."""

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
    """A :class:`LikelihoodBatch` with the quantities that stay fixed during its solve.

    Attributes:
        probe: the divergence's probe, with first dimension B; None if it has none.
        length: the length of the solve ``[]``; None for a fixed length of one.

    The other arguments are those of :class:`LikelihoodBatch`.
    """

    probe: Tensor | None = None
    length: Tensor | None = None


@register("objectives.FFJORD")
class FFJORD(MaximumLikelihood):
    r"""Trains a continuous flow by the log-density of the data, with a separate solver and divergence for training.

    .. math:: L = -\log p_\theta(x \mid c) + \lambda_K \int_0^1 \|v\|^2 \, dt
              + \lambda_J \int_0^1 \|J^\top\epsilon\|^2 \, dt, \qquad
              \log p_\theta(x) = \log p_0(x_0) - \int_0^1 \epsilon^\top J \epsilon \, dt

    along the trajectory from ``x`` at ``t = 1`` to ``x_0`` at ``t = 0``, with :math:`J = \partial v / \partial x` and
    one probe :math:`\epsilon` per sample and solve, drawn again for every training step. The flow's own ``solver`` and
    ``divergence`` do not change: evaluate with an exact divergence and a tighter tolerance.

    The loss is in nats per item, for the data before transforms. RNODE divides both likelihood and regularisers by the
    dimension D; here neither is divided, so the coefficients are comparable: ``kinetic=0.01, jacobian=0.01`` is the
    setting of RNODE. A regularised loss is not a likelihood. ``fit`` therefore records

    - ``nats``: the negative (estimated) log-density;
    - ``kinetic`` and ``jacobian``: the integrals, per item and unweighted;
    - ``nfe``: the function evaluations of a solve;
    - ``rejected``: the rejected steps per sample.

    It warns once if ``nfe`` exceeds 100 and four times its value in the first three rows.

    **Random ends** (``steer``). In training mode, a step integrates over a length :math:`T \sim U(1 - b, 1 + b)`, one
    for the batch: the field :math:`T v(1 - T (1 - t), x)` over [0, 1], which is ``v`` from the data at ``t = 1`` to a
    base at ``t = 1 - T``. The base end is random, and ``v`` is evaluated at times from ``-b`` to 1. Regularisers are
    integrals over this length. In evaluation mode (the validation of ``fit``) the length is one.

    Args:
        divergence: the divergence for training. Default: None, ``Hutchinson()``. ``Analytic()`` has no noise and is
            the fastest for fields with a closed form.
        kinetic: the weight :math:`\lambda_K` of the kinetic energy.
        jacobian: the weight :math:`\lambda_J` of the Jacobian's squared Frobenius norm, estimated from the
            vector-Jacobian products of the divergence (exact for ``Exact``).
        solver: the solver for training. Default: None, ``Dopri5(rtol=1e-5, atol=1e-5, per_sample=False,
            gradient=Checkpointed())``: one step size for the batch, accurate on average. Its ``gradient`` is the method
            for gradients: ``Checkpointed()`` keeps the graph of one evaluation; ``Backprop()`` keeps all graphs and
            takes half the time; ``TorchDiffEq("dopri5", gradient=ContinuousAdjoint())`` is the method of the FFJORD
            paper. A fixed grid has no error control, and training finds fields for which its densities are wrong:
            regularise by ``jacobian``, and compare ``nats`` with the flow's ``log_prob``. Under bf16 autocast use a
            fixed grid nevertheless: the rounding of bf16 is larger than the tolerances of adaptive solvers.
        steer: b, half the width of the distribution of lengths, in [0, 1). Default: 0, a fixed length of one.
        condition_dropout: the share of items whose context is replaced by "no condition".

    Shapes: returns ``[B]``. Cost: one solve with its gradient; per function evaluation, one product with the transposed
    Jacobian per probe. The regularisers use the same products.

    Raises:
        TypeError: for options that are not objects.
        ValueError: for weights or widths out of range; for a solver without a gradient; for ``jacobian`` with a
            divergence that has no norm; for a flow that is not continuous or has no density; for ``steer`` on a path
            that does not predict the velocity, which is then known inside [0, 1] only.
        FloatingPointError: if the solve of a sample fails; the message reports the sample and what to do.

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
                    f"FFJORD({name}={value}): the weight is finite and not negative; pass 0.01, or 0 to omit the term."
                )
        if not 0 <= self.steer < 1:
            raise ValueError(f"FFJORD(steer={self.steer}): steer is in [0, 1); pass 0.25.")
        if self.jacobian > 0 and not self.divergence.frobenius:
            raise ValueError(
                f"FFJORD(divergence={self.divergence!r}, jacobian={self.jacobian}): this divergence does not compute "
                f"the Jacobian's norm; pass divergence.Hutchinson(), or jacobian=0."
            )
        if self.solver.gradient is None:
            raise ValueError(
                f"FFJORD(solver={self.solver!r}): this solver has no gradient; pass one such as solvers.Dopri5() or "
                f"solvers.RK4(steps=8)."
            )
        if self.solver.needs_score:
            raise ValueError(
                f"FFJORD(solver={self.solver!r}): this solver simulates an SDE; pass an ODE solver such as "
                f"solvers.Dopri5()."
            )

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("nats", *self._energies, "nfe", "rejected")

    @property
    def _energies(self) -> tuple[str, ...]:
        """The regularisers with a weight; they are the quadratures of the same names."""
        return tuple(name for name in ("kinetic", "jacobian") if getattr(self, name) > 0)

    def prepare(self, base: nn.Module, x: tuple, context: Tensor | None = None, generator=None) -> FFJORDBatch:
        batch = super().prepare(base, x, context, generator)
        u = batch.u
        # If a transform is trained, it is not applied yet; probes have the shape of the base.
        inside = u if u.shape[1:] == base.event_shape else u.new_empty((len(u), *base.event_shape))
        probe = self.divergence.begin(inside, generator)
        length = None
        if self.steer > 0:
            length = 1 + self.steer * (2 * torch.rand((), generator=generator, dtype=u.dtype, device=u.device) - 1)
        return FFJORDBatch(u, batch.ladj, context, batch.drop, probe, length)

    def loss(self, flow: Any, batch: FFJORDBatch, *, generator=None) -> Tensor:
        """Computes the regularised loss per item, ``[B]``; trained transforms that draw use ``generator``."""
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
        # The energy over a length T is T times smaller than that of the rescaled field over [0, 1].
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
                f"FFJORD: a {type(flow).__qualname__} has no vector field; use objectives.MaximumLikelihood(), or a "
                f"ContinuousFlow."
            )
        self._check_density(flow)
        if flow.transform.likelihood == "none":
            raise ValueError(
                f"FFJORD: the density of this {type(flow).__qualname__} at time 1 is not that of its data, which are "
                f"tokens; use objectives.FlowMatching()."
            )
        if self.steer > 0 and flow.path is not None and flow.path.predict != "velocity":
            raise ValueError(
                f"FFJORD(steer={self.steer}): random ends need the velocity before time 0, and {flow.path!r} has it in "
                f"[{flow.interval[0]:.3g}, {flow.interval[1]:.6g}] only; pass steer=0, or predict the velocity."
            )

    def _check_success(self, solution: Solution) -> None:
        """Raises if the solve of a sample failed.

        Without error control a solve fails by values that are not finite, which are visible in the loss. The check is
        then omitted on accelerators, so that the step does not wait for the device.
        """
        if self.solver.step_tolerance is None and solution.status.device.type != "cpu":
            return
        try:
            solution.require_success()
        except RuntimeError as failure:
            raise FloatingPointError(
                f"FFJORD(solver={self.solver!r}): {failure} The field may be too steep: lower lr, clip gradients, "
                f"regularise (kinetic=0.01, jacobian=0.01), or use solvers.RK4(steps=8)."
            ) from None

    def review(self, history: Sequence[dict[str, Any]]) -> None:
        """Warns at the first row of ``history`` whose ``nfe`` exceeds 100 and four times that of the first rows."""
        if len(history) <= _FIRST:
            return
        calls = [row["nfe"] for row in history]
        begun = sum(calls[:_FIRST]) / _FIRST
        limit = max(_GROWTH * begun, _FEW)
        if calls[-1] <= limit or max(calls[_FIRST:-1], default=0.0) > limit:
            return
        warnings.warn_explicit(
            f"FFJORD: at step {history[-1]['step']} a solve takes {calls[-1]:.0f} function evaluations, and took "
            f"{begun:.0f} at first, so the flow becomes stiff; regularise (kinetic=0.01, jacobian=0.01), use a fixed "
            f"grid (solver=solvers.RK4(steps=8)), or loosen the tolerance.",
            UserWarning,
            **calling_line(),
        )


_GROWTH, _FIRST, _FEW = 4.0, 3, 100.0


class _Drawn(Divergence):
    """A divergence with a given probe."""

    def __init__(self, divergence: Divergence, probe: Tensor):
        self.divergence, self.probe = divergence, probe
        self.exact, self.frobenius = divergence.exact, divergence.frobenius

    def on(self, manifold: Any) -> Divergence:
        return _Drawn(self.divergence.on(manifold), self.probe)

    def begin(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.probe

    def __call__(self, f, t, x, probe, *args):
        return self.divergence(f, t, x, probe, *args)
