"""Multistep methods on a fixed grid: one call of the field per step, the slopes of earlier steps used again."""

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
    r"""Walks a fixed grid with one call of ``f`` per step; a subclass gives the coefficients.

    .. math:: d_n = p_n x_n + r_n v_n, \qquad x_{n+1} = c_n x_n + e_n v_n + \sum_{j<n} w_{nj} d_j

    where ``d`` is what the velocity v says about the expected data or base sample, on an affine path. The coefficients
    are computed on the host in float64 before the first step. The grid is laid as in :class:`FixedGrid`, may be uneven
    and run either way; a node that follows another by less than a quarter of the next step is not extrapolated from.

    A quadrature is integrated by Adams' weights of the method's order through its values at the nodes, whatever the
    method does with the state.

    Cost: ``steps`` calls of ``f``, about ``order + 2`` fused multiply-adds per step, ``order - 1`` kept slopes; nothing
    is read from the device. Gradients pass through the graph of all operations (``gradient=Backprop()`` alone).
    """

    refused_gradients = dict.fromkeys(
        ("steps", "equation"),
        "other modes take a step again from the state that it began with, and here it depends on the slopes of earlier "
        "steps too; pass gradient=Backprop(), or take a Runge-Kutta method such as Heun.",
    )
    _plans: ClassVar[dict[tuple[float, ...], list[Step]] | None] = None  # those kept for a tracer, by nodes

    @abstractmethod
    def plan(self, nodes: list[float], path) -> list[Step]:
        """Computes the coefficients of every step."""

    def for_tracing(self) -> Self:
        """Gives the same solver with a memory of its coefficients: a trace has no numbers to compute them from."""
        other = copy.copy(self)
        object.__setattr__(other, "_plans", {})
        return other

    def _planned(self, nodes: list[float], path) -> list[Step]:
        """Gives the coefficients of every step, from the memory where there is one."""
        if self._plans is None:
            return self.plan(nodes, path)
        if tuple(nodes) not in self._plans:
            self._plans[tuple(nodes)] = self.plan(nodes, path)
        return self._plans[tuple(nodes)]

    def _solve(self, problem: Problem) -> Solution:
        """Walks the grid; gradients flow through every operation."""
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
        """Gives the order of the quadratures."""
        return getattr(self, "order", 2)

    def _check_order(self, orders: tuple[int, ...]) -> None:
        name, order = type(self).__name__, self.order
        if isinstance(order, bool) or order not in orders:
            raise ValueError(
                f"{name}(order={order!r}): this method has coefficients of the orders {', '.join(map(str, orders))}; "
                f"choose one of them (2 is a good start)."
            )


class _OnAffinePath(Multistep):
    """A multistep method that reads the schedule of an affine path."""

    def _check(self, problem):
        name, path = type(self).__name__, problem.path
        if path is None:
            raise ValueError(
                f"{name}.solve(path=None): its coefficients come from the weights alpha and sigma of an affine path, "
                f"and none was given; build the flow with path=paths.Linear() (or the path that it was trained on), "
                f"or take AdamsBashforth, which needs none."
            )
        if not all(callable(getattr(path, each, None)) for each in ("alpha", "sigma", "d_alpha", "d_sigma")):
            raise ValueError(
                f"{name}.solve(path={path!r}): a point on this path is not a weighted sum of a base and a data sample "
                f"alone, so a velocity does not give these; take AdamsBashforth, Heun or Dopri5."
            )
        outside = [t for t in (problem.t0, problem.t1) if not 0 <= t <= 1]
        if outside:
            raise ValueError(
                f"{name}.solve(t0={problem.t0}, t1={problem.t1}): the path has no weights at {outside[0]}; keep both "
                f"times in [0, 1]."
            )


