"""Somebody else's network as a field."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cflow.fields.base import Field, check_outputs
from cflow.registry import register

__all__ = ["Adapted"]


@register("fields.Adapted")
class Adapted(Field):
    """Adapts a foreign network to the contract of a field, in one line.

    ``call(network, t, x, context)`` says how the network is called; it always gets ``t`` as ``[B]``. A function
    cannot be saved: for a field that can, derive from :class:`Field`, write the call into ``forward``, and mark the
    class with ``@cflow.register``.

    Args:
        network: the foreign module; its parameters are the field's.
        call: ``call(network, t, x, context) -> like x``.
        event_shape: the shape of one sample.
        context_shape: the shape of one context; None where the network takes none.
        null: the context of "no condition": a number, or a tensor of shape ``context_shape``.
        outputs: how many tensors like ``x`` the network returns, ``[B, outputs, *event_shape]`` for more than one.

    Shapes: ``t`` ``[]`` or ``[B]``; ``x`` ``[B, *event_shape]``; context ``[B, *context_shape]`` -> like ``x``.

    Raises:
        ValueError: if the network's result is not shaped like ``x``, or ``null`` does not fit ``context_shape``.

    Example:
        >>> network = nn.Linear(3, 2)
        >>> field = Adapted(
        ...     network, lambda net, t, x, c: net(torch.cat([x, t[:, None]], -1)), event_shape=(2,))
        >>> field(torch.tensor(0.5), torch.zeros(4, 2)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        network: nn.Module,
        call: Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor],
        *,
        event_shape: int | Sequence[int],
        context_shape: int | Sequence[int] | None = None,
        null: Tensor | float | None = None,
        outputs: int = 1,
    ):
        super().__init__(event_shape, context_shape)
        if null is not None and self.context_shape is None:
            raise ValueError(
                "Adapted(null=...) without context_shape: an unconditional network has no condition to leave out; "
                "pass context_shape=... too, or leave null out."
            )
        if isinstance(null, Tensor) and null.shape not in (torch.Size(()), self.context_shape):
            raise ValueError(
                f"Adapted(null of shape {list(null.shape)}): the context of this network has shape "
                f"{tuple(self.context_shape)}; pass a number, or a tensor of that shape."
            )
        check_outputs("Adapted", outputs)
        self.network, self.call, self.outputs = network, call, outputs
        if isinstance(null, Tensor):
            self.register_buffer("null", null)
        else:
            self.null = null

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        t = self.check(t, x, context, s)
        result = self.call(self.network, t.to(x.dtype).expand(x.shape[0]), x, context)
        wanted = x.shape if self.outputs == 1 else (x.shape[0], self.outputs, *self.event_shape)
        if result.shape != wanted:
            raise ValueError(
                f"Adapted(outputs={self.outputs}): the network gave a result of shape {list(result.shape)} for x of "
                f"shape {list(x.shape)}, but a field gives one value per entry of x and head, {list(wanted)}; select "
                f"or reshape its result in call."
            )
        return result.to(x.dtype)

    def null_context(self, context: Tensor) -> Tensor:
        """Gives a context of the same shape that means "no condition": ``null``, repeated for every row."""
        if self.context_shape is None:
            return super().null_context(context)
        if self.null is None:
            raise ValueError(
                'Adapted.null_context: this network does not say what context means "no condition"; '
                "build it with Adapted(..., null=...), a number or a tensor of shape context_shape."
            )
        if not isinstance(self.null, Tensor):
            return torch.full_like(context, self.null)
        return self.null.to(context).expand_as(context)
