"""The contract of couplings, and the checks that they share."""

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
    """Pairs base samples with data samples: the contract that every coupling fulfils.

    Attributes:
        draws_base: True if ``x0`` is drawn from the base for every batch; False if the data are pairs, which a method
            ``split`` separates into ``(x0, x1)``.
        independent: True if a base sample is independent of its data sample, so that the score follows from the
            velocity.
        prepares_ahead: True if pairing is slow enough to be worth a thread that prepares batches ahead of the step.

    Example:
        >>> class Reversed:
        ...     draws_base, independent, prepares_ahead = True, False, False
        ...
        ...     def __call__(self, x0, x1, context=None, generator=None):
        ...         return x0.flip(0), x1, context
        >>> coupling = Reversed()
        >>> isinstance(coupling, Coupling)
        True
        >>> coupling(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))[0]
        tensor([2., 1.])
    """

    draws_base: bool
    independent: bool
    prepares_ahead: bool

    def __call__(
        self, x0: Tensor, x1: Tensor, context: Context = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Context]:
        """Returns ``(x0, x1, context)`` with rows paired.

        Args:
            x0: base samples ``[B, *event]``.
            x1: data samples ``[B, *event]``.
            context: the conditions of the data samples ``[B, ...]``, or a dict of such tensors; a row of it stays with
                its row of ``x1``. Default: None, no condition.
            generator: the source of random numbers. Default: None, torch's default generator.
        """
        ...


def check_rows(name: str, x0: Tensor, x1: Tensor, context: Context, generator=None) -> None:
    """Raises if base samples, data samples and context are not tensors or differ in their number of rows.

    Also raises if ``generator`` is not a generator.
    """
    check_generator(name, generator)
    for which, value in (("x0", x0), ("x1", x1)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name}({which}={type(value).__name__}): couplings pair tensors of shape [B, *event]; pass a tensor."
            )
    if x0.dim() == 0 or x1.dim() == 0 or x0.shape[0] != x1.shape[0]:
        raise ValueError(
            f"{name}(x0 of shape {list(x0.shape)}, x1 of shape {list(x1.shape)}): both need the same number of rows; "
            f"draw one base sample per data sample."
        )
    parts = context if isinstance(context, dict) else {"context": context}
    for which, value in parts.items():
        if isinstance(value, dict):
            check_rows(name, x0, x1, value)
        elif value is not None and (value.dim() == 0 or value.shape[0] != x1.shape[0]):
            raise ValueError(
                f"{name}({which} of shape {list(value.shape)}): a context has one row for each of the {x1.shape[0]} "
                f"rows of x1; pass [{x1.shape[0]}, *context] or None."
            )


def take_rows(context: Context, index: Tensor) -> Context:
    """Selects rows of a context, in each of its parts."""
    return on_tensors(lambda part: part[index.to(part.device)], context)