def _apply(row: Row, y: list[Tensor], v: list[Tensor], slopes: dict[int, list[Tensor]]) -> list[Tensor]:
    """Computes a row for every part of the state."""
    terms = [(v, row.velocity), *((slopes[j], weight) for j, weight in row.history)]
    terms = sorted((term for term in terms if term[1]), key=lambda term: -abs(term[1]))
    moved = y if row.state == 1 else [part * row.state for part in y]
    if not terms:
        return moved
    # As in a Runge-Kutta step, the bracket of slopes is summed first: one rounding at the size of the state.
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
    r"""Integrates with an Adams-Bashforth method of order 2 to 4 on any grid, one call of ``f`` per step.

    .. math:: x_{n+1} = x_n + \int_{t_n}^{t_{n+1}} P(t) \, dt, \qquad P(t_{n-j}) = v_{n-j}, \quad j < \text{order}

    With equal steps of order 2, :math:`x_{n+1} = x_n + h (\tfrac32 v_n - \tfrac12 v_{n-1})`. It begins with lower
    orders; orders 3 and 4 correct the first steps once later velocities are known, so that no call is added and the
    order is kept. It needs no path.

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
    r"""Samples with DPM-Solver++(2M): order 2, one call of ``f`` per step.

    .. math:: x_{n+1} = \frac{\sigma_{n+1}}{\sigma_n} x_n + \alpha_{n+1} (1 - e^{-h_n})
              \Big(d_n + \frac{h_n}{2 h_{n-1}} (d_n - d_{n-1})\Big), \qquad h_n = \lambda_{n+1} - \lambda_n

    with the expected data d, which the velocity gives on any affine path whatever the network predicts, and
    :math:`\lambda = \log(\alpha/\sigma)`. It is exact where d is constant. A step to or from an end where
    :math:`\lambda` is infinite is of order 1 (DDIM's, which has a limit there), as is the step after such a start; on
    grids with equal steps in t up to these ends the error falls as :math:`h^2 \log(1/h)`.

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
    r"""Samples with the predictor-corrector UniPC in the expected data d: one call of ``f`` per step.

    The predictor extrapolates d from ``order`` nodes by a polynomial of :math:`\lambda = \log(\alpha/\sigma)` and
    integrates it exactly against the rest of the equation; with order 2 and ``variant="bh2"`` it is DPM-Solver++(2M).
    The corrector takes the step again with the d found at its end, and rides on the next step. So it costs no call, and
    the error falls with one order more: ``order + 1``. States kept at output times are corrected, the last one is not.
    Steps to and from an end where :math:`\lambda` is infinite are of order 1, as in :class:`DPMSolverPP2M`, which
    bounds the order there to 2.

    Args:
        order: 2 or 3.
        variant: by what a single difference of d is weighted: half of :math:`e^h - 1` (``"bh2"``) or of h (``"bh1"``).

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
            raise ValueError(
                f"UniPC(variant={self.variant!r}): there are two variants, 'bh1' and 'bh2'; take the latter."
            )

    def plan(self, nodes, path):
        return multistep_rows(LogSNR(nodes, path, self.variant), self.order, corrected=True)

    def _accuracy(self):
        return self.order + 1


@register("solvers.DEIS")
@dataclass(frozen=True, repr=False)
class DEIS(_OnAffinePath):
    r"""Samples with tAB-DEIS, an exponential Adams-Bashforth method in the expected base sample d: one call per step.

    .. math:: x_{n+1} = \frac{\alpha_{n+1}}{\alpha_n} x_n
              + \alpha_{n+1} \int_{t_n}^{t_{n+1}} P(t) \, d\Big(\frac{\sigma}{\alpha}\Big), \qquad
              P(t_{n-j}) = d_{n-j}, \quad j < \text{order}

    The integrals are taken by parts with 32 Gauss-Legendre points. It is exact where d is constant. The step from an
    end where :math:`\alpha = 0` is of order 1 (DDIM's); on equal steps from there the error falls as
    :math:`h^2 \log(1/h)`.

    Args:
        order: number of nodes extrapolated from, 2 or 3 (the paper's tAB1 and tAB2).

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
