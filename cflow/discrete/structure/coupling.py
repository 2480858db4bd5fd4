"""Coupling layers: the maps of some features depend on the others, which stay unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cflow.bijections import Bijection, Cost
from cflow.discrete.structure.circles import Circles, periods_of
from cflow.discrete.structure.conditioner import Conditioner
from cflow.discrete.univariate.family import Univariate
from cflow.keywords import widths_of
from cflow.registry import register

__all__ = ["Coupling"]


@register("discrete.Coupling")
class Coupling(Bijection):
    r"""Maps some features by univariate functions whose parameters depend on the others, which stay unchanged.

    .. math:: z_A = x_A, \qquad z_B = g\bigl(x_B; \theta(x_A, c)\bigr), \qquad
        \log|\det| = \sum_{i \in B} \log g'(x_i; \theta_i)

    Args:
        univariate: the family of :math:`g`, such as ``discrete.RationalQuadratic()``.
        features: length of an event, 2 or more.
        context: width of the context; 0 for none.
        mask: ``features`` truth values, true for the features that are mapped. Default: the second half.
        hidden, activation, residual: of the network, see :class:`Conditioner`.
        network: a custom network, ``network(x_A [B, unchanged], context) -> [B, mapped * univariate.size]``, with all
            raw numbers of the first mapped feature first. Default: a :class:`Conditioner`.
        periods: for every feature, the period of a circular one or None for others. The network receives sine and
            cosine of a circular feature, two inputs, so that the density is continuous on the circle. Default: the
            period of the family (with ``RationalQuadratic(tails="circular")``).

    Shapes: ``x [B, features]``, ``context [B, context]``.

    Cost: one pass of the network in either direction. Contiguous halves are split and joined without index copies.

    Raises:
        ValueError: if no feature is mapped or none stays unchanged, the network returns a wrong number of raw numbers,
            or ``periods`` is not one positive number or None per feature, or differs from the period of the family.

    Source: Dinh et al., Density estimation using Real NVP, 2016, arXiv:1605.08803; Durkan et al., Neural Spline Flows,
    2019, arXiv:1906.04032.

    Example:
        >>> from cflow.discrete import Affine
        >>> layer = Coupling(Affine(), features=3, context=2)
        >>> z, ladj = layer.encode(torch.randn(5, 3), torch.randn(5, 2))
        >>> z.shape, ladj.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        univariate: Univariate,
        features: int,
        *,
        context: int = 0,
        mask: Sequence[bool] | Tensor | None = None,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        residual: bool = False,
        network: nn.Module | None = None,
        periods: Sequence[float | None] | None = None,
    ):
        super().__init__(features, context or None)
        self.univariate, self.features, self.context = univariate, features, context
        self.hidden = widths_of("Coupling", "hidden", hidden)
        self.activation, self.residual = activation, residual
        moves = [i >= features // 2 for i in range(features)] if mask is None else [bool(each) for each in mask]
        if len(moves) != features or all(moves) or not any(moves):
            raise ValueError(
                f"Coupling(features={features}, mask={moves}): pass one truth value per feature, some true and some "
                f"false; for a single feature use discrete.Elementwise."
            )
        self.mask = moves
        stay, moved = ([i for i in range(features) if moves[i] is each] for each in (False, True))
        self._cut = len(stay) if stay + moved == list(range(features)) else None
        self._moved_first = moved + stay == list(range(features))
        index = torch.tensor(stay + moved, device="cpu")
        self.register_buffer("_index", index, persistent=False)
        self.register_buffer("_back", index.argsort(), persistent=False)
        self._sizes = [len(stay), len(moved)]
        outputs = len(moved) * univariate.size
        self.network, self.periods = network, periods
        lengths = periods_of("Coupling", periods, features, univariate, moves)
        self.circles = Circles([lengths[i] for i in stay])
        if network is None:
            self.conditioner = Conditioner(
                self.circles.width, outputs, context=context, hidden=hidden, activation=activation, residual=residual
            )

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        return self._apply_to(x, context, "encode")

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        return self._apply_to(z, context, "decode")

    def cost(self) -> Cost:
        return Cost(1, 1)

    def _apply_to(self, value: Tensor, context: Tensor | None, method: str) -> tuple[Tensor, Tensor]:
        value, context = self.accept(value, context, method)
        stay, moved = self._split(value)
        raw = (self.conditioner if self.network is None else self.network)(self.circles(stay), context)
        shape = (*moved.shape, self.univariate.size)
        if raw.shape != (moved.shape[0], shape[1] * shape[2]):
            raise ValueError(
                f"Coupling: the network returned shape {list(raw.shape)} for {shape[1]} features with "
                f"{type(self.univariate).__name__} ({shape[2]} numbers each); it must return "
                f"{[moved.shape[0], shape[1] * shape[2]]}."
            )
        moved, ladj = getattr(self.univariate, method)(moved, raw.reshape(shape))
        return self._join(stay, moved), ladj.sum(-1)

    def _split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        if self._moved_first:
            return value.split(self._sizes[::-1], 1)[::-1]
        if self._cut is None:
            value = value.index_select(1, self._index)
        return value.split(self._sizes, 1)

    def _join(self, stay: Tensor, moved: Tensor) -> Tensor:
        if self._moved_first:
            return torch.cat((moved, stay), 1)
        value = torch.cat((stay, moved), 1)
        return value.index_select(1, self._back) if self._cut is None else value
