"""Unbalanced entropic transport between the base and data samples of a batch."""

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
    r"""Pairs a batch by a plan that may omit points that are too far away: outliers, or a mode that only one side has.

    .. math:: \min_P \sum_{ij} P_{ij} \| x_0^i - x_1^j \|^2 + \epsilon\, \mathrm{KL}(P \,|\, 1/B^2) +
              \tau\, \mathrm{KL}(P 1 \,|\, 1/B) + \tau\, \mathrm{KL}(P^\top 1 \,|\, 1/B)

    B pairs are drawn from the normalised plan, in random order. Rows of ``x1``, with their ``context``, are drawn by
    mass with the least variance (a row of half the usual mass is used in every second batch); each ``x0`` is drawn from
    the plan's column. Neither marginal is kept: the flow learns the reweighted data.

    Args:
        tau: the price of creating or destroying mass. For a pair at squared distance c, far from all others, the share
            :math:`B^{-\epsilon / (2\tau + \epsilon)} e^{-c / (2\tau + \epsilon)}` of the mass is moved: about a third
            at ``c = 2 tau`` for small epsilon. Larger batches move less at the same epsilon.
        epsilon: the entropic regularisation.
        relative: whether ``tau`` and ``epsilon`` are in units of the batch's scale: the median squared distance between
            rows of ``x0`` and ``x1``, which outliers do not change. Rescaling the data then does not change the
            pairing. With ``relative=False`` both are squared distances.
        tolerance: the error of the x0 marginal (see :class:`Plan`) at which the loop ends.
        max_iterations: rounds of updates over all stages.
        annealing: the factor by which the regularisation decreases from stage to stage, down to a small epsilon. None
            starts at epsilon itself.

    Shapes: ``x0, x1 [B, *event]``, flattened for the distance; ``context [B, ...]`` or a dict of such tensors.
    Cost: that of :class:`Sinkhorn`, and the median of ``B x B`` numbers. Safe to call from several threads.

    Raises:
        ValueError: if the plan moves less than a thousandth of the mass, shapes or devices of ``x0`` and ``x1`` differ,
            a sample has NaN or infinite entries, or an argument is out of range.
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
                f"Unbalanced(tau={self.tau}): the price of mass is a positive number; pass 1.0, or use Sinkhorn, which "
                f"keeps all mass."
            )

    @torch.no_grad()
    def plan(self, x0: Tensor, x1: Tensor) -> Plan:
        """Computes the plan between ``x0 [B0, *event]`` and ``x1 [B1, *event]``; its ``mass`` is the mass moved."""
        cost = self._distances(x0, x1).total()
        # If most pairs coincide, the median is zero.
        scale = float(cost.median()) or float(cost.mean())
        epsilon = regularisation("Unbalanced", self.epsilon, self.relative, scale, scale)
        # No mass moves farther than this, and larger costs would exceed the resolution of float64.
        cost.clamp_(max=0.1 * RESOLUTION * epsilon)
        tau = epsilon / self.epsilon * self.tau
        plan = Scaling(epsilon, tau, self.tolerance, self.max_iterations, self.annealing).solve(cost, scale)
        if not plan.mass >= LEAST_MASS:
            raise ValueError(
                f"Unbalanced(tau={self.tau}, relative={self.relative}): the plan moves {plan.mass:.1g} of the mass, "
                f"since the median squared distance {scale:.3g} is far above 2 tau = {2 * tau:.3g}; raise tau."
            )
        return plan

    def _draw(self, plan: Tensor, x0: Tensor, x1: Tensor, context: Context, generator) -> tuple:
        columns = draw_columns(plan, len(x1), generator)
        rows = draw_rows(plan, columns, generator).to(x0.device)
        columns = columns.to(x1.device)
        return x0[rows], x1[columns], take_rows(context, columns)
