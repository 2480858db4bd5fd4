"""The contract of families of monotone functions of one variable, and the two simplest families."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cflow.registry import register

__all__ = ["Additive", "Affine", "Univariate", "soft_clamp"]


class Univariate(nn.Module):
    r"""Maps numbers by a monotone function with ``size`` parameters, the raw numbers :math:`\theta`.

    .. math:: z = g(x; \theta), \qquad \text{encode} = (z, \log g'(x)), \qquad \text{decode} = (x, -\log g'(x))

    A family is independent of features and networks. A structure (:class:`Coupling`, :class:`Autoregressive`,
    :class:`Elementwise`) computes the raw numbers by a network; they may be any real numbers. For ``raw = 0``, where
    structures start, the function is the identity if the family contains it, and otherwise close to it.

    Shapes: ``x [...]``, ``raw [..., size]``; both results are ``[...]`` like ``x``. ``raw`` has the dtype of ``x``
    or a narrower one, and all computation is in that of ``x``, float32 or wider. A family may have learned parameters,
    which all entries share; the result of an entry never depends on other entries.

    Example:
        >>> class Scale(Univariate):
        ...     size = 1
        ...
        ...     def encode(self, x, raw):
        ...         return x * raw[..., 0].exp(), raw[..., 0]
        ...
        ...     def decode(self, z, raw):
        ...         return z * (-raw[..., 0]).exp(), -raw[..., 0]
        >>> from cflow.discrete import Coupling
        >>> Coupling(Scale(), features=4).encode(torch.ones(1, 4))[0]
        tensor([[1., 1., 1., 1.]], grad_fn=...)
    """

    size: int
    """Number of raw numbers of one function."""

    period: float | None = None
    """Length of the circle that the family maps onto itself; None for maps of the line."""

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Maps data ``x`` to latents by the function of ``raw``: ``(z, log dz/dx)``, both like ``x``."""
        raise TypeError(f"{type(self).__qualname__} does not define encode.")

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Maps latents ``z`` to data by the function of ``raw``: ``(x, log dx/dz)``, both like ``z``."""
        raise TypeError(f"{type(self).__qualname__} does not define decode.")


@register("discrete.Additive")
class Additive(Univariate):
    r"""Shifts numbers: :math:`z = x + \theta_1`, which preserves the volume.

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
    r"""Scales and shifts numbers, with a soft limit of the log-scale.

    .. math:: z = x \, e^{s} + \theta_2, \qquad s = a \tanh(\theta_1 / a), \qquad a = \texttt{clamp}

    The scale stays within :math:`[e^{-a}, e^{a}]` for any output of the network, so that deep flows do not overflow.
    For small outputs :math:`s \approx \theta_1`.

    Args:
        clamp: largest log-scale, up and down; ``inf`` for no limit.

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
            raise ValueError(f"Affine(clamp={clamp}): clamp must be positive; pass 5.0, or inf for no limit.")
        self.clamp = clamp

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self._parts(raw, x.dtype)
        return x * scale.exp() + shift, scale  # addcmul is an order slower where raw numbers are strided

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self._parts(raw, z.dtype)
        ladj = -scale
        return (z - shift) * ladj.exp(), ladj

    def _parts(self, raw: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the logarithm of the scale, and the shift."""
        scale, shift = raw.to(dtype).unbind(-1)
        return soft_clamp(scale, self.clamp), shift

    def extra_repr(self) -> str:
        return f"clamp={self.clamp}"


def soft_clamp(value: Tensor, limit: float) -> Tensor:
    """Limits numbers smoothly to ``[-limit, limit]``; near zero, or for an infinite limit, it is the identity."""
    return value if math.isinf(limit) else torch.tanh(value * (1 / limit)) * limit
