"""Invertible convolutions of one pixel: one matrix mixes the channels at every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular

from cflow.bijections.map import Bijection
from cflow.bijections.matrices import factors, without_autocast
from cflow.bijections.permute import check_permutation
from cflow.registry import register
from cflow.shapes import as_shape

__all__ = ["Conv1x1"]


@register("bijections.Conv1x1")
class Conv1x1(Bijection):
    r"""Mixes the channels of an image by one invertible matrix at every pixel.

    .. math:: z_{:,h,w} = P L U x_{:,h,w} + b, \qquad \log|\det| = H W \sum_i \theta_{ii}

    with a fixed permutation P of the channels and the triangular factors of :class:`LULinear`. It starts as the
    permutation, so that coupling layers around it transform different channels from the first step on.

    Args:
        event_shape: ``(channels, height, width)``.
        permutation: for each channel of the latent, which row of L U it takes. A buffer of integers, saved with the
            flow. Default: drawn from torch's default generator.

    Shapes: ``x [B, C, H, W]``.

    Cost: one batched product, without a copy of the image. ``decode`` multiplies by the inverse, computed by two
    triangular solves of ``[C, C]``; solves for every pixel would copy the image twice. It computes in the dtype of
    ``x``, also under autocast, and by matrix products, because PyTorch lets convolutions round to TF32.

    Raises:
        ValueError: if the event is not an image, or the permutation is not one of its channels.

    Source: Kingma and Dhariwal, Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv:1807.03039,
    section 3.2.

    Example:
        >>> layer = Conv1x1((3, 8, 8), permutation=[2, 1, 0])
        >>> x = torch.randn(5, 3, 8, 8)
        >>> z, ladj = layer.encode(x)
        >>> bool((z == x.flip(1)).all()), ladj.shape
        (True, torch.Size([5]))
    """

    fixed_buffers = True

    def __init__(self, event_shape: Sequence[int], permutation: Sequence[int] | Tensor | None = None):
        shape = as_shape(event_shape)
        if len(shape) != 3 or shape[0] < 1:
            raise ValueError(f"Conv1x1(event_shape={event_shape}): not an image; pass (channels, height, width).")
        super().__init__(shape)
        channels = shape[0]
        drawn = torch.randperm(channels, device="cpu") if permutation is None else permutation
        self.register_buffer("permutation", torch.tensor(check_permutation("Conv1x1", drawn, channels)))
        self.weight = nn.Parameter(torch.zeros(channels, channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        with without_autocast(x):
            lower, upper, ladj = factors(self.weight.to(x.dtype))
            matrix = (lower @ upper).index_select(0, self.permutation)
            z = _mix(matrix, x.flatten(2), self.shift.to(x.dtype)[:, None])
        return z.view(x.shape), self._ladj(ladj, x)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        with without_autocast(z):
            lower, upper, ladj = factors(self.weight.to(z.dtype))
            identity = torch.eye(len(lower), dtype=z.dtype, device=z.device).index_select(0, self.permutation)
            matrix = solve_triangular(lower, identity.t(), upper=False, unitriangular=True)
            matrix = solve_triangular(upper, matrix, upper=True)
            shift = matrix @ self.shift.to(z.dtype)[:, None]
            x = _mix(matrix, z.flatten(2), -shift)
        return x.view(z.shape), self._ladj(-ladj, z)

    def _ladj(self, ladj: Tensor, value: Tensor) -> Tensor:
        return (ladj * (self.event_shape[1] * self.event_shape[2])).expand(value.shape[0])

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"


def _mix(matrix: Tensor, pixels: Tensor, shift: Tensor) -> Tensor:
    return torch.baddbmm(shift, matrix.expand(pixels.shape[0], -1, -1), pixels)
