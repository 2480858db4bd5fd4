"""What every coupling is, and the checks that all share."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cflow.draws import check_generator
from cflow.shapes import on_tensors

__all__ = ["Coupling"]

Context = Tensor | dict[str, Tensor] | None


@runtime_checkable
class Coupling(Protocol):
    """Pairs base samples with data samples.

    ``draws_base`` says where ``x0`` comes from: drawn anew for every batch (True), or brought along by the data
    (False), which then are pairs that ``split`` takes apart. ``prepares_ahead`` says whether pairing takes time, for
    which a thread ahead of the step is worth its price. ``independent`` says whether a base sample knows nothing of
    its data sample, so that scores follow from the velocity. The rows of ``context`` belong to those of ``x1`` and stay
    with them.
    """

    draws_base: bool
    independent: bool
    prepares_ahead: bool

    def __call__(
        self, x0: Tensor, x1: Tensor, context: Context = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Context]:
        """Gives ``(x0, x1, context)`` with rows paired."""
        ...


def check_rows(name: str, x0: Tensor, x1: Tensor, context: Context, generator=None) -> None:
    """Raises where base samples, data samples and context do not have the same number of rows, or are no tensors.

    And where what shall draw is no generator.
    """
    check_generator(name, generator)
    for which, value in (("x0", x0), ("x1", x1)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name}({which}={type(value).__name__}): couplings pair tensors of shape [B, *event]; flows over "
                f"several parts (dicts) are trained with their parts drawn independently."
            )
    if x0.dim() == 0 or x1.dim() == 0 or x0.shape[0] != x1.shape[0]:
        raise ValueError(
            f"{name}(x0 of shape {list(x0.shape)}, x1 of shape {list(x1.shape)}): one base sample goes with one data "
            f"sample, so both need the same number of rows; draw as many base samples as there are data samples."
        )
    parts = context if isinstance(context, dict) else {"context": context}
    for which, value in parts.items():
        if isinstance(value, dict):
            check_rows(name, x0, x1, value)
        elif value is not None and (value.dim() == 0 or value.shape[0] != x1.shape[0]):
            raise ValueError(
                f"{name}({which} of shape {list(value.shape)}): each of the {x1.shape[0]} rows of x1 has its own row "
                f"of context; pass a tensor of shape [{x1.shape[0]}, *context] or None."
            )


def take_rows(context: Context, index: Tensor) -> Context:
    """Picks rows of a context, in every part of it."""
    return on_tensors(lambda part: part[index.to(part.device)], context)
