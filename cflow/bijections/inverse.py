"""The inverse of a bijection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from cflow.bijections.map import Bijection, Cost, Map
from cflow.registry import register

__all__ = ["Inverse"]


@register("bijections.Inverse")
class Inverse(Bijection):
    """Exchanges the directions of a bijection: ``encode`` is its ``decode``. Weights are shared, not copied.

    A map that measures its first batch in training (:class:`ActNorm`) still measures data: in ``encode`` of the
    inverse, never in ``decode``.

    Args:
        bijection: the map. Its ``latent_shape`` becomes the ``event_shape`` of the inverse, and the reverse.

    Raises:
        TypeError: if ``bijection`` is not a :class:`Map`.
        ValueError: if it is a :class:`Surjection` or a chain with one, which has no inverse.

    Example:
        >>> import torch
        >>> from cflow.bijections import LULinear
        >>> layer = LULinear(2)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> bool((Inverse(layer).decode(x)[0] == layer.encode(x)[0]).all())
        True
    """

    def __init__(self, bijection: Map):
        if not isinstance(bijection, Map):
            raise TypeError(
                f"Inverse({type(bijection).__qualname__}): this is not a bijections.Map; pass one, such as Exp(2)."
            )
        if bijection.likelihood in ("bound", "none"):
            raise ValueError(
                f"Inverse({type(bijection).__name__}): a surjection has no inverse; use its encode and decode directly."
            )
        super().__init__(bijection.latent_shape, bijection.context_shape, latent_shape=bijection.event_shape)
        self.bijection = bijection
        self.domain, self.image = bijection.image, bijection.domain
        self.likelihood, self.draws, self.has_rsample = bijection.likelihood, bijection.draws, bijection.has_rsample
        self.changes, self.measures, self.reads_values = bijection.changes, bijection.measures, bijection.reads_values

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        return self._call("decode", x, context, generator)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        return self._call("encode", z, context, generator)

    def members(self) -> list[Map]:
        parts = self.bijection.members()
        return [self] if parts == [self.bijection] else [Inverse(each) for each in reversed(parts)]

    def cost(self) -> Cost:
        return Cost(*reversed(self.bijection.cost()))

    def _call(self, method: str, value: Tensor, context: Tensor | None, generator) -> tuple[Tensor, Tensor]:
        call = getattr(self.bijection, method)
        options = {"generator": generator} if self.draws else {}
        if not (self.measures and self.training):
            return call(value, context, **options)
        with _turned(self.bijection):
            return call(value, context, **options)


@contextmanager
def _turned(bijection: Map) -> Iterator[None]:
    """Marks every map inside as inverted while the context lasts, so that it measures data in ``decode``."""
    members = [each for each in bijection.modules() if isinstance(each, Map)]
    for each in members:
        each.turned = not each.turned
    try:
        yield
    finally:
        for each in members:
            each.turned = not each.turned
