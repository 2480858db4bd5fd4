"""How a continuous flow carries points between two times: the solve, and what lies outside the path's interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .divergence import Divergence, Estimator
from .shapes import expand_like, rows
from .solvers import Bespoke, CudaGraph, FixedGrid, FlowMap, Solution, Status, StochasticGrid, Tolerance
from .velocity import VelocityAndScore

__all__ = ["QUADRATURES", "transport"]

QUADRATURES = ("kinetic", "jacobian", "ladj_probes")


def transport(
    flow, x, t0, t1, context, generator,
    *, ladj=False, quadratures=(), solver=None, divergence=None, guidance=None, at=None,
) -> Solution:  # fmt: skip
    """Carries ``x [B, *event]`` from ``t0`` to ``t1``; see :meth:`cflow.ContinuousFlow.transport`."""
    unknown = set(quadratures) - set(QUADRATURES)
    if unknown:
        raise ValueError(
            f"flow.transport(quadratures={tuple(quadratures)}): {sorted(unknown)[0]!r} is not known; choose from "
            f"{', '.join(QUADRATURES)}."
        )
    t0, t1, at = float(t0), float(t1), None if at is None else [float(t) for t in at]
    outside = [t for t in (t0, t1, *(at or ())) if not 0 <= t <= 1]
    if outside:
        raise ValueError(
            f"flow.transport: time {outside[0]} lies outside [0, 1], where 0 is the base and 1 the data; a flow is "
            f"not defined beyond its ends."
        )
    solver = _option("solver", flow.solver if solver is None else solver, "solve")
    divergence = _option("divergence", flow.divergence if divergence is None else divergence, "begin")
    f, probe, names = _integrand(flow, x, generator, ladj, quadratures, divergence, guidance)
    args = (context, *probe)
    low, high = flow.interval
    graph = solver if isinstance(solver, CudaGraph) else None
    if graph is not None:  # what follows is up to the solver inside
        solver = graph.solver
    integrand, stochastic = f, isinstance(solver, StochasticGrid)
    if stochastic:
        if names:
            raise ValueError(
                f"flow.transport(solver={solver!r}): {', '.join(names)} is defined along the ODE, and this solver "
                f"simulates an SDE with the same marginals; take a solver such as solvers.Dopri5() for it."
            )
        integrand = VelocityAndScore(flow, "transport", guidance)
        inner = flow.path.score_interval
        low, high = max(low, inner[0]), min(high, inner[1])
    if isinstance(solver, Bespoke):
        # Fitted from end to end, with calls inside: nothing is left to cross.
        if not low <= min(solver.times) <= max(solver.times) <= high:
            raise ValueError(
                f"flow.transport(solver=Bespoke with calls at {solver.times}): on {flow.path!r} the network's "
                f"prediction gives a velocity inside [{low:.6g}, {high:.6g}] alone; fit the solver to this flow by "
                f"training.fit_bespoke."
            )
        low, high = 0.0, 1.0
    density = any(name.startswith("ladj") for name in names)
    # A log-determinant that is returned is held to the solver's tolerance, as the state is.
    held = Tolerance(solver.rtol, solver.atol) if hasattr(solver, "rtol") else None
    wanted = {name: held if name.startswith("ladj") else None for name in names} or None

    inner0, inner1 = (min(max(t, low), high) for t in (t0, t1)) if t0 != t1 else (t0, t1)
    # Where a noisy path leaves a bit out, an ODE is well conditioned up to there: alignment would only cost its order.
    singular = (inner0, inner1) != (t0, t1) and not flow.path.noisy
    # The closed form asks for the velocity at one time, which a whole step of a field of two times is not made of.
    gridded = isinstance(solver, FixedGrid) and not isinstance(solver, FlowMap)
    if t0 != t1 and gridded and not density and (singular or stochastic):
        # Forward, and back to where a noisy path is as narrow as its base, noise of the last step would stay.
        bare = (1.0 if t1 > t0 else 0.0) if stochastic and (t1 > t0 or flow.path.noisy) else None
        solver, inner0, inner1 = _aligned(solver, t0, t1, inner0, inner1, at, bare)
    if graph is not None:
        solver = graph.around(solver)
    cross = lambda point, t, s, tau: _cross(flow, f, point, t, s, tau, args, names, density)
    start, totals, calls = x, {}, 0
    if inner0 != t0:
        x, totals, calls = cross(x, t0, inner0, inner0)
    first, last = min(inner0, inner1), max(inner0, inner1)
    inside = None if at is None else [t for t in at if first <= t <= last]
    solution = solver.solve(
        integrand, x, inner0, inner1, args=args, quadratures=wanted, path=flow.path, generator=generator, at=inside,
    )  # fmt: skip
    y, status = solution.y, solution.status
    for name, value in solution.quadratures.items():
        if name == "ladj_probes" and value.dim() == 1:  # nothing was integrated: no probe has been seen
            value = value.unsqueeze(1).expand(-1, divergence.count)
        # The solver integrates over dt; energies are over |dt|.
        totals[name] = totals.get(name, 0.0) + (value if name.startswith("ladj") or t1 >= t0 else -value)
    at_inner1 = y
    if inner1 != t1:
        crossed, rest, more = cross(y, inner1, t1, inner1)
        fine = status == Status.SUCCESS
        y = torch.where(expand_like(fine, y), crossed, y)
        totals = {name: totals[name] + rest[name] for name in totals}
        status = torch.where(fine & ~rows(y).isfinite().all(1), int(Status.NON_FINITE), status)
        calls += more
    trajectory = None
    if at is not None:
        kept, states = iter(solution.trajectory), {t0: start, t1: y}
        for t in at:
            if first <= t <= last:
                states.setdefault(t, next(kept))
            elif t not in states:  # in a stretch that is crossed
                begun = abs(t - t0) < abs(inner0 - t0)
                states[t], _, more = cross(start, t0, t, inner0) if begun else cross(at_inner1, inner1, t, inner1)
                if not begun:
                    states[t] = torch.where(expand_like(fine, y), states[t], at_inner1)
                calls += more
        trajectory = torch.stack([states[t] for t in at])
    solution.stats.nfe += calls
    solution.stats.evaluations += calls * x.shape[0]
    return Solution(y=y, quadratures=totals, stats=solution.stats, status=status, trajectory=trajectory)


def _option(name: str, value, method: str):
    if isinstance(value, type) or not callable(getattr(value, method, None)):
        raise TypeError(
            f"flow: {name}={value!r} is a {type(value).__name__}; options are objects, such as "
            f"solvers.Heun(steps=20), divergence.Hutchinson() or guidance.ClassifierFree(2.0)."
        )
    return value


def _aligned(
    solver: FixedGrid, t0: float, t1: float, inner0: float, inner1: float, at, bare: float | None
) -> tuple[FixedGrid, float, float]:
    """Gives the closed form whole steps of a grid at the ends that the interval leaves out: ``(solver, start, stop)``.

    A step that began or ended at the interval's edge would multiply the network's error by the step over the small
    weight there; the closed form divides by the weight a whole step away. The last step is also left to it where it
    ends within its own length of ``bare``, the time at which noise that was added on the way would show.
    """
    first, last = min(inner0, inner1), max(inner0, inner1)
    nodes = sorted({t for t in (*solver.nodes(t0, t1), *(at or ())) if first < t < last}, reverse=t1 < t0)
    if inner0 != t0 and nodes:
        inner0 = nodes.pop(0)
    before = nodes[-1] if nodes else inner0
    if inner1 != t1 or (bare is not None and abs(bare - t1) < abs(t1 - before)):
        inner1 = nodes.pop() if nodes else inner0
    laid = {"grid": tuple(sorted(nodes))} if nodes else {"steps": 1}
    grid = replace(solver, **{"steps": None, "nfe": None, "grid": None} | laid)
    return grid, inner0, inner1


def _integrand(flow, x, generator, ladj, quadratures, divergence, guidance):
    """Builds ``f(t, x, context, *probe)`` with the integrals asked for, and draws the probe."""
    velocity = flow.velocity_field(guidance)
    names = (("ladj",) if ladj else ()) + tuple(quadratures)
    if not names:
        return velocity, (), names
    per_probe = "ladj_probes" in names
    if per_probe and (not isinstance(divergence, Estimator) or "jacobian" in names):
        raise ValueError(
            f"flow.transport(quadratures={tuple(quadratures)}): 'ladj_probes' comes from a divergence with probes "
            f"and without 'jacobian'; pass divergence=Hutchinson(probes=8), not {divergence!r}, and ask for "
            "'jacobian' apart."
        )
    if "jacobian" in names and not divergence.frobenius:
        raise ValueError(
            f"flow.transport(quadratures={tuple(quadratures)}): 'jacobian' is the squared Frobenius norm of the "
            f"Jacobian, and {divergence!r} knows the trace alone; pass divergence=Exact(), or Hutchinson(), whose "
            f"products give both."
        )
    needs_divergence = ladj or per_probe or "jacobian" in names
    probe = divergence.begin(x, generator) if needs_divergence else None

    return _Integrand(velocity, divergence if needs_divergence else None, names), (probe,), names


@dataclass(frozen=True)
class _Integrand:
    """The velocity with the integrals asked for; equal to another one that computes the same."""

    velocity: Callable
    divergence: Divergence | None
    names: tuple[str, ...]

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
            values["kinetic"] = rows(v.square()).sum(1)
        return v, {name: values[name] for name in self.names}

    def alone(self, t: Tensor, x: Tensor, context: Tensor | None, probe: Tensor | None) -> Tensor:
        """Computes the velocity without the integrals."""
        return self.velocity(t, x, context)


def _cross(flow, f, x, t, s, tau, args, names, density):
    """Crosses the stretch between ``t`` and ``s``, of which ``tau`` is the one inside the interval.

    Without a log-determinant: the closed-form step with the network asked at ``tau``. Where ``x`` is not at ``tau``
    yet, the step is implicit and takes two fixed-point iterations.

    With one: a change of scale, whose inverse and log-determinant are exact whatever the network says. At the
    data's end it leaves the noise of the path's margin in (on affine paths the density is that of the data with noise
    of relative size ``margin``, and differs in second order; on interpolants the width is ``gamma(margin)``); at the
    base's end it neglects ``margin`` times the data's mean.
    """
    here, there, inner = (torch.tensor(each, dtype=x.dtype, device=x.device) for each in (t, s, tau))
    if density:
        size = flow.path.alpha if max(t, s) > flow.interval[1] else flow.path.norm
        factor = size(there) / size(here)
        change = math.prod(flow.model_shape) * factor.log()
        ladj = {name: change if name.startswith("ladj") else 0.0 for name in names}
        return x * factor, ladj, 0
    point, calls = x, 1 if tau == t else 2
    for _ in range(calls):
        answer = f(inner.expand(x.shape[0]), point, *args)
        v, values = answer if names else (answer, {})
        point = x + flow.path.cross(v, point, inner, here, there)
    return point, {name: values[name] * abs(s - t) for name in names}, calls
