"""Families of monotone functions of one variable, from which couplings and autoregressive layers are made."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cflow.registry import register

__all__ = ["Additive", "Affine", "Univariate", "soft_clamp"]


class Univariate(nn.Module):
    r"""Maps numbers by a monotone function whose shape ``size`` raw numbers choose.

    .. math:: z = g(x; \theta), \qquad \text{encode} = (z, \log g'(x)), \qquad \text{decode} = (x, -\log g'(x))

    A family knows nothing of features or networks: a structure (:class:`Coupling`, :class:`Autoregressive`,
    :class:`Elementwise`) asks a network for the raw numbers, which may be any real numbers. With ``raw = 0``, where
    structures start, the function is the identity if the family holds it, and otherwise a function near it.

    Shapes: ``x [...]``, ``raw [..., size]``; both results are ``[...]`` like ``x``. ``raw`` has the dtype of ``x``
    or a narrower one, and all computation is in that of ``x``, float32 or better. A member may have parameters of its
    own, which all entries share; it never depends on other entries.
    """

    size: int
    """How many raw numbers one function takes."""

    period: float | None = None
    """The length of the circle that the family maps onto itself; None for maps of the line."""

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Maps data to latents: ``(z, log dz/dx)``, both like ``x``."""
        raise TypeError(f"{type(self).__qualname__} does not define encode.")

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Maps latents to data: ``(x, log dx/dz)``, both like ``z``."""
        raise TypeError(f"{type(self).__qualname__} does not define decode.")


@register("discrete.Additive")
class Additive(Univariate):
    r"""Shifts: :math:`z = x + \theta_1`, volume-preserving.

    Source: Dinh et al., NICE: Non-linear Independent Components Estimation, 2014, arXiv:1410.8516.

    Example:
        >>> Additive().encode(torch.tensor([1.0]), torch.tensor([[0.5]]))
        (tensor([1.5000]), tensor([0.]))
    """

    size = 1

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return x + raw.squeeze(-1), torch.zeros_like(x)

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return z - raw.squeeze(-1), torch.zeros_like(z)


@register("discrete.Affine")
class Affine(Univariate):
    r"""Scales and shifts, with a softly clamped logarithm of the scale.

    .. math:: z = x \, e^{s} + \theta_2, \qquad s = a \tanh(\theta_1 / a), \qquad a = \texttt{clamp}

    The scale stays within :math:`[e^{-a}, e^{a}]` however large the network's output grows, which is what keeps deep
    stacks from overflowing; for small outputs, :math:`s = \theta_1`.

    Args:
        clamp: the largest logarithm of a scale; ``inf`` for none.

    Raises:
        ValueError: if ``clamp`` is not positive.

    Source: Dinh et al., Density estimation using Real NVP, 2016, arXiv:1605.08803; the clamp after Ardizzone et al.,
    Guided Image Generation with Conditional Invertible Neural Networks, 2019, arXiv:1907.02392 (there with an arctan).

    Example:
        >>> z, ladj = Affine().encode(torch.tensor([1.0]), torch.tensor([[0.0, 2.0]]))
        >>> z, ladj
        (tensor([3.]), tensor([0.]))
    """

    size = 2

    def __init__(self, clamp: float = 5.0):
        super().__init__()
        if not clamp > 0:
            raise ValueError(f"Affine(clamp={clamp}): the largest log-scale is positive; pass 5.0, or inf for none.")
        self.clamp = clamp

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self._parts(raw, x.dtype)
        return x * scale.exp() + shift, scale  # addcmul is an order slower where raw numbers are strided

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self._parts(raw, z.dtype)
        ladj = -scale
        return (z - shift) * ladj.exp(), ladj

    def _parts(self, raw: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Gives the logarithm of the scale, and the shift."""
        scale, shift = raw.to(dtype).unbind(-1)
        return soft_clamp(scale, self.clamp), shift

    def extra_repr(self) -> str:
        return f"clamp={self.clamp}"


def soft_clamp(value: Tensor, limit: float) -> Tensor:
    """Keeps numbers within ``[-limit, limit]`` smoothly, and as they are near zero; an infinite limit keeps all."""
    return value if math.isinf(limit) else torch.tanh(value * (1 / limit)) * limit
