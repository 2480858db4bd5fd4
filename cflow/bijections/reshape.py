"""Events in another shape."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cflow.bijections.map import Bijection
from cflow.registry import register

__all__ = ["Reshape"]


@register("bijections.Reshape")
class Reshape(Bijection):
    r"""Gives events another shape, their numbers in the same order: :math:`\log|\det| = 0`.

    In front of a flow over vectors it makes one over images: ``flow.with_transform(Reshape((1, 8, 8), 64))``.

    Args:
        event_shape, latent_shape: both shapes, of equally many numbers.

    Shapes: ``x [B, *event_shape]``, ``z [B, *latent_shape]``. Cost: none; no number is copied.

    Raises:
        ValueError: if one shape holds more numbers than the other.

    Example:
        >>> import torch
        >>> Reshape((2, 2), 4).encode(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        (tensor([[1., 2., 3., 4.]]), tensor([0.]))
    """

    def __init__(self, event_shape: int | Sequence[int], latent_shape: int | Sequence[int]):
        super().__init__(event_shape, latent_shape=latent_shape)
        if self.event_shape.numel() != self.latent_shape.numel():
            raise ValueError(
                f"Reshape({tuple(self.event_shape)}, {tuple(self.latent_shape)}): the former holds "
                f"{self.event_shape.numel()} numbers and the latter {self.latent_shape.numel()}; pass shapes of as "
                f"many."
            )

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        return x.reshape(x.shape[0], *self.latent_shape), x.new_zeros(x.shape[0])

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        return z.reshape(z.shape[0], *self.event_shape), z.new_zeros(z.shape[0])

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}, {tuple(self.latent_shape)}"
