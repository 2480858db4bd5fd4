"""The divergence in closed form, for networks that have one."""

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
    r"""Computes the divergence by the closed form of the field; equals :class:`Exact` up to rounding.

    The field needs a method ``value_and_divergence(t, x, context) -> (v, divergence [B])`` (see
    :class:`cflow.fields.Field`). ``fields.MLP``, ``fields.ConcatSquash`` and ``fields.Potential`` have one. It extends
    to predictions of ``x1``, ``noise`` or ``score`` on an affine path, and to ``guidance.ClassifierFree`` and
    ``guidance.AutoGuidance`` of such fields.

    Shapes: ``x`` ``[B, *event]``; the divergence is ``[B]``, float32 at least; there is no Frobenius norm (None).

    Cost: that of the field's method. With two hidden layers of width H this is at most one more evaluation for any D,
    and a product of weights, ``H^2 D``, which is noticeable in batches smaller than some hundreds. The value needs no
    graph; its gradient is one backward pass, while other divergences need a double one.

    Raises:
        TypeError: if the field has no such method.
        ValueError: if the method does not support the field's configuration.

    Example:
        >>> from cflow.fields import MLP
        >>> v, div, _ = Analytic()(MLP(2, hidden=(8, 8)), torch.tensor(0.5), torch.ones(3, 2), None)
        >>> v.shape, div.shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    exact: ClassVar[bool] = True
    frobenius: ClassVar[bool] = False

    def begin(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Returns None, no probe; ``generator`` is not used."""
        return None

    def __call__(self, f, t, x, probe, *args):
        """Computes ``f(t, x, *args)`` and its divergence; ``probe`` is not used."""
        return *as_field(f).value_and_divergence(t, x, *args), None
