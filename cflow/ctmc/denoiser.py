"""The denoiser of a token flow as a field, which guidance can change."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from cflow.fields.contract import Forwarding
from cflow.shapes import Value

__all__ = ["Denoiser", "check_call", "scales_rates"]

IMPOSSIBLE = 1e4
"""The logarithm of odds that are as good as zero, with squares that do not overflow in float32."""


def check_call(denoiser: nn.Module) -> None:
    """Raises a TypeError if a denoiser cannot be called as ``denoiser(t, x, context)``."""
    try:
        signature = inspect.signature(denoiser.forward)
    except ValueError:  # compiled code shows no arguments
        return
    try:
        taken = list(signature.bind("t", "x", None).arguments)
    except TypeError:
        taken = []
    if not taken or taken[:2] == ["x", "t"]:
        raise TypeError(
            f"TokenFlow(denoiser={type(denoiser).__name__}): forward{signature!s:.50} is not one of (t, x, context); "
            f"wrap it: fields.Adapted(network, lambda net, t, x, context: net(x), event_shape=...)."
        )


def scales_rates(guidance: Any) -> bool:
    """Returns whether a guidance changes how fast tokens jump; no guidance does not."""
    return getattr(guidance, "scales_rates", False)


class Denoiser(Forwarding):
    """The denoiser of a flow, as a field that guidance can change.

    With ``finite`` its logits are finite, so that their differences exist: a token that is impossible with and without
    the condition stays impossible.
    """

    def __init__(self, flow: Any, finite: bool = False, log_probs: bool = False):
        self.field, self.flow, self.finite, self.log_probs = flow.denoiser, flow, finite, log_probs
        self.states = flow.source.states
        self.event_shape, self.context_shape = flow.model_shape, flow.context_shape
        self.null_context = flow.null_context

    event_shape = context_shape = ...

    def __call__(
        self, t: Tensor, x: Tensor, context: Value | None = None, *, s=None, previous: Tensor | None = None
    ) -> Tensor:
        t = torch.as_tensor(t, device=x.device).expand(len(x))
        logits, path = self.flow.predict(t, x, context, s=s, previous=previous), self.flow.path
        if self.log_probs and path.source.absorbing:  # tokens that are carried over do not jump
            logits = torch.log_softmax(logits, -1)
        elif self.log_probs:
            logits = path.posterior(logits, x, t).log_probs("denoiser", dtype=logits.dtype)
        return torch.maximum(logits, logits.amax(-1, keepdim=True) - IMPOSSIBLE) if self.finite else logits
