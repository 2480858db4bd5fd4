"""A field that is integrated over a learned length of time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cflow.fields.contract import Forwarding, as_field
from cflow.fields.embedding import shared_time
from cflow.fields.wrapper import FieldWrapper
from cflow.registry import register

__all__ = ["EndTime", "Lengthened"]


class Lengthened(Forwarding):
    """A field on ``[1 - length, 1]``, rescaled to [0, 1]: ``length * field(1 - length * (1 - t), x, context)``."""

    def __init__(self, field, length: Tensor | float):
        self.field, self.length = field, length

    def __call__(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.length * self.field(self._time(t), x, context)

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes the field and its divergence in closed form, at ``(t, x, context)``."""
        v, divergence = as_field(self.field).value_and_divergence(self._time(t), x, context)
        return self.length * v, self.length * divergence

    def _time(self, t: Tensor) -> Tensor:
        # A time that all rows share stays one number, which fields embed once.
        shared = shared_time(t)
        return 1 - self.length * (1 - (shared[0] if len(shared) == 1 else t))


@register("fields.EndTime")
class EndTime(FieldWrapper):
    r"""Wraps a field and learns the length of the time interval over which it is integrated.

    .. math:: v(t, x) = T \, f\bigl(1 - T (1 - t), x\bigr), \qquad T = e^\theta > 0

    Integrating ``v`` over [0, 1] equals integrating ``f`` over :math:`[1 - T, 1]`: the data stay at ``t = 1``, the base
    moves to ``t = 1 - T``, and solver and flow do not change. ``T`` is an ordinary parameter that is learned by maximum
    likelihood (``objectives.FFJORD``). A flow with a path fixes the time of the base, so there ``T`` is not needed.

    Args:
        field: the field that is integrated; it is evaluated at times from ``1 - T`` to 1.
        initial: the length before training.

    Shapes: those of the field inside. Cost: one function evaluation (NFE) and two operations.

    Raises:
        ValueError: if ``initial`` is not positive, or the field reads two times.
        TypeError: if the field does not declare its shapes.

    Source: Grathwohl et al., FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models, 2018,
    arXiv:1810.01367, where the end time is among the parameters.

    Example:
        >>> from cflow.fields import MLP
        >>> field = EndTime(MLP(2), initial=0.5)
        >>> field.length
        tensor(0.5000, grad_fn=<ExpBackward0>)
        >>> field(torch.tensor(0.5), torch.zeros(4, 2)).shape
        torch.Size([4, 2])
    """

    def __init__(self, field: nn.Module, initial: float = 1.0):
        if as_field(field).event_shape is ...:
            raise TypeError(
                f"EndTime(field={type(field).__name__}): this network does not declare its event_shape; wrap it as "
                f"fields.Adapted(...)."
            )
        if not 0 < initial < math.inf:
            raise ValueError(f"EndTime(initial={initial}): a length of time is positive; pass a number such as 1.0.")
        if as_field(field).two_times:
            raise ValueError(
                f"EndTime(field={type(field).__name__}): a field of two times is not integrated; pass a field of one "
                f"time."
            )
        super().__init__(field)
        self.initial = initial
        self.logarithm = nn.Parameter(torch.tensor(math.log(initial)))

    @property
    def length(self) -> Tensor:
        """The length of the time interval, ``T``."""
        return self.logarithm.exp()

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        t = self.check(t, x, context, s)
        return Lengthened(self.field, self.length)(t, x, context)

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes the field and its divergence at ``(t, x, context)``, if the field inside has a closed form."""
        t = self.check(t, x, context)
        return Lengthened(self.field, self.length).value_and_divergence(t, x, context)
