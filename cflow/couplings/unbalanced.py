"""Unbalanced entropic transport between the two halves of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.couplings.coupling import Context, take_rows
from cflow.couplings.entropic import RESOLUTION, Entropic, Plan, Scaling, draw_columns, draw_rows, regularisation
from cflow.registry import register

__all__ = ["Unbalanced"]

LEAST_MASS = 1e-3


@register("couplings.Unbalanced")
@dataclass(frozen=True)
class Unbalanced(Entropic):
    r"""Pairs a batch by a plan that may leave out what is too far away: outliers, or a mode that only one side has.

    .. math:: \min_P \sum_{ij} P_{ij} \| x_0^i - x_1^j \|^2 + \epsilon\, \mathrm{KL}(P \,|\, 1/B^2) +
              \tau\, \mathrm{KL}(P 1 \,|\, 1/B) + \tau\, \mathrm{KL}(P^\top 1 \,|\, 1/B)

    B pairs are drawn from the normalised plan, in random order: rows of ``x1`` by their mass with the least variance
    (a row of half the usual mass is used in every second batch), with their ``context``; each one's ``x0`` from the
    plan's column. Neither side's law is kept, which is the point, and the flow learns the reweighted data.

    Args:
        tau: the price of creating or destroying mass. Of a pair at squared distance c from each other and far from the
            rest, the share :math:`B^{-\epsilon / (2\tau + \epsilon)} e^{-c / (2\tau + \epsilon)}` of the mass is moved:
            about a third at ``2 tau`` for small epsilon. Larger batches move less at the same epsilon.
        epsilon: the entropic regularisation.
        relative: whether ``tau`` and ``epsilon`` count in units of the batch's scale, the median squared distance
            between a row of ``x0`` and one of ``x1`` (no outlier moves it), so that rescaling the data does not change
            the pairing; otherwise both are squared distances.
        tolerance: the error of the x0 marginal (see :class:`Plan`) at which the loop ends.
        max_iterations: rounds of updates, of all stages together.
        annealing: the factor from stage to stage by which the regularisation comes down to a small epsilon.

    Shapes: ``x0, x1 [B, *event]``, flattened for the distance; ``context [B, ...]`` or a dict of such.
    Cost: that of :class:`Sinkhorn`, and the median of ``B x B`` numbers. Safe to call from several threads.

    Raises:
        ValueError: if less than a thousandth of the mass is worth moving, shapes or devices of ``x0`` and ``x1``
            differ, a sample has NaN or infinite entries, or an argument is out of its range.
        TypeError: if ``x0`` or ``x1`` is not a tensor of floating numbers.

    Source: Chizat et al., Scaling Algorithms for Unbalanced Transport Problems, 2016, arXiv:1607.05816; Eyring et al.,
    Unbalancedness in Neural Monge Maps Improves Unpaired Domain Translation, 2023, arXiv:2311.15100.

    Example:
        >>> x0 = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> x1 = torch.tensor([[0.1], [1.1], [2.1], [90.0]])
        >>> plan = Unbalanced().plan(x0, x1)
        >>> bool(plan.plan[:, 3].sum() < 1e-12), 0.5 < plan.mass < 1
        (True, True)
    """

    tau: float = 1.0
    epsilon: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.tau < math.inf:
            raise ValueError(
                f"Unbalanced(tau={self.tau}): the price of destroying mass is a positive number; pass a value such as "
                f"1.0, or take Sinkhorn to forbid it."
            )

    @torch.no_grad()
    def plan(self, x0: Tensor, x1: Tensor) -> Plan:
        """Computes the plan between ``x0 [B0, *event]`` and ``x1 [B1, *event]``; its ``mass`` says how much stays."""
        cost = self._distances(x0, x1).total()
        # Where most pairs coincide the median is zero and says nothing.
        scale = float(cost.median()) or float(cost.mean())
        epsilon = regularisation("Unbalanced", self.epsilon, self.relative, scale, scale)
        # Farther than that nothing arrives, and float64 would lose the rest beside it.
        cost.clamp_(max=0.1 * RESOLUTION * epsilon)
        tau = epsilon / self.epsilon * self.tau
        plan = Scaling(epsilon, tau, self.tolerance, self.max_iterations, self.annealing).solve(cost, scale)
        if not plan.mass >= LEAST_MASS:
            raise ValueError(
                f"Unbalanced(tau={self.tau}, relative={self.relative}): the plan keeps {plan.mass:.1g} of the mass, as "
                f"squared distances (median {scale:.3g}) cost more than destroying both ends of a pair (2 tau = "
                f"{2 * tau:.3g}); raise tau."
            )
        return plan

    def _draw(self, plan: Tensor, x0: Tensor, x1: Tensor, context: Context, generator) -> tuple:
        columns = draw_columns(plan, len(x1), generator)
        rows = draw_rows(plan, columns, generator).to(x0.device)
        columns = columns.to(x1.device)
        return x0[rows], x1[columns], take_rows(context, columns)
