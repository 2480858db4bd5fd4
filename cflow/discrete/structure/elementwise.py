"""Elementwise layers: each feature has its own function, learned or dependent on the context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cflow.bijections import Bijection, Cost
from cflow.discrete.structure.conditioner import Conditioner
from cflow.discrete.univariate.family import Univariate
from cflow.keywords import widths_of
from cflow.registry import register

__all__ = ["Elementwise"]


@register("discrete.Elementwise")
class Elementwise(Bijection):
    r"""Maps every feature by a univariate function that does not depend on other features.

    .. math:: z_i = g(x_i; \theta_i), \qquad \log|\det| = \sum_i \log g'(x_i; \theta_i)

    Without a context the raw numbers :math:`\theta` are parameters; with a context, a network computes them from it.
    Layers of this kind between rotations are a Gaussianization flow.

    Args:
        univariate: the family of :math:`g`.
        features: length of an event.
        context: width of the context; 0 for none.
        hidden, activation, residual: of the network, see :class:`Conditioner`.

    Shapes: ``x [B, features]``, ``context [B, context]``. Cost: no network without a context, one pass with one.

    Source: Meng et al., Gaussianization Flows, 2020, arXiv:2003.01941.

    Example:
        >>> from cflow.discrete import Affine
        >>> Elementwise(Affine(), 3).encode(torch.ones(1, 3))
        (tensor([[1., 1., 1.]], grad_fn=...), tensor([0.], grad_fn=...))
    """

    def __init__(
        self,
        univariate: Univariate,
        features: int,
        *,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        residual: bool = False,
    ):
        super().__init__(features, context or None)
        self.univariate, self.features, self.context = univariate, features, context
        self.hidden = widths_of("Elementwise", "hidden", hidden)
        self.activation, self.residual = activation, residual
        if context:
            outputs = features * univariate.size
            self.conditioner = Conditioner(
                0, outputs, context=context, hidden=hidden, activation=activation, residual=residual
            )
        else:
            self.raw = nn.Parameter(torch.zeros(features, univariate.size))

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, context = self.accept(x, context, "encode")
        z, ladj = self.univariate.encode(x, self._raw(x, context))
        return z, ladj.sum(-1)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, context = self.accept(z, context, "decode")
        x, ladj = self.univariate.decode(z, self._raw(z, context))
        return x, ladj.sum(-1)

    def cost(self) -> Cost:
        return Cost(1, 1) if self.context else Cost()

    def _raw(self, value: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            return self.raw.expand(value.shape[0], -1, -1)
        return self.conditioner(value[:, :0], context).reshape(*value.shape, self.univariate.size)
