"""What planar, radial and Sylvester flows share: one row of parameters, which a context may move."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from cflow.bijections import Bijection
from cflow.bijections.matrices import without_autocast

__all__ = ["Push", "parameters_of"]


class Push(Bijection):
    """Holds the width of an event and that of a context, 0 for none, after a look at both."""

    def __init__(self, features: int, context: int):
        if features < 1 or context < 0:
            name = type(self).__name__
            raise ValueError(
                f"{name}(features={features}, context={context}): an event has at least one feature, and a context no "
                f"negative width; pass for example {name}(2)."
            )
        super().__init__(features, context or None)
        self.features, self.context = features, context

    def extra_repr(self) -> str:
        return f"features={self.features}" + (f", context={self.context}" if self.context else "")


def parameters_of(value: Tensor, context: Tensor | None, parts: tuple[Tensor, ...], weight: Tensor | None) -> Tensor:
    """Joins parameters to one row, or to one per sample, moved by a linear function of its context."""
    raw = torch.cat([part.to(value.dtype) for part in parts])
    if context is None:
        return raw[None]
    with without_autocast(value):
        return linear(context.to(value.dtype), weight.to(value.dtype), raw)
