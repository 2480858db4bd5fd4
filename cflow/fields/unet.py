"""A convolutional network for images of 8 to 64 pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from cflow.fields.base import Field, check_outputs, image_sides
from cflow.fields.embedding import ContextEmbedding, SinusoidalTime, SpanEmbedding, check_condition, shared_time
from cflow.fields.transformer import attend, differentiated
from cflow.registry import register

__all__ = ["UNet"]

MULTIPLIERS = {8: (1, 2), 16: (1, 2, 2), 32: (1, 2, 2, 2), 64: (1, 2, 3, 4)}


class GroupNorm(nn.GroupNorm):
    """Normalises at most 32 groups of at least four channels each."""

    def __init__(self, channels: int):
        super().__init__(math.gcd(32, channels // 4), channels)

    def forward(self, x: Tensor, differentiable: bool = False) -> Tensor:
        if not differentiable:
            return super().forward(x)
        # Second derivatives of the fused kernel fail for batched gradients (is_grads_batched).
        groups = rearrange(x, "b (g c) h w -> b g (c h w)", g=self.num_groups)
        h = F.layer_norm(groups, groups.shape[-1:], eps=self.eps).view_as(x)
        return self.bias[:, None, None].addcmul(h, self.weight[:, None, None])


def zeroed(layer: nn.Module) -> nn.Module:
    """Sets the parameters of a layer to zero, so that its branch starts at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResidualBlock(nn.Module):
    """Adds two convolutions to its input; the embedding modulates the second norm; may halve or double the sides."""

    def __init__(self, channels: int, out: int, embedding: int, *, resample: str = "same"):
        super().__init__()
        self.resample = resample
        self.norm1, self.conv1 = GroupNorm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * out)
        self.norm2, self.conv2 = GroupNorm(out), zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x

    def forward(self, x: Tensor, embedding: Tensor, differentiable: bool = False) -> Tensor:
        h = self.conv1(self.resampled(F.silu(self.norm1(x, differentiable))))
        scale, shift = rearrange(self.modulation(embedding), "b (two c) -> two b c 1 1", two=2)
        h = shift.addcmul(self.norm2(h, differentiable), 1 + scale)
        return self.skip(self.resampled(x)) + self.conv2(F.silu(h))


