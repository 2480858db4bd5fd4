"""Optimal transport that keeps the base independent of the condition."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor

from cflow.couplings.costs import check_alike, check_finite, squared_distances
from cflow.couplings.coupling import Context, check_rows
from cflow.couplings.optimal import METHODS, OptimalTransport, assignment, simplex
from cflow.registry import register

__all__ = ["ConditionalOT"]

SAME = 1e-9  # mean squared distance of standardised conditions below which they are the same


@register("couplings.ConditionalOT")
@dataclass(frozen=True)
class ConditionalOT:
    r"""Pairs a batch at the least total squared distance, and keeps the base samples independent of the condition.

    .. math:: \min_{\tau \in S_B} \sum_{j=1}^B \| x_0^{\tau(j)} - x_1^j \|^2 + w\, d(c_{\tau(j)}, c_j)

    Row i of ``x0`` starts with condition i. Base samples are exchanged only between rows with equal conditions, so the
    distribution of the base given a condition does not change. (Plain optimal transport exchanges across conditions: a
    class on the right is trained with base samples on the right, but sampling draws its base samples from everywhere.)
    Rows of ``x0`` are permuted; ``x1`` and ``context`` keep their order.

    - Integer and boolean contexts (classes, tokens) must agree exactly. This is optimal transport inside each class,
      and the base given a class is exactly as drawn.
    - Floating contexts are compared by d: each entry is divided by its standard deviation over the batch, and squared
      differences are averaged over the entries. The base given a condition is then as drawn, up to the distance over
      which conditions are exchanged. For classes given as vectors (one-hot), pass ``weight=inf``.
    - In a dict, every part counts: integer parts must agree, and floating parts are compared together.

    Args:
        weight: w, in squared distance of the data, for floating contexts. ``inf`` requires that all contexts agree
            exactly. Default: None, which computes w from ``candidates``.
        candidates: the share of pairs (i, j), of different rows with agreeing integer contexts, that cost no more than
            pair (j, j): :math:`C_{ij} + w\, d(c_i, c_j) \le C_{jj}`, with both sets centred. This determines w as a
            quantile, without a search. A small share keeps the base independent; a large one makes paths straighter.
        method: the solver, as in :class:`OptimalTransport`. Default: None, the assignment.

    Shapes: ``x0, x1 [B, *event]``, flattened for the distance; ``context [B, ...]`` or a dict of such tensors.
    Cost: that of :class:`OptimalTransport` for each class; with floating contexts also a ``B x B`` matrix of their
    distances and one quantile. Deterministic: ``generator`` is not used. Safe to call from several threads.

    A class that has one row in a batch keeps its random pair, so paths become straighter only with several rows per
    class: draw large batches, or batches of few classes.

    Raises:
        ValueError: if there is no context, shapes or devices differ, samples or contexts have NaN or infinite entries,
            or an argument is out of range.
        TypeError: if ``x0`` or ``x1`` is not a tensor of floating numbers.

    Source: Cheng and Schwing, The Curse of Conditions: Analyzing and Improving Optimal Transport for Conditional
    Flow-Based Generation, 2025, arXiv:2503.10636 (there, conditions are compared by cosine and w is found by search).

    Example:
        >>> x0, x1 = torch.tensor([[0.0], [9.0], [1.0], [5.0]]), torch.tensor([[8.0], [1.0], [7.0], [0.0]])
        >>> ConditionalOT()(x0, x1, torch.tensor([0, 0, 1, 1]))[0].flatten()
        tensor([9., 0., 5., 1.])
    """

    weight: float | None = None
    _: KW_ONLY
    candidates: float = 0.05
    method: Literal["simplex", "assignment"] | None = None

    draws_base: ClassVar[bool] = True
    independent: ClassVar[bool] = False
    prepares_ahead: ClassVar[bool] = True

    def __post_init__(self):
        if self.weight is not None and not self.weight >= 0:
            raise ValueError(
                f"ConditionalOT(weight={self.weight}): the weight is not negative; pass a number, inf (exact "
                f"agreement), or None to compute it."
            )
        if not 0 < self.candidates <= 1:
            raise ValueError(
                f"ConditionalOT(candidates={self.candidates}): the share of pairs is in (0, 1]; pass 0.05."
            )
        if self.method not in METHODS:
            raise ValueError(
                f"ConditionalOT(method={self.method!r}): no such solver; pass 'simplex', 'assignment', or None."
            )

    def __call__(
        self, x0: Tensor, x1: Tensor, context: Context = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Context]:
        """Returns ``(x0, x1, context)`` with the rows of ``x0`` permuted; ``generator`` is not used."""
        check_rows("ConditionalOT", x0, x1, context, generator)
        check_alike("ConditionalOT", x0, x1)
        return x0[self.indices(x0, x1, context)], x1, context

    @torch.no_grad()
    def indices(self, x0: Tensor, x1: Tensor, context: Context) -> Tensor:
        """Computes the permutation ``[B]``: row ``i`` of ``x1`` is paired with row ``indices[i]`` of ``x0``.

        ``context [B, ...]`` has the conditions of ``x1``.
        """
        parts = leaves(context)
        if not parts:
            raise ValueError(
                "ConditionalOT(context=None): this coupling needs a context; pass it, or use OptimalTransport."
            )
        index = torch.arange(len(x1))
        if len(x1) == 0:
            return index.to(x1.device)
        for number, part in enumerate(parts):
            if part.is_complex() or not part.isfinite().all():
                raise ValueError(
                    f"ConditionalOT(context part {number} of shape {list(part.shape)}, {part.dtype}): distances need "
                    f"finite real numbers; clean or encode it."
                )
        exact = [part for part in parts if not part.is_floating_point() or self.weight == math.inf]
        loose = [part for part in parts if part.is_floating_point()] if self.weight not in (0, math.inf) else []
        blocks = agreeing_rows(exact, len(x1))
        far = condition_distances(loose).cpu() if loose else None
        if far is None or not bool((far > SAME).any()):
            return self._by_class(x0, x1, blocks)
        distances = squared_distances("ConditionalOT", x0, x1)
        wider, cost = distances.spread0 >= distances.spread1, distances.cost.cpu()
        weight = open_weight(cost, far, blocks, self.candidates) if self.weight is None else self.weight
        if weight == math.inf:
            return self._by_class(x0, x1, agreeing_rows(parts, len(x1)))
        for block in blocks:
            table = cost[block][:, block] + weight * far[block][:, block]
            found = simplex(table.numpy()) if self.method == "simplex" else None
            index[block] = block[torch.as_tensor(assignment(table.numpy(), wider) if found is None else found)]
        return index.to(x1.device)

    def _by_class(self, x0: Tensor, x1: Tensor, blocks: list[Tensor]) -> Tensor:
        """Pairs inside each block of rows."""
        check_finite("ConditionalOT", x0, x1)
        index, plain, device = torch.arange(len(x1)), OptimalTransport(self.method), x1.device
        if len(blocks) > 1:  # one transfer rather than one per block
            x0, x1 = x0.cpu(), x1.cpu()
        for block in blocks:
            if len(block) > 1:
                index[block] = block[plain.indices(x0[block], x1[block]).cpu()]
        return index.to(device)


def leaves(context: Context) -> list[Tensor]:
    """Lists the tensors of a context, also those of nested parts."""
    if isinstance(context, dict):
        return [leaf for part in context.values() for leaf in leaves(part)]
    return [] if context is None else [context]


def agreeing_rows(parts: list[Tensor], count: int) -> list[Tensor]:
    """Groups rows that agree in all parts; returns one tensor of row indices, on the host, per group."""
    codes = [
        torch.unique(part.detach().reshape(count, -1), dim=0, return_inverse=True)[1].cpu()
        for part in parts
        if part.numel()
    ]
    if not codes:
        return [torch.arange(count)]
    _, group, sizes = torch.unique(torch.stack(codes, 1), dim=0, return_inverse=True, return_counts=True)
    return list(group.argsort(stable=True).split(sizes.tolist()))


def condition_distances(parts: list[Tensor]) -> Tensor:
    """Computes mean squared distances between standardised conditions, ``[B, B]``; all parts have the same weight."""
    total = None
    for part in parts:
        part = rearrange(part.detach(), "b ... -> b (...)")
        part = part.double() if part.device.type in ("cpu", "cuda") else part.cpu().double()
        part = part - part.mean(0)
        spread = part.square().mean(0).sqrt()
        part = part / torch.where(spread > 0, spread, 1.0)
        norms = part.square().sum(1)
        with torch.autocast(part.device.type, enabled=False):
            # Constant entries distinguish no rows and do not count.
            far = (norms[:, None] + norms - 2 * part @ part.T).clamp_(min=0) / max(1, int((spread > 0).sum()))
        total = far if total is None else total + far.to(total.device)
    return total / len(parts)


def open_weight(cost: Tensor, far: Tensor, blocks: list[Tensor], share: float) -> float:
    r"""Computes the weight at which the given share of pairs costs no more than the data row's own pair.

    This holds for pair (i, j) if :math:`w \le (C_{jj} - C_{ij}) / d_{ij}`, so w is a quantile of those ratios.
    """
    ratios = []
    for block in blocks:
        saved = cost[block][:, block]
        saved = saved.diagonal() - saved
        apart = far[block][:, block]
        ratio = torch.where(apart > SAME, saved / apart, torch.where(saved >= 0, math.inf, -math.inf))
        ratios.append(ratio[~torch.eye(len(block), dtype=torch.bool)])
    ratios = torch.cat(ratios)
    if ratios.numel() == 0:
        return 0.0
    kept = max(1, int(share * len(ratios)))
    return max(0.0, float(ratios.kthvalue(len(ratios) - kept + 1).values))
