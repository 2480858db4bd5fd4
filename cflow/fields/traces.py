"""The trace of the Jacobian of a network, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["layers_trace"]

# The number of tangent entries that pass through the layers together, which limits the memory of an evaluation.
TOGETHER = 2**24


def layers_trace(weights: Sequence[Tensor], slopes: Sequence[Tensor], scales: Sequence[Tensor] | None = None) -> Tensor:
    r"""Computes the trace of the Jacobian of a multilayer network: a product of weights and diagonal slopes.

    .. math:: \operatorname{tr}(W_{n+1} E_n W_n \cdots E_1 W_1), \qquad E_k = \operatorname{diag}(e_k)

    where :math:`e_k` is a slope, times a scale if there are scales.

    With one hidden layer this is :math:`e_1^\top \operatorname{diag}(W_1 W_2)`; with two it is

    .. math:: e_2^\top \bigl(W_2 \odot (W_1 W_3)^\top\bigr) e_1,

    one product of the hidden widths for every size of x. With more, tangents pass around the cycle of layers, from the
    place where they are fewest: D tangents from x, or one for each entry of the narrowest hidden layer.

    Shapes: ``weights`` ``[H_1, D], [H_2, H_1], ..., [D, H_n]``; ``slopes`` ``[B, H_1], ..., [B, H_n]``; ``scales`` like
    ``slopes``, or with one row -> ``[B]``, in float32 or better, also under autocast. Differentiable.

    Cost, for widths H: with one and two hidden layers ``H D`` and ``H^2 D`` operations on the weights, then ``B H`` and
    ``B H^2``. With n layers ``min((n - 1) D, (n - 2) H)`` times ``B H^2``. Without gradients there is no graph, and the
    memory is small.

    Source: Onken et al., OT-Flow, 2020, arXiv:2006.00104, for traces in closed form in place of automatic
    differentiation; the cyclic property of the trace.

    Example:
        >>> first, last = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
        >>> layers_trace([first, last], [torch.tensor([[10.0]])])
        tensor([110.])
    """
    dtype = torch.promote_types(slopes[0].dtype, torch.float32)
    with torch.autocast(slopes[0].device.type, enabled=False):
        first, *middle, last = (weight.to(dtype) for weight in weights)
        slopes = [slope.to(dtype) for slope in slopes]
        for k, scale in enumerate(scales or ()):
            if scale.shape[0] != 1 or 0 < k < len(middle):
                slopes[k] = slopes[k] * scale.to(dtype)
            elif k == 0:  # one row: multiplying the weights costs less
                first = first * scale.mT.to(dtype)
            else:
                last = last * scale.to(dtype)
        if not middle:
            return slopes[0] @ (first * last.mT).sum(1)
        if len(middle) == 1:
            mixed = middle[0] * (last.mT @ first.mT)
            return ((slopes[1] @ mixed) * slopes[0]).sum(1)
        return _around(first, middle, last, slopes)


def _around(first: Tensor, middle: list[Tensor], last: Tensor, slopes: list[Tensor]) -> Tensor:
    """Computes the trace by passing tangents around the cycle of layers, from the cheapest place."""
    widths = [slope.shape[1] for slope in slopes]
    count = len(widths)
    sizes = [widths[k] * widths[k - 1] for k in range(count)]  # of the weights before each hidden layer
    # From hidden layer k, x is passed in one step: the first and the last weights are multiplied before.
    costs = [widths[k] * (sum(sizes) - sizes[k] - sizes[(k + 1) % count]) for k in range(count)]
    cheapest = min(range(count), key=costs.__getitem__)
    if first.shape[1] * sum(sizes[1:]) <= costs[cheapest]:
        return _diagonal([first, *middle], slopes, last).sum(1)
    cycle = [first @ last, *middle]
    order = [(cheapest + step) % count for step in range(1, count)]
    closing = cycle[cheapest]
    diagonal = _diagonal([cycle[k] for k in order], [slopes[k] for k in order], closing)
    return (diagonal * slopes[cheapest]).sum(1)


def _diagonal(weights: list[Tensor], slopes: list[Tensor], closing: Tensor) -> Tensor:
    """Computes the diagonal of ``closing E_n W_n ... E_1 W_1`` for every sample, ``[B, start]``."""
    most = max(1, TOGETHER // max(1, slopes[0].shape[0] * max(slope.shape[1] for slope in slopes)))
    diagonals = []
    for columns, row in zip(weights[0].mT.split(most), closing.split(most)):
        tangents = columns * slopes[0].unsqueeze(1)
        for weight, slope in zip(weights[1:], slopes[1:]):
            tangents = (tangents @ weight.mT) * slope.unsqueeze(1)
        diagonals.append((tangents * row).sum(2))
    return torch.cat(diagonals, 1)
