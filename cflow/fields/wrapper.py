"""A base class of wrappers around a field."""

from __future__ import annotations

from torch import Tensor, nn

from cflow.fields.base import Field
from cflow.fields.contract import Forwarding

__all__ = ["FieldWrapper"]


class FieldWrapper(Forwarding, Field):
    """Wraps a field and forwards its whole contract; subclasses override what they change.

    A subclass changes an attribute of the contract with a class attribute or a property. As for every :class:`Field`, a
    subclass with its own ``forward`` has no divergence in closed form unless it also writes ``value_and_divergence``.
    It is not self-conditioned unless its ``forward`` has the argument ``previous``.

    Args:
        field: the field inside, or any other network.

    Shapes: those of the field inside. Cost: one function evaluation (NFE).

    Example:
        >>> import torch
        >>> from cflow.fields import MLP
        >>> class Halved(FieldWrapper):
        ...     def forward(self, t, x, context=None, *, s=None):
        ...         return super().forward(t, x, context, s=s) / 2
        >>> field = Halved(MLP(2, classes=10))
        >>> field.classes, field.null_context(torch.tensor([3]))
        (10, tensor([10]))
    """

    def __init__(self, field: nn.Module):
        nn.Module.__init__(self)
        self.field = field

    def forward(
        self,
        t: Tensor,
        x: Tensor,
        context: Tensor | None = None,
        *,
        s: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """Calls the field inside with ``t``, ``x``, ``context``, and with ``s`` and ``previous`` if they are passed."""
        # Other networks of one time may have no argument s, and those without self-conditioning no previous.
        given = {name: each for name, each in (("s", s), ("previous", previous)) if each is not None}
        return self.field(t, x, context, **given)

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes the inner field's value and divergence in closed form, at ``(t, x, context)``."""
        return Forwarding.value_and_divergence(self, t, x, context)
