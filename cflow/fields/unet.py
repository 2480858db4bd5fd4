"""The convolutional network for images of 8 to 64 pixels."""

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
        # The fused kernel's second derivatives fail where several gradients are taken at once (is_grads_batched).
        groups = rearrange(x, "b (g c) h w -> b g (c h w)", g=self.num_groups)
        h = F.layer_norm(groups, groups.shape[-1:], eps=self.eps).view_as(x)
        return self.bias[:, None, None].addcmul(h, self.weight[:, None, None])


def zeroed(layer: nn.Module) -> nn.Module:
    """Sets a layer's parameters to zero, so that its branch starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResidualBlock(nn.Module):
    """Adds two convolutions to its input; the embedding scales and shifts the second norm; may halve or double."""

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
    r"""Computes a vector field on images by a U-shaped convolutional network in the style of ADM.

    Residual blocks with group norm and SiLU, whose second norm is scaled and shifted by the embedding of time and
    condition; residual blocks that halve and double the resolution; self-attention at the resolutions named and in
    the middle; skip connections from every block on the way down. The second convolution of every block, the output
    of every attention and the last convolution start at zero. There is no dropout: a field draws nothing.

    Args:
        channels: how many an image has.
        size: its side in pixels, or ``(height, width)``.
        width: the channels at full resolution, a multiple of 4 and of ``heads``.
        multipliers: the channels at every level, in units of ``width``; None chooses by the shorter side
            (8: 1, 2; 16: 1, 2, 2; 32: 1, 2, 2, 2; 64: 1, 2, 3, 4).
        blocks: residual blocks per level.
        attention: resolutions (shorter sides) that get self-attention after every block; None for 8 and 16 pixels.
        heads: of every attention.
        classes: the number of class labels, where the context is a label; 0 for none.
        context: the width of a continuous context vector; 0 for none.
        outputs: how many tensors like ``x`` the network returns, ``[B, outputs, *event]`` where there is more than one.
        two_times: whether the field also reads ``s``, and gives average velocities between two times; see
            :func:`cflow.fields.two_times`.

    Shapes: ``t``, ``s`` ``[]`` or ``[B]``; ``x`` ``[B, channels, height, width]``; labels ``[B]`` or context
    ``[B, context]`` -> like ``x``.

    Cost: ``UNet(1, 8, width=32)`` has 1.1 M parameters, ``UNet(3, 32, width=128, attention=(16,))`` 42.9 M, with
    ``width=116`` 35.2 M. Attention at a resolution of ``r`` holds ``heads * r ** 4`` weights per sample while ``x`` or
    ``t`` is differentiated; else the fused kernels hold none.

    Raises:
        ValueError: if the sizes do not fit together; says which.

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
                    f"UNet(size={size}): multipliers are chosen for sizes {', '.join(map(str, MULTIPLIERS))} (of the "
                    f"shorter side) only; pass multipliers=(...), one per level, with sides divisible by "
                    f"2 ** (levels - 1)."
                )
            multipliers = MULTIPLIERS[min(sides)]
        multipliers = tuple(multipliers)
        halvings = len(multipliers) - 1
        if not multipliers or min(multipliers) < 1 or channels < 1 or blocks < 1:
            raise ValueError(
                f"UNet(channels={channels}, multipliers={multipliers}, blocks={blocks}): a network has at least one "
                f"channel, one level and one block per level; pass positive integers."
            )
        if min(sides) < 1 or any(side % 2**halvings for side in sides):
            raise ValueError(
                f"UNet(size={size}, multipliers={multipliers}): {halvings} halvings need sides divisible by "
                f"{2**halvings}; pass fewer multipliers or pad the images."
            )
        if heads < 1 or width < 1 or width % 4 or width % heads:
            raise ValueError(
                f"UNet(width={width}, heads={heads}): norms split channels in fours and attention in heads; pass a "
                f"width divisible by 4 and by heads."
            )
        levels = [min(sides) // 2**level for level in range(halvings + 1)]
        attention = tuple(side for side in levels if side in (8, 16)) if attention is None else tuple(attention)
        if not set(attention) <= set(levels):
            raise ValueError(
                f"UNet(size={size}, attention={attention}): the levels of this network have "
                f"{', '.join(map(str, levels))} pixels on the shorter side; pass some of these, or () for the middle "
                f"alone."
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
            # Training with attention at 8 pixels is a seventh faster so, without attention the same; untried on GPUs.
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
