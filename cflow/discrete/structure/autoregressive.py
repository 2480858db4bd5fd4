"""Autoregressive layers: the map of every feature depends on the features before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.bijections import Bijection, Cost
from cflow.discrete.structure.circles import periods_of
from cflow.discrete.structure.inverses import Incremental, Jacobi
from cflow.discrete.structure.masked import MaskedConditioner
from cflow.discrete.univariate.family import Univariate
from cflow.keywords import widths_of
from cflow.registry import register

__all__ = ["Autoregressive"]


@register("discrete.Autoregressive")
class Autoregressive(Bijection):
    r"""Maps every feature by a univariate function whose parameters depend on the features before it.

    .. math:: z_i = g\bigl(x_i; \theta_i(x_{1:i-1}, c)\bigr), \qquad \log|\det| = \sum_i \log g'(x_i; \theta_i)

    ``encode`` takes one pass; ``decode`` computes one feature after another, by default with each weight used once
    (:class:`Incremental`). Its :class:`Inverse` is an inverse autoregressive layer, which is fast to sample.

    Args:
        univariate: the family of :math:`g`: ``Affine()`` for MAF, ``RationalQuadratic()`` for NSF.
        features: length of an event.
        context: width of the context; 0 for none.
        order: the features from the first to the last. Default: 0, 1, ...
        adjacency: ``[features, features]``, in place of ``order``: row i is true for the features on which feature i
            depends. Any graph without cycles; ``decode`` takes as many steps as its longest chain.
        hidden, activation, residual: of the masked network, see :class:`Conditioner`.
        inverse: ``Incremental()`` or ``Jacobi()``. Default: ``Incremental()``.
        periods: for every feature, the period of a circular one or None for others. The network receives sine and
            cosine of a circular feature, so that the density is continuous on the circle. Default: the period of the
            family (with ``tails="circular"``).

    Shapes: ``x [B, features]``, ``context [B, context]``.

    Raises:
        ValueError: if the order is not a permutation, the adjacency has a cycle, or both are passed; if ``periods`` is
            not one positive number or None per feature, or differs from the period of the family.

    Source: Papamakarios et al., Masked Autoregressive Flow for Density Estimation, 2017, arXiv:1705.07057.

    Example:
        >>> from cflow.discrete import Affine
        >>> layer = Autoregressive(Affine(), features=3, hidden=(32, 32))
        >>> x = torch.randn(5, 3)
        >>> bool(torch.allclose(layer.decode(layer.encode(x)[0])[0], x))
        True
    """

    def __init__(
        self,
        univariate: Univariate,
        features: int,
        *,
        context: int = 0,
        order: Sequence[int] | None = None,
        adjacency: Tensor | None = None,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        residual: bool = False,
        inverse: Incremental | Jacobi | None = None,
        periods: Sequence[float | None] | None = None,
    ):
        super().__init__(features, context or None)
        self.univariate, self.features, self.context = univariate, features, context
        self.hidden = widths_of("Autoregressive", "hidden", hidden)
        self.activation, self.residual = activation, residual
        self.order = None if order is None else [int(each) for each in order]
        if adjacency is not None:
            adjacency = torch.as_tensor(adjacency, device="cpu").bool()
        self.register_buffer("adjacency", adjacency, persistent=False)
        self.inverse = Incremental() if inverse is None else inverse
        if not isinstance(self.inverse, Incremental | Jacobi):
            raise TypeError(f"Autoregressive(inverse={inverse!r}): pass discrete.Incremental() or discrete.Jacobi().")
        self.periods = periods
        self.conditioner = MaskedConditioner(
            self._graph(), univariate.size, context=context, hidden=hidden, activation=activation, residual=residual,
            periods=periods_of("Autoregressive", periods, features, univariate),
        )  # fmt: skip

    def _graph(self) -> Tensor:
        features, adjacency = self.features, self.adjacency
        if adjacency is not None:
            if self.order is not None or adjacency.shape != (features, features):
                raise ValueError(
                    f"Autoregressive(features={features}, adjacency of shape {list(adjacency.shape)}, "
                    f"order={self.order}): pass a square adjacency, or an order, not both."
                )
            return adjacency
        order = list(range(features)) if self.order is None else self.order
        if sorted(order) != list(range(features)):
            raise ValueError(
                f"Autoregressive(features={features}, order={order}): not a permutation; pass for example "
                f"{list(range(features))[::-1]}."
            )
        rank = torch.tensor(order, device="cpu").argsort()
        return rank[:, None] > rank[None]

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, context = self.accept(x, context, "encode")
        z, ladj = self.univariate.encode(x, self.conditioner(x, context))
        return z, ladj.sum(-1)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, context = self.accept(z, context, "decode")
        return self.inverse.decode(self, z, context)

    def cost(self) -> Cost:
        return Cost(1, self.inverse.passes(self.conditioner.levels))

    def extra_repr(self) -> str:
        return f"features={self.features}"
