"""Changes of the event's shape."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cflow.bijections.map import Bijection
from cflow.registry import register

__all__ = ["Reshape"]


@register("bijections.Reshape")
class Reshape(Bijection):
    r"""Changes the shape of events and keeps the order of their numbers: :math:`\log|\det| = 0`.

    It makes a flow over images from a flow over vectors: ``flow.with_transform(Reshape((1, 8, 8), 64))``.

    Args:
        event_shape: shape of the data.
        latent_shape: shape of the latents, with the same number of entries.

    Shapes: ``x [B, *event_shape]``, ``z [B, *latent_shape]``. Cost: none; no number is copied.

    Raises:
        ValueError: if one shape has more entries than the other.

    Example:
        >>> import torch
        >>> Reshape((2, 2), 4).encode(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        (tensor([[1., 2., 3., 4.]]), tensor([0.]))
    """

    def __init__(self, event_shape: int | Sequence[int], latent_shape: int | Sequence[int]):
        super().__init__(event_shape, latent_shape=latent_shape)
        if self.event_shape.numel() != self.latent_shape.numel():
            raise ValueError(
                f"Reshape({tuple(self.event_shape)}, {tuple(self.latent_shape)}): {self.event_shape.numel()} numbers "
                f"do not fill {self.latent_shape.numel()}; pass shapes of equal size."
            )

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        return x.reshape(x.shape[0], *self.latent_shape), x.new_zeros(x.shape[0])

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        return z.reshape(z.shape[0], *self.event_shape), z.new_zeros(z.shape[0])

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}, {tuple(self.latent_shape)}"
