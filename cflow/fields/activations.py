"""Smooth activations by name, and their derivatives."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "value_and_slope"]

# Above this softplus is the identity. torch's default of 20 makes a kink of 2e-9, which is visible in float64.
THRESHOLD = 40

# All are smooth: a divergence differentiates the field once, and training through it twice.
ACTIVATIONS = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "softplus": partial(nn.Softplus, threshold=THRESHOLD),
    "mish": nn.Mish,
}


def value_and_slope(activation: str, a: Tensor) -> tuple[Tensor, Tensor]:
    """Computes an activation and its derivative, entry by entry.

    Shapes: ``a`` of any shape -> two tensors of this shape: the value in the dtype of ``a``, and the derivative in
    float32 or better. Both are differentiable. Cost: two to eight elementwise operations.

    Example:
        >>> value_and_slope("tanh", torch.zeros(1))
        (tensor([0.]), tensor([1.]))
    """
    z = a.to(torch.promote_types(a.dtype, torch.float32))
    match activation:
        case "tanh":
            h = torch.tanh(z)
            slope = 1 - h.square()
        case "softplus":
            h, slope = F.softplus(z, threshold=THRESHOLD), torch.sigmoid(z)
        case "silu":
            h = F.silu(z)
            slope = torch.sigmoid(z) * (1 + z - h)
        case "gelu":
            h = F.gelu(z)
            slope = torch.special.ndtr(z).addcmul(z, torch.exp(-0.5 * z.square()), value=1 / math.sqrt(2 * math.pi))
        case "mish":
            h, squashed = F.mish(z), torch.tanh(F.softplus(z, threshold=THRESHOLD))
            slope = squashed.addcmul(z * torch.sigmoid(z), 1 - squashed.square())
    return h.to(a.dtype), slope
