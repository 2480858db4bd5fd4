"""The divergence in closed form, where the network allows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cflow.divergence.divergence import Divergence
from cflow.fields.contract import as_field
from cflow.registry import register

__all__ = ["Analytic"]


@register("divergence.Analytic")
@dataclass(frozen=True)
class Analytic(Divergence):
    r"""Asks the field for its divergence in closed form, to rounding that of :class:`Exact`.

    The field has a method ``value_and_divergence(t, x, context) -> (v, divergence [B])`` (see
    :class:`cflow.fields.Field`). ``fields.MLP``, ``fields.ConcatSquash`` and ``fields.Potential`` have one, a velocity
    predicted as ``x1``, ``noise`` or ``score`` on an affine path follows from it, and so does what
    ``guidance.ClassifierFree`` and ``guidance.AutoGuidance`` make of such fields.

    Shapes: ``x`` ``[B, *event]``; the divergence is ``[B]``, float32 at least; there is no Frobenius norm (None).

    Cost: that of the field's method; with two hidden layers of width H one evaluation more at most, whatever D, and
    a product of weights, ``H^2 D``, which shows in batches smaller than some hundreds. No graph is needed for the
    value; its gradient is one backward pass, where that of the other divergences is a double one.

    Raises:
        TypeError: if the field has no such method.
        ValueError: if it has one, and none for how it was built.

    Example:
        >>> from cflow.fields import MLP
        >>> v, div, _ = Analytic()(MLP(2, hidden=(8, 8)), torch.tensor(0.5), torch.ones(3, 2), None)
        >>> v.shape, div.shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    exact: ClassVar[bool] = True
    frobenius: ClassVar[bool] = False

    def begin(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Draws nothing."""
        return None

    def __call__(self, f, t, x, probe, *args):
        """Evaluates the field and its divergence."""
        return *as_field(f).value_and_divergence(t, x, *args), None
