"""Pairs that are stored in the data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from cflow.couplings.coupling import Context, check_rows
from cflow.registry import register

__all__ = ["Paired", "paired"]


@register("couplings.Paired")
@dataclass(frozen=True)
class Paired:
    """Keeps the pairs of a data set in which each item is a base sample and its data sample: reflow, measured pairs.

    Objectives then draw no base samples. They separate training data ``[B, 2, *event]``, which :func:`paired` builds,
    with :meth:`split`.

    Cost: none.

    Raises:
        ValueError: if the data are not pairs, or the numbers of rows differ.
        TypeError: if ``x0`` or ``x1`` is not a tensor.

    Source: Liu, Gong and Liu, Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow,
    2022, arXiv:2209.03003.

    Example:
        >>> data = paired(torch.zeros(5, 3), torch.ones(5, 3))
        >>> data.shape
        torch.Size([5, 2, 3])
        >>> x0, x1 = Paired().split(data)
        >>> x1[0]
        tensor([1., 1., 1.])
    """

    draws_base: ClassVar[bool] = False
    independent: ClassVar[bool] = False
    prepares_ahead: ClassVar[bool] = False

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``x0 [B, *event]`` and ``x1 [B, *event]`` of the pairs ``x [B, 2, *event]``."""
        if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[1] != 2:
            given = f"of shape {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ValueError(
                f"Paired.split(x {given}): training data are pairs of shape [B, 2, *event]; build them by "
                f"couplings.paired(x0, x1)."
            )
        x0, x1 = x.unbind(1)
        return x0, x1

    def __call__(
        self, x0: Tensor, x1: Tensor, context: Context = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Context]:
        """Returns ``x0``, ``x1`` and ``context`` unchanged; ``generator`` is not used."""
        check_rows("Paired", x0, x1, context, generator)
        return x0, x1, context


def paired(x0: Tensor, x1: Tensor) -> Tensor:
    """Returns base samples and their data samples as training data ``[N, 2, *event]``.

    Args:
        x0: base samples ``[N, *event]``.
        x1: data samples ``[N, *event]``; row i is paired with row i of ``x0``.

    Raises:
        ValueError: if the shapes, dtypes or devices of ``x0`` and ``x1`` differ.
        TypeError: if ``x0`` or ``x1`` is not a tensor.
    """
    check_rows("paired", x0, x1, None)
    for what in ("shape", "dtype", "device"):
        first, second = getattr(x0, what), getattr(x1, what)
        if first != second:
            raise ValueError(
                f"paired(x0 with {what} {_show(first)}, x1 with {what} {_show(second)}): a pair is one tensor and "
                f"needs one {what}; convert x0 or x1."
            )
    return rearrange([x0, x1], "end n ... -> n end ...")


def _show(value: object) -> str:
    return str(list(value)) if isinstance(value, torch.Size) else str(value)
