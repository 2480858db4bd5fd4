"""Shared parts of planar, radial and Sylvester flows: one row of parameters, which may depend on a context."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from cflow.bijections import Bijection
from cflow.bijections.matrices import without_autocast

__all__ = ["Push", "parameters_of"]


class Push(Bijection):
    """Checks and keeps the length of an event and the width of a context, 0 for none."""

    def __init__(self, features: int, context: int):
        if features < 1 or context < 0:
            name = type(self).__name__
            raise ValueError(
                f"{name}(features={features}, context={context}): features must be 1 or more and context 0 or more; "
                f"pass for example {name}(2)."
            )
        super().__init__(features, context or None)
        self.features, self.context = features, context

    def extra_repr(self) -> str:
        return f"features={self.features}" + (f", context={self.context}" if self.context else "")


def parameters_of(value: Tensor, context: Tensor | None, parts: tuple[Tensor, ...], weight: Tensor | None) -> Tensor:
    """Joins parameters to one row, or, with a context, to one row per sample that depends linearly on it."""
    raw = torch.cat([part.to(value.dtype) for part in parts])
    if context is None:
        return raw[None]
    with without_autocast(value):
        return linear(context.to(value.dtype), weight.to(value.dtype), raw)
