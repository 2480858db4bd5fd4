"""Multistep methods on a fixed grid: one function evaluation (NFE) per step; earlier slopes are used again."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from cflow.registry import register
from cflow.solvers.grid.coefficients import LogSNR, Noise, Plain, Row, Step, adams_weights, multistep_rows
from cflow.solvers.grid.fixed import FixedGrid, Outputs
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution
from cflow.solvers.uploads import upload

__all__ = ["DEIS", "AdamsBashforth", "DPMSolverPP2M", "Multistep", "UniPC"]


@dataclass(frozen=True, repr=False)
class Multistep(FixedGrid):
    r"""Integrates on a fixed grid with one evaluation of ``f`` per step; a subclass computes the coefficients.

    .. math:: d_n = p_n x_n + r_n v_n, \qquad x_{n+1} = c_n x_n + e_n v_n + \sum_{j < n} w_{nj} d_j

    where ``d`` is the velocity v itself or, on an affine path, the expected data or base sample that follows from v.
    The coefficients are computed on the host in float64 before the first step. The grid is that of :class:`FixedGrid`.
    It may be uneven and run in both directions; a node is not used for extrapolation if it follows another by less than
    a quarter of the next step.

    Quadratures are integrated with Adams weights of the method's order, through their values at the nodes. This does
    not depend on how the method computes the state.

    Cost: ``steps`` evaluations of ``f``, about ``order + 2`` fused multiply-adds per step, ``order - 1`` kept slopes;
    nothing is read from the device. Gradients pass through the graph of all operations (only ``gradient=Backprop()``).
    """

    refused_gradients = dict.fromkeys(
        ("steps", "equation"),
        "it also depends on earlier slopes, which other modes do not keep; pass gradient=Backprop(), or use a "
        "Runge-Kutta method such as Heun.",
    )
    _plans: ClassVar[dict[tuple[float, ...], list[Step]] | None] = None  # kept for a tracer, by nodes

    @abstractmethod
    def plan(self, nodes: list[float], path) -> list[Step]:
        """Computes the coefficients of every step between the times ``nodes``; some methods read ``path``."""

    def for_tracing(self) -> Self:
        """Returns the same solver with stored coefficients: a trace has no numbers to compute them from."""
        other = copy.copy(self)
        object.__setattr__(other, "_plans", {})
        return other

    def _planned(self, nodes: list[float], path) -> list[Step]:
        """Returns the coefficients of every step, from the stored ones if they are kept."""
        if self._plans is None:
            return self.plan(nodes, path)
        if tuple(nodes) not in self._plans:
            self._plans[tuple(nodes)] = self.plan(nodes, path)
        return self._plans[tuple(nodes)]

    def _solve(self, problem: Problem) -> Solution:
        """Steps over the grid; gradients flow through every operation."""
        nodes = self.layout(problem)
        plan = self._planned(nodes, problem.path)
        times = upload(nodes[:-1], problem.dtype, problem.device)
        times = times.unsqueeze(1).expand(-1, problem.batch).unbind(0)
        masses = adams_weights(nodes, self._accuracy()) if problem.tolerances else []
        needed = _last_uses(plan)
        y, integrals, slopes, outputs = problem.y0, [], {}, Outputs(problem.at)
        for n, step in enumerate(plan):
            v, g = problem(times[n], y)
            shown = step.shown if nodes[n] in outputs.times else None
            outputs.keep(nodes[n], y if shown is None else _apply(shown, y, v, slopes))
            after = _apply(step.advance, y, v, slopes)
            if needed[n] > n:
                slopes[n] = _slope(step.slope, y, v)
            slopes = {j: slope for j, slope in slopes.items() if needed[j] > n}
            if masses:
                add = lambda total, value, mass=masses[n]: torch.add(total, value, alpha=mass)
                integrals = [add(*pair) for pair in zip(integrals, g)] if n else [each * masses[0] for each in g]
            y = after
        outputs.keep(nodes[-1], y)
        return problem.finished(y, integrals, len(nodes) - 1, outputs.kept)

    def _accuracy(self) -> int:
        """Returns the order of the quadratures."""
        return getattr(self, "order", 2)

    def _check_order(self, orders: tuple[int, ...]) -> None:
        name, order = type(self).__name__, self.order
        if isinstance(order, bool) or order not in orders:
            raise ValueError(
                f"{name}(order={order!r}): this method has the orders {', '.join(map(str, orders))}; choose one of "
                f"them."
            )


class _OnAffinePath(Multistep):
    """A multistep method that uses the schedule of an affine path."""

    def _check(self, problem):
        name, path = type(self).__name__, problem.path
        if path is None:
            raise ValueError(
                f"{name}.solve(path=None): it needs an affine path; build the flow with path=paths.Linear() (or the "
                f"path of its training), or use AdamsBashforth."
            )
        if not all(callable(getattr(path, each, None)) for each in ("alpha", "sigma", "d_alpha", "d_sigma")):
            raise ValueError(
                f"{name}.solve(path={path!r}): this path is not affine; use AdamsBashforth, Heun or Dopri5."
            )
        outside = [t for t in (problem.t0, problem.t1) if not 0 <= t <= 1]
        if outside:
            raise ValueError(
                f"{name}.solve(t0={problem.t0}, t1={problem.t1}): the path is not defined at {outside[0]}; keep both "
                f"times in [0, 1]."
            )


def _apply(row: Row, y: list[Tensor], v: list[Tensor], slopes: dict[int, list[Tensor]]) -> list[Tensor]:
    """Computes a row for every part of the state."""
    terms = [(v, row.velocity), *((slopes[j], weight) for j, weight in row.history)]
    terms = sorted((term for term in terms if term[1]), key=lambda term: -abs(term[1]))
    moved = y if row.state == 1 else [part * row.state for part in y]
    if not terms:
        return moved
    # As in a Runge-Kutta step, the slopes are summed first, so that only one sum rounds at the size of the state.
    (lead, weight), *rest = terms
    result = []
    for index, part in enumerate(moved):
        total = lead[index]
        for other, factor in rest:
            total = torch.add(total, other[index], alpha=factor / weight)
        result.append(torch.add(part, total, alpha=weight))
    return result


def _slope(weights: tuple[float, float], y: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    state, velocity = weights
    if (state, velocity) == (0.0, 1.0):
        return v
    return [torch.add(part * state, rate, alpha=velocity) for part, rate in zip(y, v)]


def _last_uses(plan: list[Step]) -> list[int]:
    """Finds the last step at which the slope of each node is used."""
    last = [-1] * len(plan)
    for n, step in enumerate(plan):
        for row in (step.advance, step.shown):
            for j, _ in row.history if row else ():
                last[j] = n
    return last


@register("solvers.AdamsBashforth")
@dataclass(frozen=True, repr=False)
class AdamsBashforth(Multistep):
    r"""Integrates with an Adams-Bashforth method of order 2 to 4 on any grid, one evaluation of ``f`` per step.

    .. math:: x_{n+1} = x_n + \int_{t_n}^{t_{n+1}} P(t) \, dt, \qquad P(t_{n-j}) = v_{n-j}, \quad j < \text{order}

    With equal steps of order 2, :math:`x_{n+1} = x_n + h (\tfrac32 v_n - \tfrac12 v_{n-1})`. It starts with lower
    orders. Orders 3 and 4 correct the first steps as soon as later velocities are known, which keeps the order without
    more evaluations. It needs no path.

    Args:
        order: 2, 3 or 4.

    Raises:
        ValueError: for another order, and as :class:`FixedGrid` does.

    Source: Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, chapter III.

    Example:
        >>> solution = AdamsBashforth(100, order=4).solve(lambda t, y: -y, torch.ones(1, 1).double(), 0.0, 1.0)
        >>> solution.y.item(), solution.stats.nfe
        (0.367879..., 100)
    """

    _: KW_ONLY
    order: int = 2

    def __post_init__(self):
        super().__post_init__()
        self._check_order((2, 3, 4))

    def plan(self, nodes, path):
        return multistep_rows(Plain(nodes), self.order)


@register("solvers.DPMSolverPP2M")
@dataclass(frozen=True, repr=False)
class DPMSolverPP2M(_OnAffinePath):
    r"""Samples with DPM-Solver++(2M): order 2, one evaluation of ``f`` per step.

    .. math:: x_{n+1} = \frac{\sigma_{n+1}}{\sigma_n} x_n + \alpha_{n+1} (1 - e^{-h_n})
              \Big(d_n + \frac{h_n}{2 h_{n-1}} (d_n - d_{n-1})\Big), \qquad h_n = \lambda_{n+1} - \lambda_n

    where d is the expected data, which follows from the velocity on any affine path (for every kind of prediction), and
    :math:`\lambda = \log(\alpha/\sigma)`. It is exact if d is constant. A step to or from an end where :math:`\lambda`
    is infinite has order 1 (it is the DDIM step, which has a limit there), and so has the step after such a start. On
    grids with equal steps in t up to these ends, the error decreases as :math:`h^2 \log(1/h)`.

    Raises:
        ValueError: without an affine path, for times outside [0, 1], and as :class:`FixedGrid` does.

    Source: Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022,
    arXiv:2211.01095, algorithm 2.

    Example:
        >>> from cflow import paths
        >>> point = lambda t, x: (3.0 - x) / (1 - t)[:, None]   # all data are 3, on the linear path
        >>> DPMSolverPP2M(4).solve(point, torch.randn(2, 1), 0.0, 1.0, path=paths.Linear()).y.flatten()
        tensor([3., 3.])
    """

    def plan(self, nodes, path):
        return multistep_rows(LogSNR(nodes, path), 2)


@register("solvers.UniPC")
@dataclass(frozen=True, repr=False)
class UniPC(_OnAffinePath):
    r"""Samples with the predictor-corrector UniPC in the expected data d: one evaluation of ``f`` per step.

    The predictor extrapolates d from ``order`` nodes with a polynomial in :math:`\lambda = \log(\alpha/\sigma)`, and
    integrates it exactly together with the rest of the equation. With order 2 and ``variant="bh2"`` it is
    DPM-Solver++(2M). The corrector computes the step again with the d found at its end, as a part of the next step. So
    it needs no more evaluations, and the order of the error is one higher, ``order + 1``. States stored at output times
    are corrected; the last state is not. Steps to and from an end where :math:`\lambda` is infinite have order 1, as in
    :class:`DPMSolverPP2M`, which limits the order there to 2.

    Args:
        order: number of nodes for the extrapolation, 2 or 3.
        variant: weight of a single difference of d: half of :math:`e^h - 1` (``"bh2"``) or of h (``"bh1"``).

    Raises:
        ValueError: for another order or variant, without an affine path, for times outside [0, 1], and as
            :class:`FixedGrid` does.

    Source: Zhao et al., UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models, 2023,
    arXiv:2302.04867.

    Example:
        >>> from cflow import paths
        >>> point = lambda t, x: (3.0 - x) / (1 - t)[:, None]
        >>> solution = UniPC(5).solve(point, torch.randn(2, 1), 0.0, 1.0, path=paths.Linear())
        >>> solution.y.flatten(), solution.stats.nfe
        (tensor([3., 3.]), 5)
    """

    _: KW_ONLY
    order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"

    def __post_init__(self):
        super().__post_init__()
        self._check_order((2, 3))
        if self.variant not in ("bh1", "bh2"):
            raise ValueError(f"UniPC(variant={self.variant!r}): unknown variant; pass 'bh1' or 'bh2'.")

    def plan(self, nodes, path):
        return multistep_rows(LogSNR(nodes, path, self.variant), self.order, corrected=True)

    def _accuracy(self):
        return self.order + 1


@register("solvers.DEIS")
@dataclass(frozen=True, repr=False)
class DEIS(_OnAffinePath):
    r"""Samples with tAB-DEIS, an exponential Adams-Bashforth method in the expected base sample d.

    It takes one evaluation of ``f`` per step.

    .. math:: x_{n+1} = \frac{\alpha_{n+1}}{\alpha_n} x_n
              + \alpha_{n+1} \int_{t_n}^{t_{n+1}} P(t) \, d\Big(\frac{\sigma}{\alpha}\Big),
              \qquad P(t_{n-j}) = d_{n-j}, \quad j < \text{order}

    The integrals are computed by parts with 32 Gauss-Legendre points. It is exact if d is constant. The step from an
    end where :math:`\alpha = 0` has order 1 (it is the DDIM step); with equal steps from there the error decreases as
    :math:`h^2 \log(1/h)`.

    Args:
        order: number of nodes for the extrapolation, 2 or 3 (tAB1 and tAB2 in the paper).

    Raises:
        ValueError: for another order, without an affine path, for times outside [0, 1], and as :class:`FixedGrid` does.

    Source: Zhang and Chen, Fast Sampling of Diffusion Models with Exponential Integrator, 2022, arXiv:2204.13902.

    Example:
        >>> from cflow import paths
        >>> point = lambda t, x: (3.0 - x) / (1 - t)[:, None]
        >>> y = DEIS(8, order=3).solve(point, torch.randn(2, 1), 0.0, 1.0, path=paths.Linear()).y
        >>> torch.allclose(y, torch.tensor(3.0))
        True
    """

    _: KW_ONLY
    order: int = 2

    def __post_init__(self):
        super().__post_init__()
        self._check_order((2, 3))

    def plan(self, nodes, path):
        return multistep_rows(Noise(nodes, path), self.order)
