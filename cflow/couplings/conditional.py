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
    r"""Pairs a batch at the least total squared distance, without skewing which base samples a condition gets.

    .. math:: \min_{\tau \in S_B} \sum_{j=1}^B \| x_0^{\tau(j)} - x_1^j \|^2 + w\, d(c_{\tau(j)}, c_j)

    The rows of ``x0`` take the conditions that chance gave them: row i has condition i, as drawn. A pair may then
    change partners only where the conditions agree, so the base given a condition stays what it was. (Plain optimal
    transport pairs across conditions: a class on the right gets the base samples on the right, yet at sampling time its
    base samples come from everywhere.) Rows of ``x0`` are permuted; ``x1`` and ``context`` keep their order.

    - Integer and boolean contexts (classes, tokens) must agree exactly: optimal transport inside each class, and the
      base given a class is exactly as drawn.
    - Floating contexts are compared by d, the squared distance after each entry was divided by its standard deviation
      over the batch, averaged over the entries; w weighs it. The base given a condition is then as drawn up to the
      distance over which conditions mix.
      Classes given as vectors (one-hot) are classes if ``weight=inf`` says so.
    - Of dicts, every part counts: integer parts must agree, floating parts are compared together.

    Args:
        weight: w, in squared distance of the data, for floating contexts. ``None`` finds the w at which the
            share ``candidates`` of all pairs is still attractive. ``inf`` demands that all contexts agree exactly.
        candidates: the share of pairs (i, j), of different rows of agreeing integer contexts, that stay cheaper than
            j's own: :math:`C_{ij} + w\, d(c_i, c_j) \le C_{jj}`, both sets being centred. It is a quantile, so w is
            found without a search. Small values keep the base unskewed, large ones the paths straight.
        method: the solver, as in :class:`OptimalTransport`; ``None`` is the assignment.

    Shapes: ``x0, x1 [B, *event]``, flattened for the distance; ``context [B, ...]`` or a dict of such.
    Cost: that of :class:`OptimalTransport` for a batch of the largest class's size, times the number of such; with
    floating contexts also a ``B x B`` matrix of their distances and one quantile. Deterministic: ``generator`` is not
    needed. Safe to call from several threads. A class that a batch holds once keeps its random pair, so paths grow
    straighter only with several items per class: sample batches that are large, or of few classes.

    Raises:
        ValueError: if there is no context, shapes or devices differ, samples or contexts have NaN or infinite entries,
            or an argument is out of its range.
        TypeError: if ``x0`` or ``x1`` is not a tensor of floating numbers.

    Source: Cheng and Schwing, The Curse of Conditions: Analyzing and Improving Optimal Transport for Conditional
    Flow-Based Generation, 2025, arXiv:2503.10636 (there conditions are compared by their cosine, and w is searched).

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
                f"ConditionalOT(weight={self.weight}): conditions that differ cost more, not less; pass a number of at "
                f"least 0, inf for exact agreement, or None to have it found."
            )
        if not 0 < self.candidates <= 1:
            raise ValueError(
                f"ConditionalOT(candidates={self.candidates}): it is the share of pairs that stay open, above 0 and at "
                f"most 1; pass a value such as 0.05."
            )
        if self.method not in METHODS:
            raise ValueError(
                f"ConditionalOT(method={self.method!r}): no such solver; pass 'simplex', 'assignment', or None."
            )

    def __call__(
        self, x0: Tensor, x1: Tensor, context: Context = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Context]:
        check_rows("ConditionalOT", x0, x1, context, generator)
        check_alike("ConditionalOT", x0, x1)
        return x0[self.indices(x0, x1, context)], x1, context

    @torch.no_grad()
    def indices(self, x0: Tensor, x1: Tensor, context: Context) -> Tensor:
        """Computes the permutation ``[B]``: row ``i`` of ``x1`` goes with row ``indices[i]`` of ``x0``."""
        parts = leaves(context)
        if not parts:
            raise ValueError(
                "ConditionalOT(context=None): there is no condition whose base samples could be kept apart; pass the "
                "context, or take OptimalTransport."
            )
        index = torch.arange(len(x1))
        if len(x1) == 0:
            return index.to(x1.device)
        for number, part in enumerate(parts):
            if part.is_complex() or not part.isfinite().all():
                raise ValueError(
                    f"ConditionalOT(context part {number} of shape {list(part.shape)}, {part.dtype}): conditions are "
                    f"compared by their distance, which needs finite real numbers; clean or encode them first."
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
    """Lists the tensors of a context, parts of parts included."""
    if isinstance(context, dict):
        return [leaf for part in context.values() for leaf in leaves(part)]
    return [] if context is None else [context]


def agreeing_rows(parts: list[Tensor], count: int) -> list[Tensor]:
    """Groups rows that agree in all parts: lists of indices on the host, one per group."""
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
    """Computes mean squared distances between standardised conditions ``[B, B]``, each part weighing the same."""
    total = None
    for part in parts:
        part = rearrange(part.detach(), "b ... -> b (...)")
        part = part.double() if part.device.type in ("cpu", "cuda") else part.cpu().double()
        part = part - part.mean(0)
        spread = part.square().mean(0).sqrt()
        part = part / torch.where(spread > 0, spread, 1.0)
        norms = part.square().sum(1)
        with torch.autocast(part.device.type, enabled=False):
            # Constant entries tell no two rows apart and do not count.
            far = (norms[:, None] + norms - 2 * part @ part.T).clamp_(min=0) / max(1, int((spread > 0).sum()))
        total = far if total is None else total + far.to(total.device)
    return total / len(parts)


def open_weight(cost: Tensor, far: Tensor, blocks: list[Tensor], share: float) -> float:
    r"""Finds the weight at which the given share of pairs is still cheaper than the data row's own pair.

    Pair (i, j) is, as long as :math:`w \le (C_{jj} - C_{ij}) / d_{ij}`, so w is a quantile of those ratios.
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
