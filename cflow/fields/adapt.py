"""An adapter that makes a field from any network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cflow.fields.base import Field, check_outputs
from cflow.registry import register

__all__ = ["Adapted"]


@register("fields.Adapted")
class Adapted(Field):
    """Wraps any network as a field, in one line.

    The function ``call(network, t, x, context)`` calls the network; it always receives ``t`` as ``[B]``. A function
    cannot be saved. For a field that can be saved, derive a class from :class:`Field`, write the call in its
    ``forward``, and register it with ``@cflow.register``.

    Args:
        network: the module; its parameters become parameters of the field.
        call: a function ``call(network, t, x, context) -> like x``.
        event_shape: the shape of one sample.
        context_shape: the shape of one context; None for an unconditional network.
        null: the context that means "no condition": a number, or a tensor of shape ``context_shape``.
        outputs: how many tensors like ``x`` the network returns; its result is ``[B, outputs, *event_shape]`` for more
            than one.
        reads_time: whether the network reads ``t``. With False, a sampler of tokens may use one evaluation for several
            times.

    Shapes: ``t`` ``[]`` or ``[B]``; ``x`` ``[B, *event_shape]``; context ``[B, *context_shape]`` -> like ``x``, or
    logits ``[B, *event_shape, K]`` if ``x`` are tokens (integers).

    Raises:
        ValueError: if the network's result has the wrong shape, or ``null`` does not fit ``context_shape``.

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
        reads_time: bool = True,
    ):
        super().__init__(event_shape, context_shape)
        if null is not None and self.context_shape is None:
            raise ValueError(
                "Adapted(null=...) without context_shape: this network is unconditional; pass context_shape=..., or "
                "omit null."
            )
        if isinstance(null, Tensor) and null.shape not in (torch.Size(()), self.context_shape):
            raise ValueError(
                f"Adapted(null of shape {list(null.shape)}): context_shape is {tuple(self.context_shape)}; pass a "
                f"number, or a tensor of this shape."
            )
        check_outputs("Adapted", outputs)
        self.network, self.call, self.outputs, self.reads_time = network, call, outputs, reads_time
        if isinstance(null, Tensor):
            self.register_buffer("null", null)
        else:
            self.null = null

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        t = self.check(t, x, context, s)
        tokens = not x.is_floating_point()
        result = self.call(self.network, (t if tokens else t.to(x.dtype)).expand(x.shape[0]), x, context)
        if tokens:
            return self._logits(result, x)
        wanted = x.shape if self.outputs == 1 else (x.shape[0], self.outputs, *self.event_shape)
        if result.shape != wanted:
            raise ValueError(
                f"Adapted(outputs={self.outputs}): the network returned shape {list(result.shape)} for x of shape "
                f"{list(x.shape)}, not {list(wanted)}; select or reshape its result in call."
            )
        return result.to(x.dtype)

    @staticmethod
    def _logits(result: Tensor, x: Tensor) -> Tensor:
        if result.shape[:-1] != x.shape or not result.is_floating_point():
            raise ValueError(
                f"Adapted: the network returned {result.dtype} of shape {list(result.shape)} for tokens of shape "
                f"{list(x.shape)}; return one logit for each value of a token, {[*x.shape, 'K']}, in call."
            )
        return result

    def null_context(self, context: Tensor) -> Tensor:
        """Returns a context that means "no condition", shaped like ``context``: ``null``, repeated for every row."""
        if self.context_shape is None:
            return super().null_context(context)
        if self.null is None:
            raise ValueError(
                'Adapted.null_context: this network has no context for "no condition"; build it with '
                "Adapted(..., null=...)."
            )
        if not isinstance(self.null, Tensor):
            return torch.full_like(context, self.null)
        return self.null.to(context).expand_as(context)
