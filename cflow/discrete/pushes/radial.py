"""Flows that move points towards a centre or away from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cflow.discrete.pushes.planar import positive
from cflow.discrete.pushes.push import Push, parameters_of
from cflow.registry import register

__all__ = ["Radial"]


@register("discrete.Radial")
class Radial(Push):
    r"""Moves points towards a centre or away from it, by an amount that decreases with the distance.

    .. math:: z = x_0 + \frac{r + s}{r + \alpha} (x - x_0), \quad r = \lVert x - x_0 \rVert, \qquad
        \log|\det| = (D - 1) \log \frac{r + s}{r + \alpha} + \log \frac{r^2 + 2 \alpha r + \alpha s}{(r + \alpha)^2}

    which is :math:`x + \beta (x - x_0) / (\alpha + r)` with :math:`\beta = s - \alpha`; it is invertible where
    :math:`\alpha, s > 0`. Both are the softplus of a parameter, s in units of :math:`\alpha`, and equal to one where
    the parameter is zero: the map starts at the identity, with a random centre.

    ``decode`` has a closed form too, because only the distance changes: with :math:`R = \lVert z - x_0 \rVert`, r is
    the positive root of :math:`r^2 + (s - R) r - \alpha R = 0`.

    Args:
        features: length of an event, D.
        context: width of a context on which the centre and both parameters depend linearly; 0 for none.

    Shapes: ``x [B, features]``, ``context [B, context]``. Cost: a few operations on ``[B, features]``.

    Raises:
        ValueError: if ``features`` is not positive or ``context`` is negative.

    Source: Rezende and Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv:1505.05770, section 4.1 and
    appendix A.2.

    Example:
        >>> layer = Radial(2)
        >>> z, ladj = layer.encode(torch.ones(3, 2))
        >>> torch.allclose(z, torch.ones(3, 2)), ladj.shape
        (True, torch.Size([3]))
    """

    def __init__(self, features: int, context: int = 0):
        super().__init__(features, context)
        self.center = nn.Parameter(torch.randn(features))
        self.raw_reach, self.raw_pull = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.weight = nn.Parameter(torch.zeros(features + 2, context)) if context else None

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, context = self.accept(x, context, "encode")
        center, reach, pull = self._parts(x, context)
        away = x - center
        r = length(away)
        return center + away * ((r + pull) / (r + reach)), self._ladj(r, reach, pull)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, context = self.accept(z, context, "decode")
        center, reach, pull = self._parts(z, context)
        away = z - center
        distance = length(away)
        # The root is computed as a sum, or as a quotient where the sum would cancel. Lengths are in units of the
        # distance where its square would overflow.
        unit = unit_of(distance.detach())
        far, near = distance / unit, reach / unit
        half = 0.5 * (far - pull / unit)
        product = near * far
        root = (half.square() + product).sqrt()
        outside = half > 0
        r = unit * torch.where(outside, half + root, product / torch.where(outside, 1.0, root - half))
        return center + away * ((r + reach) / (r + pull)), -self._ladj(r, reach, pull)

    def _parts(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the centre, alpha and s."""
        raw = parameters_of(value, context, (self.center, self.raw_reach, self.raw_pull), self.weight)
        center, reach, pull = raw.split([self.features, 1, 1], -1)
        smallest = torch.finfo(raw.dtype).eps ** 2  # avoids a quotient of two zeros
        reach = positive(reach).clamp(min=smallest)
        return center, reach, (reach * positive(pull)).clamp(min=smallest * smallest)

    def _ladj(self, r: Tensor, reach: Tensor, pull: Tensor) -> Tensor:
        whole = r + reach
        # Quotients first: squares of small numbers would underflow.
        slope = (r / whole) * ((r + 2 * reach) / whole) + (reach / whole) * (pull / whole)
        return ((self.features - 1) * ((r + pull) / whole).log() + slope.log()).squeeze(-1)


def unit_of(size: Tensor) -> Tensor:
    """Returns a unit in which a square does not overflow: the size itself above 1e15, otherwise one."""
    return torch.where(size > 1e15, size, 1.0)


def length(vector: Tensor) -> Tensor:
    """Computes the lengths ``[B, 1]`` of vectors of any size."""
    unit = unit_of(vector.detach().abs().amax(-1, keepdim=True))
    return unit * torch.linalg.vector_norm(vector / unit, dim=-1, keepdim=True)
