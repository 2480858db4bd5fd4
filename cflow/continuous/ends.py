"""The parts of [0, 1] outside a path's interval: a closed form crosses them, in whole steps of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.continuous.dynamics import Dynamics
from cflow.solvers import Solver

__all__ = ["Ends"]


class Ends:
    """Splits ``t0`` to ``t1`` into the solved part, ``start`` to ``stop``, and the two stretches before and after it.

    The solved part is first the part inside the interval of the dynamics; :meth:`align` moves its ends to nodes of a
    solver's grid.
    """

    def __init__(self, flow, dynamics: Dynamics, t0: float, t1: float):
        self.flow, self.dynamics, self.t0, self.t1 = flow, dynamics, t0, t1
        low, high = dynamics.low, dynamics.high
        self.start, self.stop = (min(max(t, low), high) for t in (t0, t1)) if t0 != t1 else (t0, t1)

    def holds(self, t: float) -> bool:
        """Returns whether a time is in the solved part."""
        return min(self.start, self.stop) <= t <= max(self.start, self.stop)

    def align(self, solver: Solver, at: Sequence[float] | None) -> Solver:
        """Moves the ends of a solve on a fixed grid to nodes of the grid; returns the solver on the nodes in between.

        A step that starts or ends at the interval's edge would multiply the network's error by the step over the small
        weight there. The closed form divides by the weight one step away. It also takes the last step if that step ends
        within its own length of the time at which noise added by the solver would remain.
        """
        t0, t1, path = self.t0, self.t1, self.flow.path
        # The closed form needs the velocity at one time; a field with two times returns average velocities.
        if t0 == t1 or solver.takes_whole_steps or self.dynamics.density:
            return solver
        # On a noisy path an ODE is well conditioned up to the edge: alignment would only reduce its order.
        if not solver.needs_score and ((self.start, self.stop) == (t0, t1) or path.adds_noise):
            return solver
        nodes = solver.nodes(t0, t1)
        if nodes is None:
            return solver
        bare = None
        if solver.needs_score and (t1 > t0 or path.adds_noise):
            # Noise of the last step would remain at the data, and on noisy paths also at the base.
            bare = 1.0 if t1 > t0 else 0.0
        first, last = min(self.start, self.stop), max(self.start, self.stop)
        nodes = sorted({t for t in (*nodes, *(at or ())) if first < t < last}, reverse=t1 < t0)
        if self.start != t0 and nodes:
            self.start = nodes.pop(0)
        before = nodes[-1] if nodes else self.start
        if self.stop != t1 or (bare is not None and abs(bare - t1) < abs(t1 - before)):
            self.stop = nodes.pop() if nodes else self.start
        return solver.on([self.start, *nodes, self.stop])

    def enter(self, x: Tensor) -> tuple[Tensor, dict, int]:
        """Moves ``x`` to the start of the solve; returns ``(x, integrals, calls)``."""
        if self.start == self.t0:
            return x, {}, 0
        return self.cross(x, self.t0, self.start, self.start)

    def within_first(self, x: Tensor, t: float) -> tuple[Tensor, int]:
        """Moves ``x`` from ``t0`` to a time before the start of the solve; returns ``(x, calls)``."""
        point, _, calls = self.cross(x, self.t0, t, self.start)
        return point, calls

    def within_last(self, y: Tensor, t: float) -> tuple[Tensor, dict, int]:
        """Moves ``y`` from the end of the solve to a time beyond it; returns ``(x, integrals, calls)``."""
        return self.cross(y, self.stop, t, self.stop)

    def cross(self, x: Tensor, t: float, s: float, tau: float) -> tuple[Tensor, dict, int]:
        """Moves ``x`` from ``t`` to ``s``; ``tau`` is the end inside the interval. Returns ``(x, integrals, calls)``.

        Without a log-determinant this is the closed-form step, with the network evaluated at ``tau``. If ``x`` is not
        yet at ``tau``, the step is implicit and takes two fixed-point iterations.

        With a log-determinant it is a change of scale, whose inverse and log-determinant are exact for every network.
        At the data's end, noise of the path's margin remains: on affine paths the density is that of data with noise of
        relative size ``margin``, a difference of second order; on interpolants the width is ``gamma(margin)``. At the
        base's end, ``margin`` times the data's mean is neglected.
        """
        flow, dynamics, names = self.flow, self.dynamics, self.dynamics.names
        here, there, inner = (torch.tensor(each, dtype=x.dtype, device=x.device) for each in (t, s, tau))
        if dynamics.density:
            factor = flow.path.scale_change(here, there, at_data=max(t, s) > flow.interval[1])
            change = math.prod(flow.model_shape) * factor.log()
            ladj = {name: change if name.startswith("ladj") else 0.0 for name in names}
            return x * factor, ladj, 0
        point, calls = x, 1 if tau == t else 2
        for _ in range(calls):
            result = dynamics.f(inner.expand(x.shape[0]), point, *dynamics.args)
            v, values = result if names else (result, {})
            point = flow.path.closed_form_step(v, point, inner, x, here, there)
        return point, {name: values[name] * abs(s - t) for name in names}, calls
