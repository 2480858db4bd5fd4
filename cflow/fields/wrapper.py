"""A field around a field."""

from __future__ import annotations

from torch import Tensor, nn

from cflow.fields.base import Field
from cflow.fields.contract import Forwarding

__all__ = ["FieldWrapper"]


class FieldWrapper(Forwarding, Field):
    """Wraps a field and forwards its whole contract; subclasses override what they change.

    An attribute of the contract is changed by one of the class, or by a property. A class that writes its own
    ``forward`` has no divergence in closed form until it also writes ``value_and_divergence``, as for every
    :class:`Field`.

    Args:
        field: the field inside, or a foreign network.

    Shapes: as the field's. Cost: one call of the field.

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

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        # Foreign networks of one time need not know of a second one.
        return self.field(t, x, context) if s is None else self.field(t, x, context, s=s)

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes the inner field's value and divergence in closed form."""
        return Forwarding.value_and_divergence(self, t, x, context)
