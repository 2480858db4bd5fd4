"""Parts of transformers: patches of images, positions, attention, blocks, and modulation by the time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from cflow.fields.base import image_sides
from cflow.fields.embedding import SinusoidalTime, SpanEmbedding, forward_mode, shared_time

__all__ = [
    "Attention", "Block", "Modulation", "Patches", "TimesEmbedding", "attend", "check_sizes", "differentiated",
    "modulate", "rotate",
]  # fmt: skip

POSITIONS = ("rope", "sincos")


class TimesEmbedding(nn.Module):
    """Embeds the time and, for fields of two times, the length of the step from ``t`` to ``s``.

    Shapes: ``t``, ``s`` ``[]`` or ``[B]`` -> ``[1, width]`` or ``[B, width]``.
    """

    def __init__(self, width: int, two_times: bool):
        super().__init__()
        self.sines = SinusoidalTime(width, highest=256.0)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.span = SpanEmbedding(width, width, highest=256.0) if two_times else None

    def forward(self, t: Tensor, s: Tensor | None, dtype: torch.dtype) -> Tensor:
        embedding = self.layers(self.sines(shared_time(t), dtype=dtype))
        return embedding if self.span is None else embedding + self.span(t, s, dtype=dtype)


class Modulation(nn.Linear):
    """Computes ``count`` vectors of shift, scale and gate from an embedding; starts at zero (adaLN-zero).

    Shapes: ``[B, embedding]`` -> ``count`` tensors ``[B, 1, width]``.
    """

    def __init__(self, embedding: int, width: int, count: int):
        super().__init__(embedding, count * width)
        self.count = count
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        return super().forward(F.silu(embedding)).unsqueeze(1).chunk(self.count, -1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalises tokens ``[B, N, width]``, then scales and shifts them."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class Attention(nn.Module):
    """Computes queries, keys and values of tokens, and the linear map after attention; queries and keys are normalised.

    Normalisation bounds the logits and their tangents in forward mode. Tokens that are not updated have no queries and
    no output.

    Source: Dehghani et al., Scaling Vision Transformers to 22 Billion Parameters, 2023, arXiv:2302.05442 (query and
    key normalisation).
    """

    def __init__(self, width: int, heads: int, updated: bool = True):
        super().__init__()
        self.heads, self.updated = heads, updated
        self.input = nn.Linear(width, (3 if updated else 2) * width)
        self.output = nn.Linear(width, width) if updated else None
        self.query_scale = nn.Parameter(torch.ones(width // heads)) if updated else None
        self.key_scale = nn.Parameter(torch.ones(width // heads))

    def split(self, x: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Returns queries, keys and values ``[B, heads, N, width / heads]`` of tokens ``[B, N, width]``."""
        *q, k, v = rearrange(self.input(x), "b n (parts h c) -> parts b h n c", h=self.heads, c=len(self.key_scale))
        return _unit(q[0], self.query_scale) if self.updated else None, _unit(k, self.key_scale), v

    def join(self, attended: Tensor) -> Tensor:
        return self.output(rearrange(attended, "b h n c -> b n (h c)"))


def _unit(x: Tensor, scale: Tensor) -> Tensor:
    """Normalises every vector and multiplies it by ``scale``; one fused kernel, half the time of a root mean square."""
    return F.layer_norm(x, scale.shape, scale.to(x.dtype), eps=1e-6)


def attend(q: Tensor, k: Tensor, v: Tensor, differentiable: bool, causal: bool = False) -> Tensor:
    """Computes softmax attention, with fused kernels unless second derivatives or forward mode are needed.

    With ``causal``, a token attends to itself and to the tokens before it.
    """
    if not differentiable:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    weights = q @ k.mT * q.shape[-1] ** -0.5
    if causal:
        later = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).triu(1)
        weights = weights.masked_fill(later, -torch.inf)
    return torch.softmax(weights, -1) @ v


def rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    r"""Rotates pairs of entries ``(j, j + c/2)`` of ``[..., N, c]``; ``turns`` are cosines and sines ``[N, c/2]``.

    These are rotary positions (:meth:`Patches.turns`): the scalar product of two tokens depends only on the difference
    of their positions.

    Source: Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021, arXiv:2104.09864.
    """
    cos, sin = turns
    a, b = x.chunk(2, -1)
    return torch.cat((torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(a * sin, b, cos)), -1)


class Block(nn.Module):
    """Adds self-attention and a network of two layers to tokens; both start at zero."""

    def __init__(self, width: int, heads: int, ratio: int):
        super().__init__()
        self.modulation = Modulation(width, width, 6)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        turns: tuple[Tensor, Tensor] | None,
        differentiable: bool,
        causal: bool = False,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)
        q, k, v = self.attention.split(modulate(x, shift1, scale1))
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        x = torch.addcmul(x, gate1, self.attention.join(attend(q, k, v, differentiable, causal)))
        h = self.down(F.gelu(self.up(modulate(x, shift2, scale2))))
        return torch.addcmul(x, gate2, h)


