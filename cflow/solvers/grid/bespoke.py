"""A solver with times and coefficients that were fitted to one flow."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from cflow.registry import configuration, register
from cflow.solvers.grid.fixed import Outputs
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution
from cflow.solvers.solver import Solver
from cflow.solvers.uploads import upload
from cflow.storage import written

__all__ = ["Bespoke"]


@register("solvers.Bespoke")
@dataclass(frozen=True)
class Bespoke(Solver):
    r"""Samples with a non-stationary solver: every step has its own weights for the start and for all velocities.

    .. math:: x_{n+1} = a_n x_0 + \sum_{j \le n} b_{nj} v_j, \qquad v_j = f(t_j, x_j)

    Every explicit Runge-Kutta and multistep method with as many evaluations has this form (:meth:`of` converts it). So
    coefficients that ``training.fit_bespoke`` fits to a flow are never worse for it than the best of these methods.
    Intermediate states have no meaning. The solver goes forward over the interval of its fit, and only there. Its
    evaluations may stay inside a shorter interval, where the velocity of a flow is well conditioned; the last weights
    still lead to the end. Use it for one flow, or save it with a flow as its ``solver``.

    Cost: ``len(times)`` evaluations of ``f``, one fused multiply-add per weight; start and velocities are kept; nothing
    is read from the device.

    Args:
        times: the times of the evaluations, in the interval.
        starts: the weights a of the start.
        weights: the weights b; row n has n + 1 entries.
        interval: start and end of the integration.
        error: root mean square error on samples that were not used for the fit; None if it was not measured.
        error_before: the same for the generic solver from which the fit started.

    Raises:
        ValueError: if the sizes do not match or a number is not finite; when solving, for another interval (also a
            backward one), for output times inside it and for quadratures.

    Source: Shaul et al., Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models, 2024,
    arXiv:2403.01329, equation 9.

    Example:
        >>> from cflow.solvers import Heun
        >>> heun = Bespoke.of(Heun(1))
        >>> heun.times, heun.weights
        ((0.0, 1.0), ((1.0,), (0.5, 0.5)))
    """

    times: tuple[float, ...]
    starts: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    interval: tuple[float, float] = (0.0, 1.0)
    error: float | None = field(default=None, compare=False)
    error_before: float | None = field(default=None, compare=False)

    def __post_init__(self):
        tuples = lambda values: tuple(float(value) for value in values)
        times, starts, interval = tuples(self.times), tuples(self.starts), tuples(self.interval)
        weights = tuple(map(tuples, self.weights))
        for name, value in (("times", times), ("starts", starts), ("weights", weights), ("interval", interval)):
            object.__setattr__(self, name, value)
        sizes = [len(row) for row in weights]
        if not times or len(starts) != len(times) or sizes != list(range(1, len(times) + 1)):
            raise ValueError(
                f"Bespoke: {len(times)} times, {len(starts)} starts and rows of {sizes} weights; pass n times, n "
                f"starts and rows of 1 to n weights."
            )
        if len(interval) != 2 or not interval[0] < interval[1]:
            raise ValueError(f"Bespoke(interval={interval}): expected two increasing times; pass (0.0, 1.0).")
        numbers = [*times, *starts, *(value for row in weights for value in row)]
        if not all(map(math.isfinite, numbers)) or not interval[0] <= min(times) <= max(times) <= interval[1]:
            raise ValueError(
                f"Bespoke(times={times}): times lie in {interval} and weights are finite; fit it again, with a smaller "
                f"lr."
            )

    @classmethod
    def of(cls, solver: Solver, *, path=None, interval: Sequence[float] = (0.0, 1.0)) -> Bespoke:
        """Converts a ``solver`` with a fixed grid to this form.

        It solves over ``interval``, with the schedule ``path``, for velocities that are unit vectors, so that each
        state shows its weights.

        Raises:
            ValueError: for a solver without a fixed grid.
        """
        if solver.nodes(*interval) is None:
            raise ValueError(f"Bespoke.of({solver!r}): this solver has no fixed grid; pass one such as Heun(steps=4).")
        calls = solver.solve(lambda t, y: 0 * y, torch.ones(1, 1, dtype=torch.float64), *interval, path=path).stats.nfe
        unit = torch.eye(calls + 1, dtype=torch.float64)
        rows: list[list[float]] = []
        times: list[float] = []

        def show(t: Tensor, state: Tensor) -> Tensor:
            rows.append(state[0].tolist())
            times.append(float(t))
            return unit[len(rows), None]

        rows.append(solver.solve(show, unit[:1], *interval, path=path).y[0].tolist())
        rows = rows[1:]
        return cls(
            times=tuple(times),
            starts=tuple(row[0] for row in rows),
            weights=tuple(tuple(row[1 : n + 2]) for n, row in enumerate(rows)),
            interval=tuple(interval),
        )

    why_no_graph = None

    @property
    def fitted_times(self) -> tuple[float, ...]:
        """The times of the evaluations."""
        return self.times

    def _check(self, problem: Problem) -> None:
        if problem.tolerances:
            raise ValueError(
                f"Bespoke.solve(quadratures={sorted(problem.tolerances)}): the fitted weights are not valid for "
                f"integrals; use Dopri5 or Heun."
            )

    def _solve(self, problem: Problem) -> Solution:
        """Integrates once over the interval; gradients flow through every operation."""
        if (problem.t0, problem.t1) != self.interval:
            raise ValueError(
                f"Bespoke.solve(t0={problem.t0}, t1={problem.t1}): this solver was fitted from {self.interval[0]} to "
                f"{self.interval[1]} only; use another one, such as Heun or Dopri5."
            )
        between = [t for t in problem.at or () if t not in self.interval]
        if between:
            raise ValueError(
                f"Bespoke.solve(at={between}): intermediate states are not on the trajectory; omit them, or use Heun "
                f"or Dopri5."
            )
        times = upload(self.times, problem.dtype, problem.device)
        times = times.unsqueeze(1).expand(-1, problem.batch).unbind(0)
        outputs, slopes, y = Outputs(problem.at), [], problem.y0
        outputs.keep(problem.t0, y)
        for t, start, row in zip(times, self.starts, self.weights):
            slopes.append(problem(t, y)[0])
            y = problem.y0 if start == 1 else [part * start for part in problem.y0]
            for slope, weight in zip(slopes, row):
                if weight:
                    y = [torch.add(part, each, alpha=weight) for part, each in zip(y, slope)]
        outputs.keep(problem.t1, y)
        return problem.finished(y, steps=len(self.times), outputs=outputs.kept)

    def write(self, path: str | os.PathLike) -> Path:
        """Writes the solver to the JSON file ``path``, for :meth:`read` and ``cflow sample --solver``."""
        path = Path(path)
        with written(path) as part:
            part.write_text(json.dumps({"solver": "bespoke", **configuration(self)}, indent=1) + "\n")
        return path

    @classmethod
    def read(cls, path: str | os.PathLike) -> Bespoke:
        """Reads a solver from the file ``path``, as :meth:`write` writes it.

        Raises:
            ValueError: if the file is something else or damaged.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            if document.pop("solver") != "bespoke":
                raise ValueError("it is another solver")
            return cls(**document)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"Bespoke.read({str(path)!r}): the file is not a fitted solver ({error}); make one with `cflow "
                f"bespoke`."
            ) from error
