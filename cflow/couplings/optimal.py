"""Optimal transport between the base and data samples of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cflow.couplings.costs import check_alike, check_finite, squared_distances
from cflow.couplings.coupling import Context, check_rows
from cflow.registry import register

__all__ = ["OptimalTransport"]

METHODS = (None, "simplex", "assignment")
SIMPLEX_ABOVE = {2: 128, 3: 256}  # by dimension, the batch size above which the network simplex is faster


@register("couplings.OptimalTransport")
@dataclass(frozen=True)
class OptimalTransport:
    r"""Pairs a batch at the least total cost; each row is used exactly once.

    .. math:: \min_{\tau \in S_B} \sum_{i=1}^B c(x_0^{\tau(i)}, x_1^i)

    with the squared distance :math:`c(x, y) = \| x - y \|^2` by default.

    Rows of ``x0`` are permuted; ``x1`` and ``context`` keep their order. The pairing is deterministic: ``generator`` is
    not used.

    The coupling of a batch is biased: it approaches the optimal coupling of the two distributions only as B grows. It
    ignores the context, so the base samples depend on the condition; see :class:`ConditionalOT`.

    Args:
        method: the solver. Both solvers are exact and differ in speed alone:

            - ``"simplex"``: POT's network simplex;
            - ``"assignment"``: SciPy's shortest augmenting paths, on costs reduced by their column minima, with the
              wider of the two sets along the rows. It is up to three times as fast for data wider than the base, and at
              worst 1.6 times as slow (narrow isotropic data in many dimensions);
            - ``None`` (the default): the faster one, as measured by ``tests/benchmarks/couplings.py``. This is the
              simplex for two-dimensional events in batches above 128, where it is 1.3 to 2.3 times as fast on data that
              are not a copy of the base, and for three-dimensional events in batches above 256 (1.2 to 1.5 times).
              Otherwise it is the assignment. From 4 to 32 dimensions the assignment takes half to three quarters of the
              simplex's time, and at worst 1.3 times as long (four dimensions, data three times as wide as the base,
              B = 1024).

            One-dimensional events with the default cost are always sorted, on their device. If the simplex does not
            return a permutation, the assignment is solved instead: the result is the same, at the cost of a second
            solve.
        cost: the cost of all pairs, a function ``(x0 [B0, *event], x1 [B1, *event]) -> [B0, B1]`` of finite numbers; on
            a manifold, ``manifold.cost``, the squared lengths of geodesics. Default: None, squared distances.

    Shapes: ``x0, x1 [B, *event]``, flattened for the default cost; ``context [B, ...]`` or a dict of such tensors.
    Cost: one core of the host. Up to 50 dimensions: 1 ms at B = 128, 2 to 4 ms at 256, 0.1 s at 1024. With 3072 entries
    per event: 2 ms, 9 ms and 0.2 s, since distances are then expensive too (two cores, one run of the benchmark). Costs
    are computed on the samples' device (in float64 on a GPU); ``B x B`` numbers are then copied to the host and ``B``
    indices back, which waits for the device. No gradient flows through the pairing. Safe to call from several threads:
    both solvers release Python's lock.

    Raises:
        ValueError: if the shapes or devices of ``x0`` and ``x1`` differ, the rows of ``context`` do not match, a sample
            has NaN or infinite entries, or the method is unknown.
        TypeError: if ``x0`` or ``x1`` is not a tensor of floating numbers, or ``cost`` is not a function.

    Source: Tong et al., Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, 2023,
    arXiv:2302.00482; Pooladian et al., Multisample Flow Matching, 2023, arXiv:2304.14772. Solvers: Bonneel et al.,
    Displacement Interpolation Using Lagrangian Mass Transport, 2011; Crouse, On Implementing 2D Rectangular Assignment
    Algorithms, 2016.

    Example:
        >>> x0, x1, labels = OptimalTransport()(
        ...     torch.tensor([[0.0, 0.0], [5.0, 5.0]]), torch.tensor([[6.0, 6.0], [1.0, 1.0]]), torch.tensor([7, 8]))
        >>> x0
        tensor([[5., 5.],
                [0., 0.]])
        >>> labels
        tensor([7, 8])
    """

    method: Literal["simplex", "assignment"] | None = None
    cost: Callable[[Tensor, Tensor], Tensor] | None = None

    draws_base: ClassVar[bool] = True
    independent: ClassVar[bool] = False
    prepares_ahead: ClassVar[bool] = True

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(
                f"OptimalTransport(method={self.method!r}): no such solver; pass 'simplex', 'assignment', or None."
            )

        if self.cost is not None and (isinstance(self.cost, type) or not callable(self.cost)):
            raise TypeError(
                f"OptimalTransport(cost={self.cost!r}): a cost is a function of (x0, x1); pass one such as "
                f"manifolds.Sphere(2).cost, or None."
            )

    def __call__(
        self, x0: Tensor, x1: Tensor, context: Context = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Context]:
        """Returns ``(x0, x1, context)`` with the rows of ``x0`` permuted; ``generator`` is not used."""
        check_rows("OptimalTransport", x0, x1, context, generator)
        check_alike("OptimalTransport", x0, x1)
        return x0[self.indices(x0, x1)], x1, context

    @torch.no_grad()
    def indices(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Computes the permutation ``[B]``: row ``i`` of ``x1`` is paired with row ``indices[i]`` of ``x0``."""
        count = len(x1)
        dimension = x1[0].numel() if count else 0
        if self.cost is not None:
            return self._by_cost(x0, x1)
        if dimension <= 1:
            check_finite("OptimalTransport", x0, x1)
            return (
                sorted_pairs(x0.reshape(count), x1.reshape(count))
                if dimension
                else torch.arange(count, device=x1.device)
            )
        distances = squared_distances("OptimalTransport", x0, x1)
        cost = distances.cost.cpu().numpy()
        method = self.method or ("simplex" if count > SIMPLEX_ABOVE.get(dimension, count) else "assignment")
        index = simplex(cost) if method == "simplex" else None
        if index is None:
            index = assignment(cost, distances.spread0 >= distances.spread1)
        return torch.as_tensor(index, device=x1.device)

    def _by_cost(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Computes the permutation for the cost that was given."""
        check_finite("OptimalTransport", x0, x1)
        if not len(x1):
            return torch.arange(0, device=x1.device)
        cost = self.cost(x0, x1).double()
        if cost.shape != (len(x0), len(x1)):
            raise ValueError(
                f"OptimalTransport(cost={self.cost!r}): it returned {list(cost.shape)} for {len(x0)} and {len(x1)} "
                f"samples; return [B0, B1]."
            )
        check_finite("OptimalTransport: cost", cost)
        cost = cost.cpu().numpy()
        index = simplex(cost) if self.method == "simplex" else None
        return torch.as_tensor(assignment(cost, True) if index is None else index, device=x1.device)


def sorted_pairs(x0: Tensor, x1: Tensor) -> Tensor:
    """Pairs numbers by rank, which is optimal on the line."""
    index = torch.empty(len(x0), dtype=torch.long, device=x0.device)
    index[x1.argsort(stable=True)] = x0.argsort(stable=True)
    return index


def simplex(cost):
    """Solves by POT's network simplex; returns None if the plan is not a permutation."""
    import numpy
    import ot

    # Masses of 1 instead of 1/B: the entries of an optimal plan are then whole numbers, without rounding.
    ones = numpy.ones(len(cost))
    plan = ot.emd(ones, ones, cost, numItermax=max(1_000_000, 1_000 * len(cost)), center_dual=False)
    index = plan.argmax(0)
    permutation = (numpy.bincount(index, minlength=len(cost)) == 1).all()
    return index if permutation and plan.max(0).min() > 0.999 else None


def assignment(cost, x0_is_wider: bool):
    """Solves by SciPy's shortest augmenting paths."""
    import numpy
    from scipy.optimize import linear_sum_assignment

    table = cost if x0_is_wider else cost.T
    rows, columns = linear_sum_assignment(table - table.min(0))
    if not x0_is_wider:
        return columns
    index = numpy.empty_like(columns)
    index[columns] = rows
    return index