def rotations(pairs: int, longest: float) -> Tensor:
    """Returns the rotation per row (or column) of half of the pairs each, ``[pairs / 2]``, in float64.

    The numbers are rounded to bfloat16, so a network that is cast to bfloat16 and back keeps its positions.
    """
    ladder = torch.exp(-math.log(longest) * torch.arange(pairs // 2, dtype=torch.float64) / max(pairs // 2, 1))
    return ladder.to(torch.bfloat16).double()


def grid_angles(sides: tuple[int, int], ladder: Tensor) -> Tensor:
    """Returns the angles of a grid's tokens, ``[rows * columns, pairs]``: half of the pairs are for rows."""
    ladder = ladder.to(torch.promote_types(ladder.dtype, torch.float32))
    rows, columns = (torch.arange(n, dtype=ladder.dtype, device=ladder.device)[:, None] * ladder for n in sides)
    rows, columns = rows[:, None].expand(*sides, -1), columns[None].expand(*sides, -1)
    return torch.cat((rows, columns), -1).flatten(0, 1)


def grid_embedding(sides: tuple[int, int], width: int) -> Tensor:
    """Returns sines and cosines of rows and columns, ``[rows * columns, width]``, to add to a grid's tokens."""
    angles = grid_angles(sides, rotations(width // 2, 10_000.0))
    return torch.cat((angles.sin(), angles.cos()), -1)


class Patches(nn.Module):
    """Cuts images into tokens with positions, and assembles images from tokens.

    Shapes: images ``[B, channels, *size]`` -> tokens ``[B, rows * columns, width]``, a row and a column for each
    ``patch`` pixels, and back to ``[B, *event]`` or, with several outputs, ``[B, outputs, *event]``.
    """

    def __init__(
        self, channels: int, size: tuple[int, int], patch: int, width: int, outputs: int, heads: int, positions: str
    ):
        super().__init__()
        self.sides, self.patch, self.outputs = (size[0] // patch, size[1] // patch), patch, outputs
        self.input = nn.Linear(channels * patch**2, width)
        self.modulation = Modulation(width, width, 2)
        self.output = nn.Linear(width, outputs * channels * patch**2)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        turned, default = positions == "rope", torch.get_default_dtype()
        ladder = rotations(width // heads // 2, 100.0).to(default) if turned else None
        added = None if turned else grid_embedding(self.sides, width).to(torch.bfloat16).to(default)
        self.register_buffer("ladder", ladder, persistent=False)
        self.register_buffer("added", added, persistent=False)

    def turns(self) -> tuple[Tensor, Tensor] | None:
        """Returns the cosines and sines that rotate queries and keys; None if positions are added to tokens.

        All blocks share them, so they are computed once per call, from angles in float32 or better.
        """
        if self.ladder is None:
            return None
        angles, dtype = grid_angles(self.sides, self.ladder), self.output.weight.dtype
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def tokens(self, x: Tensor) -> Tensor:
        h = self.input(rearrange(x, "b c (i p) (j q) -> b (i j) (c p q)", p=self.patch, q=self.patch))
        return h if self.added is None else h + self.added

    def image(self, h: Tensor, embedding: Tensor) -> Tensor:
        h = self.output(modulate(h, *self.modulation(embedding)))
        sizes = {"i": self.sides[0], "p": self.patch, "q": self.patch, "k": self.outputs}
        images = rearrange(h, "b (i j) (k c p q) -> b k c (i p) (j q)", **sizes)
        return images[:, 0] if self.outputs == 1 else images


def differentiated(*inputs: Tensor | float | None) -> bool:
    """Returns whether the inputs of a call, not only the weights, are differentiated."""
    wanted = any(isinstance(each, Tensor) and each.requires_grad for each in inputs)
    return (torch.is_grad_enabled() and wanted) or forward_mode()


def check_sizes(
    name: str,
    channels: int,
    size: int | Sequence[int],
    patch: int,
    width: int,
    depth: int,
    heads: int,
    ratio: int,
    positions: str,
) -> tuple[int, int]:
    """Returns height and width of an image; raises if the sizes of a transformer do not fit together."""
    sides = image_sides(name, size)
    if min(channels, *sides, patch, width, depth, heads, ratio) < 1 or any(side % patch for side in sides):
        raise ValueError(
            f"{name}(channels={channels}, size={size}, patch={patch}, width={width}, depth={depth}, heads={heads}, "
            f"ratio={ratio}): all must be positive; pass a patch that divides the size."
        )
    if width % heads or (width // heads) % 4 or width % 4:
        raise ValueError(f"{name}(width={width}, heads={heads}): pass a width divisible by 4 * heads.")
    if positions not in POSITIONS:
        raise ValueError(f"{name}(positions={positions!r}): unknown encoding; pass one of {', '.join(POSITIONS)}.")
    return sides
