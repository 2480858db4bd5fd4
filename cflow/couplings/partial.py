"""Partial optimal transport between the base and data samples of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cflow.couplings.costs import check_alike, squared_distances
from cflow.couplings.coupling import Context, check_rows, take_rows
from cflow.registry import register

__all__ = ["Partial"]

SIMPLEX_FROM = 256  # the batch size from which the network simplex is faster


@register("couplings.Partial")
@dataclass(frozen=True)
class Partial:
    r"""Pairs the share of a batch that costs least to pair, and drops the rest: outliers on either side.

    .. math:: \min_{I, J, \tau} \sum_{j \in J} \| x_0^{\tau(j)} - x_1^j \|^2, \qquad |I| = |J| = \mathrm{round}(mB),
              \quad \tau: J \to I \text{ one to one}

    The solution is exact. The call returns ``round(mass * B)`` pairs (at least one), fewer than it was given. Each kept
    row is used exactly once; kept rows of ``x1`` stay in order, with their ``context``. Which rows are dropped
    depends on the positions of the two sets, so use it for a source near the data (:class:`Unbalanced` drops mass
    gradually). Between a standard normal and data it cuts the tails of both. Deterministic: ``generator`` is not used.

    Args:
        mass: the share m of the rows that is paired, in (0, 1].

    Shapes: ``x0, x1 [B, *event]``, flattened for the distance; ``context [B, ...]`` or a dict of such tensors; returns
    ``[round(mass * B), *event]``.
    Cost: on one core of the host, about 0.3 ms at B = 64, 5 ms at 256 and 25 ms at 512. Up to 255 rows, SciPy assigns
    ``(2 - mass) B`` rows, some of them dummies for the dropped rows; from 256 rows on, POT's network simplex is used.
    Safe to call from several threads.

    Raises:
        ValueError: if ``mass`` is outside (0, 1], shapes or devices of ``x0`` and ``x1`` differ, or a sample has NaN
            or infinite entries.
        TypeError: if ``x0`` or ``x1`` is not a tensor of floating numbers.

    Source: Caffarelli and McCann, Free Boundaries in Optimal Transport and Monge-Ampere Obstacle Problems, 2010;
    the dummy points, Chapel, Alaya and Gasso, Partial Optimal Transport with Applications on Positive-Unlabeled
    Learning, 2020, arXiv:2002.08276.

    Example:
        >>> x0, x1 = torch.tensor([[0.0], [5.0], [9.0]]), torch.tensor([[5.5], [-70.0], [0.1]])
        >>> Partial(0.67)(x0, x1, torch.tensor([1, 2, 3]))
        (tensor([[5.],
                [0.]]), tensor([[5.5000],
                [0.1000]]), tensor([1, 3]))
    """

    mass: float = 0.9

    draws_base: ClassVar[bool] = True
    independent: ClassVar[bool] = False
    prepares_ahead: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.mass <= 1:
            raise ValueError(f"Partial(mass={self.mass}): the share of the rows is in (0, 1]; pass 0.9.")

    def __call__(
        self, x0: Tensor, x1: Tensor, context: Context = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Context]:
        """Returns the pairs kept of ``x0`` and ``x1``, and their ``context``; ``generator`` is not used."""
        check_rows("Partial", x0, x1, context, generator)
        check_alike("Partial", x0, x1)
        if len(x1) == 0:
            return x0, x1, context
        rows, columns = self.indices(x0, x1)
        return x0[rows], x1[columns], take_rows(context, columns)

    @torch.no_grad()
    def indices(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the rows of ``x0`` and of ``x1`` that are paired: two index tensors of equal length."""
        count = len(x1)
        kept = max(1, round(self.mass * count))
        cost = squared_distances("Partial", x0, x1).total().cpu().numpy()
        columns = _simplex(cost, kept) if count >= SIMPLEX_FROM else None
        if columns is None:
            columns = _assignment(cost, kept)
        rows = (columns < count).nonzero()[0]
        order = columns[rows].argsort()
        rows, columns = rows[order], columns[rows][order]
        return torch.as_tensor(rows, device=x0.device), torch.as_tensor(columns, device=x1.device)


def _simplex(cost, kept: int):
    """Solves by POT's network simplex: the column of each row, or one past the last; None if masses are split."""
    import numpy
    import ot

    # One dummy on each side takes the dropped rows at no cost, and no mass of the other dummy.
    count = len(cost)
    table = numpy.zeros((count + 1,) * 2)
    table[:count, :count] = cost
    table[count, count] = 1 + cost.max()
    masses = numpy.ones(count + 1)
    masses[count] = count - kept
    plan = ot.emd(masses, masses, table, numItermax=max(1_000_000, 1_000 * count), center_dual=False)
    used = plan[:count, :count] > 0.999
    whole = used.sum() == kept and used.sum(0).max() <= 1 and used.sum(1).max() <= 1
    return numpy.where(used.any(1), used.argmax(1), count) if whole else None


def _assignment(cost, kept: int):
    """Solves by SciPy's shortest augmenting paths: the column of each row, or one past the last."""
    import numpy
    from scipy.optimize import linear_sum_assignment

    # A dummy takes a row or a column at no cost; two dummies are never paired, so exactly `kept` pairs remain.
    count = len(cost)
    table = numpy.zeros((2 * count - kept,) * 2)
    table[:count, :count] = cost
    table[count:, count:] = numpy.inf
    return linear_sum_assignment(table)[1][:count]
