"""Entropic transport plans: the scaling loop of Sinkhorn and unbalanced couplings, and draws of pairs."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cflow.arguments import check_integer
from cflow.couplings.costs import SquaredDistances, check_alike, squared_distances
from cflow.couplings.coupling import Context, check_rows

__all__ = [
    "ConvergenceWarning",
    "Entropic",
    "Plan",
    "Scaling",
    "draw_columns",
    "draw_rows",
    "regularisation",
]

CHECK_EVERY = 10  # iterations between two checks of the error; each check waits for an accelerator
ABSORB_AT = 100.0  # a scaling factor with a larger logarithm is absorbed into the duals; float64 ends at e^±700
LOOSE, LOOSE_ITERATIONS = 0.1, 100  # tolerance and iterations of the stages before the last
ANNEAL_FROM = 0.02  # times the scale of the costs; a larger regularisation needs no annealing
RELAX_AFTER, RELAXATION = 20, 1.6  # updates are over-relaxed from this iteration of a stage on
RESOLUTION = 1e14  # float64 does not resolve costs whose ratio to the regularisation is larger


class ConvergenceWarning(RuntimeWarning):
    """Warns that a transport plan is used although its marginals have not reached the tolerance."""


@dataclass(frozen=True, eq=False)
class Plan:
    r"""A transport plan between two batches, with measures of its quality.

    Attributes:
        plan: the mass moved from row i of x0 to row j of x1 ``[B0, B1]``, float64.
        cost: the mean squared distance per unit of mass moved.
        mass: the total mass moved; 1 up to rounding if the marginals are fixed.
        error: the L1 error of the x0 marginal, relative to the mass (the x1 marginal is exact).
        iterations: rounds of updates made, over all stages of the annealing.
        converged: whether ``error`` is at most the tolerance.
        epsilon: the regularisation, in squared distance.
    """

    plan: Tensor
    cost: float
    mass: float
    error: float
    iterations: int
    converged: bool
    epsilon: float

    @property
    def entropy(self) -> float:
        r"""Computes :math:`-\sum_{ij} p_{ij} \log p_{ij}` of the normalised plan p, in nats.

        :math:`\log B` for a permutation, :math:`2 \log B` for independent pairs.
        """
        share = self.plan / self.plan.sum()
        return -float(torch.special.xlogy(share, share).sum())


@dataclass(frozen=True)
class Scaling:
    r"""Solves for an entropic plan by scaling rows and columns, in a stabilised kernel.

    .. math:: \min_P \langle P, C \rangle + \epsilon\, \mathrm{KL}(P | a b^\top) + \tau\, \mathrm{KL}(P 1 | a) +
              \tau\, \mathrm{KL}(P^\top 1 | b)

    with uniform a and b; ``tau=inf`` fixes the marginals. The duals f and g stay in the log domain. An update is two
    products with the kernel :math:`\exp((f_i + g_j - C_{ij}) / \epsilon)`. When the kernel is computed, its columns sum
    to their marginal, so no row or column of it vanishes. Large scaling factors are absorbed into the duals, and the
    kernel is computed again. A small regularisation is reached in stages; each starts from the duals of the previous
    one.
    """

    epsilon: float
    tau: float
    tolerance: float
    max_iterations: int
    annealing: float | None

    def solve(self, cost: Tensor, scale: float) -> Plan:
        """Computes the plan for ``cost [B0, B1]`` (float64); ``scale`` is its typical entry."""
        epsilon = self.epsilon
        if self.annealing is not None and ANNEAL_FROM * scale > epsilon:
            stages = math.log(epsilon / (ANNEAL_FROM * scale)) / math.log(self.annealing)
            stages = [epsilon * self.annealing**-k for k in range(math.ceil(stages), 0, -1)]
        else:
            stages = []
        f, done = cost.new_zeros(cost.shape[0], 1), 0
        g = cost.new_zeros(1, cost.shape[1])
        for stage in stages:
            limit = min(done + LOOSE_ITERATIONS, self.max_iterations)
            f, g, _, _, done = self._stage(cost, f, g, stage, max(LOOSE, self.tolerance), done, limit)
        f, g, plan, error, done = self._stage(cost, f, g, epsilon, self.tolerance, done, self.max_iterations)
        mass = plan.sum()
        moved = torch.dot(plan.flatten(), cost.flatten())
        mass, moved, error = torch.stack([mass, moved / mass, error / mass]).tolist()
        return Plan(plan, moved, mass, error, done, error <= self.tolerance, epsilon)

    def _stage(self, cost: Tensor, f: Tensor, g: Tensor, epsilon: float, tolerance: float, done: int, limit: int):
        """Updates the duals at one regularisation; returns ``(f, g, plan, error, iterations)``, exact in x1."""
        rows, columns = cost.shape
        damping = 1.0 if math.isinf(self.tau) else self.tau / (self.tau + epsilon)
        log_a, log_b = -math.log(rows), -math.log(columns)
        relaxed, trust, best, start, safe = 1.0, True, math.inf, done, None

        # One exact round in the log domain: products with the kernel are safe afterwards. Its last table is the kernel.
        kernel = torch.sub(g, cost).div_(epsilon)
        f = -damping * epsilon * (_log_sum_exp(kernel, 1) + log_b)
        torch.sub(f, cost, out=kernel).div_(epsilon)
        top = kernel.amax(0, keepdim=True)
        kernel.sub_(top).exp_()
        g = -damping * epsilon * (top + kernel.sum(0, keepdim=True).log() + log_a)
        kernel.mul_(torch.exp(top + g / epsilon + (log_a + log_b)))
        while True:
            u, v = cost.new_ones(rows), cost.new_ones(columns)
            old_f, old_g = f[:, 0], g[0]
            pull_f, pull_g = ((1 - damping) / epsilon * old for old in (old_f, old_g))
            while True:
                for k in range(CHECK_EVERY):
                    power = relaxed if k < CHECK_EVERY - 1 else 1.0
                    u = _update(u, kernel @ v, damping, pull_f, power)
                    v = _update(v, u @ kernel, damping, pull_g, power)
                done += CHECK_EVERY
                log_u, log_v = u.log(), v.log()
                marginal = torch.exp(-(old_f + epsilon * log_u) / self.tau) / rows
                reached = u * (kernel @ v)
                error = (reached - marginal).abs().sum()
                figures = torch.stack([error / reached.sum(), torch.maximum(log_u.abs().max(), log_v.abs().max())])
                relative, size = figures.tolist()
                if trust and not relative <= 2 * best:  # over-relaxation diverges: restart from the last check without
                    trust, relaxed = False, 1.0
                    if safe is not None:
                        u, v = safe
                        continue
                elif trust and done - start >= RELAX_AFTER:
                    relaxed = RELAXATION
                best, safe = min(best, relative), (u, v)
                finished = relative <= tolerance or done >= limit or math.isnan(relative)
                if finished or size > ABSORB_AT:
                    break
            f, g = f + epsilon * log_u[:, None], g + epsilon * log_v
            if finished:
                return f, g, kernel.mul_(u[:, None]).mul_(v), error, done
            safe = None
            torch.sub(f + g, cost, out=kernel).div_(epsilon).add_(log_a + log_b).exp_()


@dataclass(frozen=True, kw_only=True)
class Entropic(ABC):
    """Pairs a batch by drawing from an entropic plan; a subclass has ``epsilon``, computes the plan and draws."""

    relative: bool = True
    tolerance: float = 1e-3
    max_iterations: int = 2000
    annealing: float | None = 0.25

    draws_base: ClassVar[bool] = True
    independent: ClassVar[bool] = False
    prepares_ahead: ClassVar[bool] = True

    def __post_init__(self):
        check_settings(type(self).__name__, self.epsilon, self.tolerance, self.max_iterations, self.annealing)

    def __call__(
        self, x0: Tensor, x1: Tensor, context: Context = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Context]:
        """Returns ``(x0, x1, context)``, pairs drawn from the plan by ``generator``."""
        name = type(self).__name__
        check_rows(name, x0, x1, context, generator)
        check_alike(name, x0, x1)
        if len(x1) == 0:
            return x0, x1, context
        plan = self.plan(x0, x1)
        warn_unless_converged(name, plan, self.tolerance)
        return self._draw(plan.plan, x0, x1, context, generator)

    @abstractmethod
    def plan(self, x0: Tensor, x1: Tensor) -> Plan:
        """Computes the plan between ``x0 [B0, *event]`` and ``x1 [B1, *event]``; all rows have equal weight."""

    @abstractmethod
    def _draw(self, plan: Tensor, x0: Tensor, x1: Tensor, context: Context, generator) -> tuple:
        """Draws pairs from the plan ``[B, B]``."""

    def _distances(self, x0: Tensor, x1: Tensor) -> SquaredDistances:
        """Checks the samples and computes their squared distances."""
        name = type(self).__name__
        check_filled(name, x0, x1)
        check_alike(name, x0, x1)
        return squared_distances(name, x0, x1)


def _log_sum_exp(table: Tensor, dim: int) -> Tensor:
    """Computes ``log sum exp`` along one dimension; overwrites the table."""
    top = table.amax(dim, keepdim=True)
    return table.sub_(top).exp_().sum(dim, keepdim=True).log_().add_(top)


def _update(factor: Tensor, product: Tensor, damping: float, pull: Tensor, power: float) -> Tensor:
    """Computes the scaling factor that meets the marginal of one side, or approaches it for a finite ``tau``."""
    if damping == 1:
        target = (product * len(product)).reciprocal_()
    else:
        # A row whose mass underflows in float64 keeps its factor.
        target = torch.exp(-damping * (product * len(product)).log_() - pull)
        target = torch.where((product > 0) & target.isfinite() & (target > 0), target, factor)
    return target if power == 1 else factor * (target / factor).pow_(power)


def regularisation(name: str, epsilon: float, relative: bool, scale: float, largest: float) -> float:
    """Returns the regularisation in squared distance; raises if float64 does not resolve it next to ``largest``."""
    unit = scale if relative and scale > 0 else 1.0
    value = epsilon * unit
    if not largest < RESOLUTION * value:
        raise ValueError(
            f"{name}(epsilon={epsilon}, relative={relative}): float64 does not resolve it next to squared distances of "
            f"up to {largest:.3g}; raise epsilon above {largest / RESOLUTION / unit:.2g}, or use OptimalTransport."
        )
    return value


def check_settings(name: str, epsilon: float, tolerance: float, max_iterations: int, annealing: float | None) -> None:
    """Raises if a setting of the scaling loop is out of range."""
    for what, value in (("epsilon", epsilon), ("tolerance", tolerance)):
        if not 0 < value < math.inf:
            raise ValueError(
                f"{name}({what}={value}): this is a positive number; pass "
                f"{'0.05, or use OptimalTransport for epsilon = 0' if what == 'epsilon' else 1e-3}."
            )
    why = "this is a whole number of rounds; pass 2000."
    check_integer(name, "max_iterations", max_iterations, 1, why)
    if annealing is not None and not 0.01 <= annealing <= 0.9:
        raise ValueError(
            f"{name}(annealing={annealing}): the factor is in [0.01, 0.9]; pass 0.25, or None for no annealing."
        )


def check_filled(name: str, x0: Tensor, x1: Tensor) -> None:
    """Raises if one side has no rows."""
    if x0.dim() == 0 or x1.dim() == 0 or min(len(x0), len(x1)) == 0:
        raise ValueError(
            f"{name}.plan(x0 of shape {list(x0.shape)}, x1 of shape {list(x1.shape)}): pass at least one row of each."
        )


def warn_unless_converged(name: str, plan: Plan, tolerance: float) -> None:
    """Warns if the plan has not reached the tolerance."""
    if not plan.converged:
        warnings.warn(
            f"{name}: after {plan.iterations} iterations the x0 marginal has an error of {plan.error:.2g} (tolerance "
            f"{tolerance:.2g}, regularisation {plan.epsilon:.3g}), and pairs are drawn all the same; raise epsilon, "
            f"max_iterations or tolerance.",
            ConvergenceWarning,
            stacklevel=3,
        )


def draw_rows(plan: Tensor, columns: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Draws a row for each column (or each of ``columns``) from the plan given that column; returns ``[count]``."""
    weights = (plan.T if columns is None else plan.T[columns]).contiguous()
    reached = weights.cumsum(1)
    total = reached[:, -1:].contiguous()
    uniform = _uniform(total.shape, plan, generator)
    index = torch.searchsorted(reached, uniform * total, right=True)
    # Rounding may reach the total itself; the first index that reaches it is the last row with mass.
    return torch.minimum(index, torch.searchsorted(reached, total))[:, 0]


def draw_columns(plan: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws columns by mass, by systematic resampling (the least variance), in random order; returns ``[count]``."""
    reached = plan.sum(0).cumsum(0)
    places = torch.arange(count, device=plan.device) + _uniform((1,), plan, generator)
    index = torch.searchsorted(reached, places / count * reached[-1], right=True)
    index = torch.minimum(index, torch.searchsorted(reached, reached[-1:]))
    return index[_uniform((count,), plan, generator).argsort()]


def _uniform(shape: tuple[int, ...], plan: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws uniform numbers on the generator's device, which may differ from the plan's (devices without float64)."""
    device = plan.device if generator is None else generator.device
    dtype = plan.dtype if device == plan.device else torch.float32
    return torch.rand(shape, generator=generator, device=device, dtype=dtype).to(plan)
