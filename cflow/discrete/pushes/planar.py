"""Flows that move points along one direction, by a function of the projection on another."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cflow.discrete.pushes.push import Push, parameters_of
from cflow.discrete.univariate.rootfinding import invert
from cflow.registry import register

__all__ = ["Planar"]

SHIFT = math.log(math.e - 1)  # softplus(SHIFT) = 1
ITERATIONS = 10


@register("discrete.Planar")
class Planar(Push):
    r"""Moves points along one direction by a function of the projection on another.

    .. math:: z = x + \hat u \tanh(a), \quad a = w^\top x + b, \qquad
        \log|\det| = \log\bigl(1 + m \operatorname{sech}^2 a\bigr), \quad m = w^\top \hat u

    It is invertible where :math:`m > -1`, so u is corrected along w to have
    :math:`m = \operatorname{softplus}(w^\top u + \log(e - 1)) - 1`. Unlike the paper's choice this is 0 for u = 0, so
    the map starts at the identity (u at zero, w at random).

    ``encode`` is the closed form; ``decode`` solves one monotone equation per sample,
    :math:`a + m \tanh a = w^\top z + b`, to the last digits. In variational inference, samples of the posterior come
    from ``decode``: use ``Inverse(Planar(...))`` there.

    Args:
        features: length of an event.
        context: width of a context on which w, u and b depend linearly; 0 for none.

    Shapes: ``x [B, features]``, ``context [B, context]``.

    Cost: ``encode`` takes a few operations on ``[B, features]``; ``decode`` also takes ten Newton steps on ``[B]``.

    Raises:
        ValueError: if ``features`` is not positive or ``context`` is negative.

    Source: Rezende and Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv:1505.05770, section 4.1 and
    appendix A.1.

    Example:
        >>> layer = Planar(2)
        >>> z, ladj = layer.encode(torch.ones(3, 2))
        >>> z[0], ladj
        (tensor([1., 1.], grad_fn=...), tensor([0., 0., 0.], grad_fn=...))
    """

    def __init__(self, features: int, context: int = 0):
        super().__init__(features, context)
        self.w = nn.Parameter(torch.randn(features) * features**-0.5)
        self.u, self.b = nn.Parameter(torch.zeros(features)), nn.Parameter(torch.zeros(1))
        self.weight = nn.Parameter(torch.zeros(2 * features + 1, context)) if context else None

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, context = self.accept(x, context, "encode")
        w, push, b, product = self._parts(x, context)
        a = (x * w).sum(-1) + b
        return x + push * torch.tanh(a)[:, None], log_slope(a, product)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, context = self.accept(z, context, "decode")
        w, push, b, product = self._parts(z, context)
        a, ladj = undo_push((z * w).sum(-1) + b, product)
        return z - push * torch.tanh(a)[:, None], ladj

    def _parts(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """Returns w, the corrected u, b, and the raw number whose :func:`excess` is m."""
        raw = parameters_of(value, context, (self.w, self.u, self.b), self.weight)
        w, u, b = raw.split([self.features, self.features, 1], -1)
        product = (w * u).sum(-1)
        # For w = 0 the correction is zero: m = 0 = product, whatever the divisor.
        square = w.square().sum(-1).clamp(min=torch.finfo(w.dtype).tiny)
        push = u + ((excess(product) - product) / square)[:, None] * w
        return w, push, b.squeeze(-1), product


def positive(raw: Tensor) -> Tensor:
    """Maps the line to the positive numbers, and 0 to 1."""
    return (-logsigmoid(-(raw + SHIFT))).clamp(min=torch.finfo(raw.dtype).tiny)


def excess(raw: Tensor) -> Tensor:
    """Maps the line to the numbers above -1, and 0 to 0."""
    near = raw < 1
    close = torch.log1p((1 - 1 / math.e) * torch.expm1(torch.where(near, raw, 0.0)))
    return torch.where(near, close, positive(raw) - 1)


def log_slope(a: Tensor, raw: Tensor) -> Tensor:
    r"""Computes :math:`\log(1 + m \operatorname{sech}^2 a)`, m the excess of ``raw``.

    Where m may be close to -1 it is :math:`\log(\tanh^2 a + (1 + m) \operatorname{sech}^2 a)`, whose terms are
    positive.
    """
    m = excess(raw)
    usual = m > -0.5
    sech_square = (math.log(4.0) + logsigmoid(2 * a) + logsigmoid(-2 * a)).exp()
    steep = torch.tanh(a).square() + positive(raw) * sech_square
    return torch.where(
        usual,
        torch.log1p(torch.where(usual, m, 0.0) * sech_square),
        steep.clamp(min=torch.finfo(a.dtype).tiny).log(),
    )


def undo_push(target: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    r"""Solves :math:`a + m \tanh a = t` with m the excess of ``raw``; returns a and the logarithm of da/dt.

    Newton's method starts at a bound from which it converges from one side. For t > 0 the left side is concave if
    m > 0 and convex if m < 0, so it starts at a lower or an upper bound.
    """
    function = lambda a: (a + excess(raw) * torch.tanh(a), log_slope(a, raw))
    with torch.no_grad():
        m, size = excess(raw), target.abs()
        near, far = _bounds(size, m, positive(raw))
        near, far = near.copysign(target), far.copysign(target)
        margin = 1e-3 * (1 + size)
        low, high = torch.minimum(near, far) - margin, torch.maximum(near, far) + margin
    return invert(function, target, torch.where(m > 0, near, far), low=low, high=high, iterations=ITERATIONS)


def _bounds(t: Tensor, m: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a lower and an upper bound of the root, for t of zero or more; ``slope`` is 1 + m."""
    # Where m > 0: tanh a <= a for the upper bound; with it, tanh a = (t - a) / m results in a lower bound.
    strength = m.clamp(min=torch.finfo(m.dtype).eps)
    inside = 1 - torch.finfo(m.dtype).eps
    above = torch.minimum(t, (t - m).clamp(min=0) + 0.5 * torch.log1p(2 * strength) + 1)
    above = torch.minimum(above, torch.where(t < inside * slope, (t / slope).clamp(max=inside).atanh(), math.inf))
    below = torch.maximum(t - m, ((t - above) / strength).clamp(max=inside).atanh())
    # Where m < 0: |tanh| <= 1 and tanh a <= a, and a - tanh a >= 0.238 a^3 up to a = 1, for m close to -1.
    flat = torch.where(t < 0.238, (4.21 * t) ** (1 / 3), math.inf)
    steep = torch.minimum(torch.minimum(t - m, t / slope), flat)
    return torch.where(m > 0, torch.maximum(below, t / slope), t), torch.where(m > 0, above, steep)
