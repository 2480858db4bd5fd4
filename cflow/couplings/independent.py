"""The independent coupling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cflow.couplings.coupling import Context, check_rows
from cflow.registry import register

__all__ = ["Independent"]


@register("couplings.Independent")
@dataclass(frozen=True)
class Independent:
    r"""Returns the pairs as drawn: a base sample is independent of its data sample.

    .. math:: \pi(x_0, x_1) = p_0(x_0)\, p_1(x_1)

    A trained velocity determines the score, which stochastic samplers need, under this coupling only.

    Cost: none.

    Raises:
        ValueError: if ``x0``, ``x1`` and ``context`` differ in their number of rows.
        TypeError: if ``x0`` or ``x1`` is not a tensor.

    Source: Lipman et al., Flow Matching for Generative Modeling, 2022, arXiv:2210.02747.

    Example:
        >>> x0, x1, context = Independent()(torch.zeros(4, 2), torch.ones(4, 2))
        >>> x1.shape, context
        (torch.Size([4, 2]), None)
    """

    draws_base: ClassVar[bool] = True
    independent: ClassVar[bool] = True
    prepares_ahead: ClassVar[bool] = False

    def __call__(
        self, x0: Tensor, x1: Tensor, context: Context = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Context]:
        """Returns ``x0``, ``x1`` and ``context`` unchanged; ``generator`` is not used."""
        check_rows("Independent", x0, x1, context, generator)
        return x0, x1, context