class AttentionBlock(nn.Module):
    """Adds self-attention between all pixels to its input."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = GroupNorm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.output = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, embedding: Tensor, differentiable: bool = False) -> Tensor:
        q, k, v = rearrange(
            self.qkv(self.norm(x, differentiable)), "b (three n c) h w -> three b n (h w) c", three=3, n=self.heads
        )
        return x + self.output(rearrange(attend(q, k, v, differentiable), "b n (h w) c -> b (n c) h w", h=x.shape[-2]))


@register("fields.UNet")
class UNet(Field):
    r"""Computes a vector field on images with a U-shaped convolutional network in the style of ADM.

    The network has residual blocks with group norm and SiLU; the embedding of time and condition scales and shifts
    their second norm. Other residual blocks halve and double the resolution. Self-attention follows the blocks of the
    resolutions in ``attention`` and is also in the middle. Every block on the way down has a skip connection. The
    second convolution of every block, the output of every attention and the last convolution start at zero. There is
    no dropout, since a field draws no random numbers.

    Args:
        channels: the number of channels of an image.
        size: the side of an image in pixels, or ``(height, width)``.
        width: the channels at full resolution, a multiple of 4 and of ``heads``.
        multipliers: the channels at every level, in units of ``width``. Default: chosen by the shorter side
            (8: 1, 2; 16: 1, 2, 2; 32: 1, 2, 2, 2; 64: 1, 2, 3, 4).
        blocks: the number of residual blocks per level.
        attention: the resolutions (shorter sides) with self-attention after every block. Default: 8 and 16 pixels.
        heads: the number of heads of every attention.
        classes: the number of class labels, if the context is a label; 0 for none.
        context: the width of a continuous context vector; 0 for none.
        outputs: how many tensors like ``x`` the network returns; ``[B, outputs, *event]`` for more than one.
        two_times: whether the field also reads ``s`` and returns average velocities between two times; see
            :func:`cflow.fields.two_times`.

    Shapes: ``t``, ``s`` ``[]`` or ``[B]``; ``x`` ``[B, channels, height, width]``; labels ``[B]`` or context
    ``[B, context]`` -> like ``x``.

    Cost: ``UNet(1, 8, width=32)`` has 1.1 M parameters, ``UNet(3, 32, width=128, attention=(16,))`` 42.9 M, with
    ``width=116`` 35.2 M. Attention at a resolution of ``r`` stores ``heads * r ** 4`` weights per sample while ``x`` or
    ``t`` is differentiated; otherwise it uses fused kernels, which store none.

    Raises:
        ValueError: if the sizes do not fit together.

    Source: Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv:2105.05233, section 3 and
    table 4.

    Example:
        >>> field = UNet(channels=1, size=8, width=16, classes=10)
        >>> field(torch.tensor(0.5), torch.zeros(2, 1, 8, 8), torch.tensor([3, 7])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int],
        *,
        width: int = 64,
        multipliers: Sequence[int] | None = None,
        blocks: int = 2,
        attention: Sequence[int] | None = None,
        heads: int = 4,
        classes: int = 0,
        context: int = 0,
        outputs: int = 1,
        two_times: bool = False,
    ):
        sides = image_sides("UNet", size)
        if multipliers is None:
            if min(sides) not in MULTIPLIERS:
                raise ValueError(
                    f"UNet(size={size}): only shorter sides of {', '.join(map(str, MULTIPLIERS))} have default "
                    f"multipliers; pass multipliers=(...), one per level."
                )
            multipliers = MULTIPLIERS[min(sides)]
        multipliers = tuple(multipliers)
        halvings = len(multipliers) - 1
        if not multipliers or min(multipliers) < 1 or channels < 1 or blocks < 1:
            raise ValueError(
                f"UNet(channels={channels}, multipliers={multipliers}, blocks={blocks}): pass at least one of each."
            )
        if min(sides) < 1 or any(side % 2**halvings for side in sides):
            raise ValueError(
                f"UNet(size={size}, multipliers={multipliers}): {halvings} halvings need sides divisible by "
                f"{2**halvings}; pass fewer multipliers or pad the images."
            )
        if heads < 1 or width < 1 or width % 4 or width % heads:
            raise ValueError(f"UNet(width={width}, heads={heads}): pass a width divisible by 4 and by heads.")
        levels = [min(sides) // 2**level for level in range(halvings + 1)]
        attention = tuple(side for side in levels if side in (8, 16)) if attention is None else tuple(attention)
        if not set(attention) <= set(levels):
            raise ValueError(
                f"UNet(size={size}, attention={attention}): the shorter sides of the levels are "
                f"{', '.join(map(str, levels))}; pass some of these, or ()."
            )
        check_condition("UNet", classes, context)
        check_outputs("UNet", outputs)
        super().__init__((channels, *sides), () if classes else (context,) if context else None)
        self.channels, self.size, self.width, self.multipliers, self.blocks = channels, size, width, multipliers, blocks
        self.attention, self.heads, self.classes, self.context = attention, heads, classes, context
        self.outputs, self.two_times = outputs, two_times

        embedding = 4 * width
        self.time = SinusoidalTime(width, highest=256.0)
        self.time_layers = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.span = SpanEmbedding(width, embedding, highest=256.0) if two_times else None
        conditional = classes or context
        self.condition = ContextEmbedding(embedding, classes=classes, context=context) if conditional else None

        def level(current: int, out: int, side: int) -> nn.ModuleList:
            parts = [ResidualBlock(current, out, embedding)]
            return nn.ModuleList(parts + [AttentionBlock(out, heads)] * (side in attention))

        current = width * multipliers[0]
        self.input = nn.Conv2d(channels, current, 3, padding=1)
        self.down, kept, side = nn.ModuleList(), [current], min(sides)
        for index, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(level(current, width * multiplier, side))
                current = width * multiplier
                kept.append(current)
            if index < halvings:
                self.down.append(nn.ModuleList([ResidualBlock(current, current, embedding, resample="down")]))
                kept.append(current)
                side //= 2
        self.middle = nn.ModuleList(
            [
                ResidualBlock(current, current, embedding),
                AttentionBlock(current, heads),
                ResidualBlock(current, current, embedding),
            ]
        )
        self.up = nn.ModuleList()
        for index, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(blocks + 1):
                parts = level(current + kept.pop(), width * multiplier, side)
                current = width * multiplier
                if index and block == blocks:
                    parts.append(ResidualBlock(current, current, embedding, resample="up"))
                    side *= 2
                self.up.append(parts)
        self.norm, self.output = GroupNorm(current), zeroed(nn.Conv2d(current, outputs * channels, 3, padding=1))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        t = self.check(t, x, context, s)
        dtype = self.output.weight.dtype
        differentiable = differentiated(t, s, x, context)
        embedding = self.time_layers(self.time(shared_time(t), dtype=dtype))
        if self.span is not None:
            embedding = embedding + self.span(t, s, dtype=dtype)
        if context is not None:
            embedding = embedding + self.condition(context)
        embedding = F.silu(embedding)
        h = self.input(x.to(dtype))
        if h.device.type == "cpu" and not differentiable:
            # Training with attention at 8 pixels is a seventh faster with this layout, else equal; not tried on GPUs.
            h = h.contiguous(memory_format=torch.channels_last)
        kept = [h]
        for parts in self.down:
            for part in parts:
                h = part(h, embedding, differentiable)
            kept.append(h)
        for part in self.middle:
            h = part(h, embedding, differentiable)
        for parts in self.up:
            h = torch.cat([h, kept.pop()], 1)
            for part in parts:
                h = part(h, embedding, differentiable)
        result = self.output(F.silu(self.norm(h, differentiable))).to(x.dtype)
        return result if self.outputs == 1 else rearrange(result, "b (k c) h w -> b k c h w", k=self.outputs)
