"""The integrand of a solve: the velocity of a flow with the requested integrals, or with its score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cflow.continuous.velocity import VelocityAndScore
from cflow.continuous.whole_step import WholeStep
from cflow.divergence import Divergence
from cflow.shapes import sum_rows
from cflow.solvers import Solver, Tolerance

__all__ = ["QUADRATURES", "Dynamics"]

QUADRATURES = ("kinetic", "jacobian", "ladj_probes")


@dataclass(frozen=True)
class Dynamics:
    """The functions that a solver integrates for a flow.

    Attributes:
        f: the velocity ``f(t, x, *args)`` with the requested integrals; returns ``v``, or ``(v, {name: [B]})``.
        integrand: the function for the solver: ``f``, or for an SDE ``(velocity, score)``.
        args: the other arguments of ``f``: the context, and the probe of the divergence.
        names: the names of the integrals.
        low: the first time at which the integrand is well conditioned.
        high: the last such time.
    """

    f: Callable
    integrand: Callable
    args: tuple[Any, ...]
    names: tuple[str, ...]
    low: float
    high: float

    @classmethod
    def of(
        cls,
        flow,
        solver: Solver,
        divergence: Divergence,
        x: Tensor,
        context: Any,
        names: tuple[str, ...],
        guidance: Any = None,
        generator: torch.Generator | None = None,
        backward: bool = False,
    ) -> Dynamics:
        """Builds the integrand for ``solver``, with the integrals ``names``, and draws the probe that they need.

        ``backward`` is whether the solve goes from the data to the base.
        """
        if flow.manifold is not None:
            divergence = divergence.on(flow.manifold)
        if solver.takes_whole_steps and names:
            f, probe = _whole_step(flow, solver, names, guidance), (None,)
        else:
            f, probe = _integrand(flow, x, generator, names, divergence, guidance)
        integrand, (low, high) = f, flow.interval
        if solver.needs_score:
            if names:
                raise ValueError(
                    f"flow.transport(solver={solver!r}): {', '.join(names)} needs the ODE, and this solver simulates "
                    f"an SDE; use solvers.Dopri5()."
                )
            integrand = VelocityAndScore(flow, "transport", guidance)
            inner = flow.path.score_interval
            low, high = max(low, inner[0]), min(high, inner[1])
        taught = {entry.teaches for entry in flow.trained_by}
        if solver.takes_whole_steps and taught and "average velocity" not in taught:
            raise ValueError(
                f"flow.transport(solver={solver!r}): it needs average velocities, and the flow was last trained by "
                f"{flow.trained_by[-1].objective}; train by objectives.MeanFlow, or use solvers.Heun."
            )
        if solver.takes_whole_steps and backward and taught and not any(each.both_ways for each in flow.trained_by):
            raise ValueError(
                f"flow.transport(solver={solver!r}): the flow learned steps towards the data only, not back; train "
                f"with both_ways=True, or use an ODE solver such as Dopri5()."
            )
        times = solver.fitted_times
        if times is not None:
            # A fitted solver covers [0, 1] and evaluates inside the interval: no stretch is left to cross.
            if not low <= min(times) <= max(times) <= high:
                raise ValueError(
                    f"flow.transport(solver={type(solver).__name__}): its times {times} leave the interval "
                    f"[{low:.6g}, {high:.6g}] of {flow.path!r}; fit it to this flow by training.fit_bespoke."
                )
            low, high = 0.0, 1.0
        return cls(f, integrand, (context, *probe), names, low, high)

    @property
    def density(self) -> bool:
        """Whether a log-determinant is among the integrals."""
        return any(name.startswith("ladj") for name in self.names)

    def tolerances(self, solver: Solver) -> dict[str, Tolerance | None] | None:
        """Returns the tolerance of each integral: the solver's own for a log-determinant, else None."""
        held = solver.step_tolerance
        return {name: held if name.startswith("ladj") else None for name in self.names} or None


def _whole_step(flow, solver: Solver, names: tuple[str, ...], guidance) -> WholeStep:
    """Builds the average velocity over a step with the log-determinant of the step."""
    if names != ("ladj",):
        raise ValueError(
            f"flow.transport(solver={solver!r}): a whole step has a log-determinant and no other integrals, and "
            f"{', '.join(names)} was asked for; use solvers.Dopri5()."
        )
    return WholeStep(flow.velocity_field(guidance), flow.manifold)


def _integrand(flow, x: Tensor, generator, names: tuple[str, ...], divergence: Divergence, guidance):
    """Builds ``f(t, x, context, *probe)`` with the requested integrals, and draws the probe."""
    velocity = flow.velocity_field(guidance)
    if not names:
        return velocity, ()
    asked = tuple(name for name in names if name != "ladj")
    per_probe = "ladj_probes" in names
    if per_probe and (divergence.count == 0 or "jacobian" in names):
        raise ValueError(
            f"flow.transport(quadratures={asked}): 'ladj_probes' needs a divergence with probes, not {divergence!r}, "
            f"and no 'jacobian'; pass divergence=Hutchinson(probes=8)."
        )
    if "jacobian" in names and not divergence.frobenius:
        raise ValueError(
            f"flow.transport(quadratures={asked}): 'jacobian' is a Frobenius norm, which {divergence!r} does not "
            f"compute; pass divergence=Exact() or Hutchinson()."
        )
    needs_divergence = "ladj" in names or per_probe or "jacobian" in names
    probe = divergence.begin(x, generator) if needs_divergence else None
    return _Integrand(velocity, divergence if needs_divergence else None, names, flow.manifold), (probe,)


@dataclass(frozen=True)
class _Integrand:
    """The velocity with the requested integrals; equal to another one that computes the same."""

    velocity: Callable
    divergence: Divergence | None
    names: tuple[str, ...]
    manifold: Any

    def __call__(self, t: Tensor, x: Tensor, context: Tensor | None, probe: Tensor | None):
        values = {}
        if "ladj_probes" in self.names:
            v, values["ladj_probes"] = self.divergence.estimates(self.velocity, t, x, probe, context)
            values["ladj"] = values["ladj_probes"].mean(1)
        elif self.divergence is not None:
            v, values["ladj"], values["jacobian"] = self.divergence(self.velocity, t, x, probe, context)
        else:
            v = self.velocity(t, x, context)
        if "kinetic" in self.names:
            manifold = self.manifold
            values["kinetic"] = sum_rows(v.square()) if manifold is None else manifold.inner(manifold.project(x), v, v)
        return v, {name: values[name] for name in self.names}

    def alone(self, t: Tensor, x: Tensor, context: Tensor | None, probe: Tensor | None) -> Tensor:
        """Computes the velocity without the integrals."""
        return self.velocity(t, x, context)
