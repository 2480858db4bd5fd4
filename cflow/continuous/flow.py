"""A continuous flow: a vector field, a base distribution and a solver."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cflow import registry
from cflow.bijections.map import Likelihood, weakest
from cflow.continuous.parts import check_parts
from cflow.continuous.transport import transport
from cflow.continuous.velocity import Prediction, Tangent, VelocityAndScore, VelocityField
from cflow.divergence import Exact
from cflow.draws import check_generator
from cflow.fields import as_field
from cflow.invertible_flow import BaseInvertibleFlow
from cflow.paths import AffinePath, Rescheduled, VelocityPath
from cflow.shapes import expand_like, flatten, unflatten
from cflow.solvers import Dopri5, Solution

__all__ = ["ContinuousFlow"]


@registry.register("continuous.ContinuousFlow")
class ContinuousFlow(BaseInvertibleFlow):
    r"""Transforms a base distribution to that of the data by the ordinary differential equation of a vector field.

    .. math:: \dot x = v_\theta(t, x, c), \quad x(0) \sim p_0, \qquad
              \log p_1(x(1)) = \log p_0(x(0)) - \int_0^1 \nabla \cdot v_\theta \, dt

    Train it with an objective (:mod:`cflow.objectives`): flow matching on ``path``, or maximum likelihood.

    Shapes: ``x [*batch, *event]``, ``context [*batch, *context_shape]``, log-densities ``[*batch]`` in nats.
    Cost: one function evaluation per solver stage. With the log-determinant, each stage also computes the divergence:
    ``D`` vector-Jacobian products for ``Exact``, about one more evaluation for ``Analytic`` (:mod:`cflow.divergence`
    compares them). A log-density outside ``torch.no_grad()`` keeps the graph of every solver stage.

    Every method accepts ``solver`` and ``guidance`` for one call; methods that compute a density also accept
    ``divergence``.

    Networks that predict ``x1``, ``noise`` or ``score`` have no velocity at the very ends of [0, 1], outside
    :attr:`interval`. There, samples use the path's closed form. Methods that compute a density (``log_prob``,
    ``encode``, ``decode``, ``sample_and_log_prob``) use a change of scale, which is exactly invertible. The two differ
    by the path's margin.

    Args:
        field: a network called as ``field(t, x, context)``.
        base: the distribution at ``t = 0``.
        path: the path on which the field is trained, which also defines what the field predicts. Default: None, a
            velocity field without a schedule.
        solver: the default solver. Default: None, ``Dopri5(rtol=1e-5, atol=1e-6)``.
        divergence: the method for the log-determinant. Default: None, ``divergence.Exact()``.
        manifold: the manifold on which base and data lie. Default: None, that of the base; a base of stored samples
            (``bases.Empirical``) has none.
        context_shape: the shape of one context; ``()`` for a class label. Default: None, the shape that the field
            declares (fields of :mod:`cflow.fields` do).
        transform: data transforms; see :meth:`with_transform`.

    Raises:
        TypeError: if field, base or path has the wrong type.
        ValueError: if event or context shapes of field, base and flow differ, or the path predicts a score and the base
            is not a standard normal.

    Source: Chen et al., Neural Ordinary Differential Equations, 2018, arXiv:1806.07366; Grathwohl et al., FFJORD, 2018,
    arXiv:1810.01367; Lipman et al., Flow Matching for Generative Modeling, 2022, arXiv:2210.02747.

    Example:
        >>> from cflow import bases, fields, paths, solvers
        >>> flow = ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
        >>> x, logp = flow.sample_and_log_prob((5,), generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(flow.log_prob(x), logp, atol=1e-4)
        True
    """

    stored_as: ClassVar[Mapping[str, str]] = {"manifold": "given_manifold"}
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "sample": ("solver", "guidance"),
        "log_prob": ("solver", "divergence", "guidance"),
    }

    def __init__(
        self,
        field: nn.Module,
        base: nn.Module,
        *,
        path: VelocityPath | None = None,
        solver=None,
        divergence=None,
        manifold=None,
        context_shape=None,
        transform: Sequence[nn.Module] = (),
    ):
        if not callable(getattr(base, "sample", None)) or not hasattr(base, "event_shape"):
            raise TypeError(
                f"ContinuousFlow(base={type(base).__name__}): the base needs event_shape, sample and log_prob; pass a "
                f"distribution such as bases.Normal(2)."
            )
        if context_shape is None and isinstance(field, nn.Module):
            said = as_field(field).context_shape
            context_shape = None if said is ... else said
        super().__init__(base.event_shape, context_shape, transform)
        self.field, self.base, self.given_manifold = field, base, manifold
        self.path = path
        self.solver = Dopri5(rtol=1e-5, atol=1e-6) if solver is None else solver
        self.divergence = Exact() if divergence is None else divergence
        check_parts(self)
        if path is not None:
            self.path = path.on(self.manifold)

    @property
    def manifold(self) -> Any:
        """The manifold on which the flow moves: the argument, or that of the base; None for the Euclidean space."""
        return getattr(self.base, "manifold", None) if self.given_manifold is None else self.given_manifold

    @property
    def likelihood(self) -> Likelihood:
        if self._takes_steps or not getattr(self.base, "has_density", True):
            return "none"
        return weakest(self.transform.likelihood, "exact" if self.divergence.exact else "estimate")

    @property
    def _takes_steps(self) -> bool:
        """Whether the last training taught steps, which do not follow a velocity."""
        return bool(self.trained_by) and self.trained_by[-1].teaches == "steps"

    def _check(self, options, method: str, generator=None) -> None:
        if "log_prob" in method or method in ("encode", "decode"):
            self._check_density(method)
        super()._check(options, method, generator)

    def _check_density(self, method: str) -> None:
        """Raises if the last training taught steps: the flow then has no log-determinant."""
        if self._takes_steps:
            raise ValueError(
                f"flow.{method}: a flow trained to few steps ({self.trained_by[-1].objective}) has no density; use the "
                f"flow that it was distilled from."
            )

    # The vector field

    def velocity(self, t: Tensor | float, x: Tensor, context: Tensor | None = None, *, guidance=None) -> Tensor:
        """Computes the marginal velocity at time ``t`` and point ``x`` (model space: transforms are not applied).

        Args:
            t: the times, ``[]`` or ``[*batch]``. A time outside :attr:`interval` is moved to the nearest end.
            x: the points ``[*batch, *model]``.
            context: the conditions ``[*batch, *context_shape]``.
            guidance: the guidance of the velocity, such as ``guidance.ClassifierFree(2.0)``. Default: None.
        """
        x, context, batch = self._enter(x, context, "velocity", self.model_shape)
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(batch).reshape(-1).clamp(*self.interval)
        return unflatten(self.velocity_field(guidance)(t, x, context), batch)

    def score(self, t: Tensor | float, x: Tensor, context: Tensor | None = None, *, guidance=None) -> Tensor:
        r"""Computes the score :math:`\nabla \log p_t(x)` of the path's marginal at time ``t`` (model space).

        On an affine path it follows from the velocity, :math:`-(\mathbb E[x_0 | x_t = x] - \mu_0) / (\sigma_t s_0^2)`;
        on an interpolant it is the second output of the network. The arguments ``x``, ``context`` and ``guidance`` are
        those of :meth:`velocity`. Cost: one function evaluation.

        Raises:
            ValueError: without a path; on an affine path if the base is not normal or the flow was trained with a
                coupling that is not independent (the formula does not hold); on an interpolant that predicts the
                velocity alone, or with guidance; at times where the score is not well conditioned (on affine paths,
                where ``sigma_t`` is below the path's margin).
        """
        both = VelocityAndScore(self, "score", guidance)
        x, context, batch = self._enter(x, context, "score", self.model_shape)
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(batch).reshape(-1)
        low, high = self.path.score_interval
        low, high = max(low, self.interval[0]), min(high, self.interval[1])
        # The bounds are float64; a time that was rounded to a bound counts as inside.
        fine = ((t > low) | torch.isclose(t, t.new_tensor(low))) & ((t < high) | torch.isclose(t, t.new_tensor(high)))
        if not bool(fine.all()):
            raise ValueError(
                f"flow.score(t={float(t[~fine][0]):.6g}): the score is well conditioned in [{low:.3g}, {high:.6g}]; "
                f"choose a time inside."
            )
        return unflatten(both(t, x, context)[1], batch)

    def with_path(self, path: AffinePath) -> ContinuousFlow:
        """Returns the flow on another schedule, or with another prediction type, without training.

        The new flow shares the trained field. Its samples follow the same distribution, along other trajectories.

        Args:
            path: the new path, with the same ends as the present one.

        Raises:
            ValueError: for a flow without a path, for one trained to few steps, or if either path is not affine.
        """
        if self._takes_steps:
            raise ValueError(
                f"flow.with_path: a flow trained to few steps ({self.trained_by[-1].objective}) keeps its path; use "
                f"the flow that it was distilled from."
            )
        if self.path is None:
            raise ValueError("flow.with_path: this flow has no path to change; build it with path=... first.")
        for each in (self.path, path):
            if not each.affine:
                raise ValueError(
                    f"flow.with_path({path!r}): only affine paths share their marginals, and {each!r} is not affine; "
                    f"train a flow on it."
                )
        flow = registry.replace(self, field=Rescheduled(self.field, self.path, path), path=path)
        flow.training, flow.field.training = self.training, self.training
        return flow

    def velocity_field(self, guidance=None) -> Any:
        """Returns the marginal velocity as a field ``(t, x, context) -> v`` on one batch dimension.

        With ``guidance``, it is the guided velocity.
        """
        velocity = VelocityField(self)
        if guidance is None:
            return velocity
        if not callable(guidance):
            raise TypeError(f"flow: guidance={guidance!r} is not a guidance; pass guidance.ClassifierFree(2.0).")
        guided = guidance(velocity)
        return guided if self.manifold is None else Tangent(guided, self.manifold)

    def predict(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        """Evaluates the network on one batch dimension, in the dtype of its parameters; returns the dtype of ``x``.

        Shapes: ``t [B]``, ``x [B, *model]``, ``context [B, *context_shape]``, ``s`` as ``t``, for a field with two
        times; returns ``[B, *model]``, or ``[B, 2, *model]`` on a path with two outputs.
        """
        return Prediction(self)(t, x, context, s=s)

    @property
    def interval(self) -> tuple[float, float]:
        """The times at which the velocity is well conditioned; solvers stay inside."""
        low, high = (0.0, 1.0) if self.path is None else self.path.interval
        inner = as_field(self.field).interval
        return max(low, inner[0]), min(high, inner[1])

    @property
    def classes(self) -> int:
        return as_field(self.field).classes

    def _null_context(self, context: Tensor) -> Tensor:
        return as_field(self.field).null_context(context)

    # The method on which all others are built

    def transport(
        self,
        x: Tensor,
        t0: float,
        t1: float,
        context: Tensor | None = None,
        *,
        ladj: bool = False,
        quadratures: Sequence[str] = (),
        solver=None,
        divergence=None,
        guidance=None,
        generator=None,
        at: Sequence[float] | None = None,
    ) -> Solution:
        r"""Moves points along the flow from time ``t0`` to ``t1`` (model space: transforms are not applied).

        Shapes: ``x [*batch, *model]``; the solution has ``y [*batch, *model]``, ``quadratures[name] [*batch]``,
        ``status [*batch]`` and, with ``at``, ``trajectory [len(at), *batch, *model]``. Here ``model`` is
        ``model_shape``: the event shape, unless a transform changes it.

        Args:
            x: the points ``[*batch, *model]``.
            t0: the time of ``x``, in [0, 1].
            t1: the time of the result, in [0, 1]; ``t1 < t0`` is the direction to the base.
            context: the conditions ``[*batch, *context_shape]``.
            ladj: whether to integrate the divergence too: ``quadratures["ladj"]`` is ``log|det dx(t1)/dx(t0)|``.
            quadratures: more integrals over ``|dt|``: ``"kinetic"`` (squared speed), ``"jacobian"`` (squared Frobenius
                norm of the Jacobian; on a manifold, of that between tangent spaces in the ambient metric), and the
                signed ``"ladj_probes"`` (``[*batch, probes]``, for divergences with probes).
            solver: the solver. Default: None, the flow's own.
            divergence: the divergence. Default: None, the flow's own.
            guidance: the guidance of the velocity, such as ``guidance.ClassifierFree(2.0)``. Default: None.
            generator: the source of a divergence's probes and of an SDE's noise; or a list with one for each row.
            at: times at which to keep the state, in the order of the solve. Default: None.

        Failures are reported per sample in ``solution.status``; they raise no error here.

        Raises:
            TypeError: if an option is not an object of its kind.
            ValueError: for a time outside [0, 1]; for an integral that is unknown, or that the divergence or the solver
                cannot compute; for a solver that needs a path or a training which the flow does not have.
        """
        check_generator("flow.transport", generator, by_row=True)
        if ladj:
            self._check_density("transport(ladj=True)")
        x, context, batch = self._enter(x, context, "transport", self.model_shape)
        solution = transport(
            self, x, t0, t1, context, generator, ladj=ladj, quadratures=quadratures, solver=solver,
            divergence=divergence, guidance=guidance, at=at,
        )  # fmt: skip
        trajectory = solution.trajectory
        if trajectory is not None:
            trajectory = trajectory.reshape(len(trajectory), *batch, *self.model_shape)
        return Solution(
            y=unflatten(solution.y, batch),
            quadratures={name: unflatten(value, batch) for name, value in solution.quadratures.items()},
            stats=solution.stats,
            status=solution.status.reshape(batch),
            trajectory=trajectory,
        )

    # The methods from which the base class derives the protocol

    def _solved(self, solution: Solution, method: str) -> Solution:
        """Raises if some samples failed; costs one host read."""
        try:
            return solution.require_success()
        except RuntimeError as failure:
            raise FloatingPointError(
                f"flow.{method}: {failure} flow.transport returns the status and result of every sample."
            ) from None

    def _encode(self, x, context, generator, **options):
        x, inside = self._held(x)
        solution = self._solved(transport(self, x, 1.0, 0.0, context, generator, ladj=True, **options), "encode")
        ladj = solution.quadratures["ladj"]
        return solution.y, ladj if inside is None else torch.where(inside & self._kept(solution), ladj, -torch.inf)

    def _held(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Replaces points that are not on the manifold, where there is no density; also returns which are."""
        if self.manifold is None:
            return x, None
        inside = self.manifold.holds(x)
        return torch.where(expand_like(inside, x), x, self.manifold.origin(dtype=x.dtype, device=x.device)), inside

    def _kept(self, solution: Solution) -> Tensor:
        """Returns which points did not leave the manifold; elsewhere than at a boundary they do so by rounding only."""
        off = solution.stats.projection
        return off <= 1e-3 if self.manifold.injectivity == 0 else torch.ones_like(off, dtype=torch.bool)

    def _decode(self, z, context, generator, *, ladj=True, **options):
        solution = self._solved(transport(self, z, 0.0, 1.0, context, generator, ladj=ladj, **options), "decode")
        return solution.y, solution.quadratures.get("ladj")

    def log_prob_estimate(self, x, context=None, *, draws: int = 8, generator=None, **options):
        """Estimates the log-density with its standard error: ``(value [*batch], standard_error [*batch])``.

        With ``Hutchinson(probes=k)``, ``k >= 2``, ``HutchPlusPlus`` or ``XTrace``, one solve integrates all estimates,
        and the error is that of their mean. Other random likelihoods (dequantised data, one probe) are evaluated
        ``draws`` times. The solver's error is not included.

        Args:
            x: the data ``[*batch, *event]``.
            context: the conditions ``[*batch, *context_shape]``.
            draws: the number of evaluations where one solve has a single estimate.
            generator: the source of probes and noise; or a list with one for each row.
            **options: ``solver``, ``divergence`` and ``guidance`` for this call, as in :meth:`transport`.
        """
        self._check(options, "log_prob_estimate", generator)
        divergence = options.get("divergence") or self.divergence
        exact = self.transform.likelihood == "exact"
        if not (exact and divergence.count > 1):
            if exact and divergence.exact:
                value = self.log_prob(x, context, generator=generator, **options)
                return value, torch.zeros_like(value)
            return super().log_prob_estimate(x, context, draws=draws, generator=generator, **options)
        x, context, batch = self._enter(x, context, "log_prob_estimate")
        u, outer = self.preprocess(x, context, generator=generator)
        u, inside = self._held(u)
        solution = transport(self, u, 1.0, 0.0, context, generator, quadratures=("ladj_probes",), **options)
        self._solved(solution, "log_prob_estimate")
        each = solution.quadratures["ladj_probes"]
        spread = each.std(1) if len(each) else each.sum(1)
        value = self.base.log_prob(solution.y) + each.mean(1) + outer
        if inside is not None:
            inside = inside & self._kept(solution)
            value, spread = torch.where(inside, value, -torch.inf), torch.where(inside, spread, 0.0)
        return value.reshape(batch), (spread / math.sqrt(divergence.count)).reshape(batch)

    def trajectory(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        times: Sequence[float] | int = 21,
        generator=None,
        solver=None,
        guidance=None,
    ) -> Tensor:
        """Computes the states of points at ``times``: ``[T, *batch, *event]``, in data space. Builds no graph.

        Args:
            x: the points at the first time: base samples ``[*batch, *model]`` for increasing times, data
                ``[*batch, *event]`` for decreasing ones.
            context: the conditions ``[*batch, *context_shape]``.
            times: increasing or decreasing times, or the number of times, equally spaced from 0 to 1.
            generator: as in :meth:`transport`; so are ``solver`` and ``guidance``.

        Raises:
            ValueError: for fewer than two times, and as :meth:`transport`.
            FloatingPointError: if the solve fails for some samples.
        """
        check_generator("flow.trajectory", generator, by_row=True)
        if isinstance(times, int):
            if times < 2:
                raise ValueError(f"flow.trajectory(times={times}): a trajectory has at least two times; pass 21.")
            times = [i / (times - 1) for i in range(times)]
        times = [float(t) for t in times]
        backwards = times[0] > times[-1]
        x, context, batch = self._enter(x, context, "trajectory", self.event_shape if backwards else self.model_shape)
        if backwards:
            x = self.preprocess(x, context, generator=generator)[0]
        with torch.no_grad():
            solution = self._solved(
                transport(self, x, times[0], times[-1], context, generator, solver=solver, guidance=guidance, at=times),
                "trajectory",
            )
        lead = solution.trajectory.shape[:2]
        states = flatten(solution.trajectory, self.model_shape, lead)
        if context is not None:
            context = flatten(context, self.context_shape, lead)
        states, _ = self.postprocess(states, context, generator=generator)
        return states.reshape(len(times), *batch, *self.event_shape)
