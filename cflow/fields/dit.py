"""A transformer on images: patches are tokens, and time and condition modulate them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cflow.fields.base import Field, check_outputs
from cflow.fields.embedding import ContextEmbedding, check_condition
from cflow.fields.transformer import Block, Patches, TimesEmbedding, check_sizes, differentiated
from cflow.registry import register

__all__ = ["DiT"]


@register("fields.DiT")
class DiT(Field):
    r"""Computes a vector field on images with a transformer on patches (diffusion transformer, adaLN-zero).

    An image becomes tokens, one for each ``patch`` times ``patch`` pixels. Every block adds self-attention and a
    network of two layers. The embedding of time and condition shifts and scales their inputs and gates their outputs.
    Gates and the last layer start at zero, so an untrained field is zero. Queries and keys are normalised.

    Args:
        channels: the number of channels of an image.
        size: the side of an image in pixels, or ``(height, width)``.
        patch: the side of a patch in pixels, a divisor of the sides.
        width: the width of a token, a multiple of ``4 * heads``.
        depth: the number of blocks.
        heads: the number of heads of every attention.
        ratio: the hidden width of a block's network, in units of ``width``.
        classes: the number of class labels, if the context is a label; 0 for none.
        context: the width of a continuous context vector; 0 for none.
        positions: ``"rope"`` rotates queries and keys by their row and column; ``"sincos"`` adds sines and cosines of
            row and column to the tokens.
        two_times: whether the field also reads ``s`` and returns the average velocity between the two times, or the
            velocity if ``s`` is omitted. Weights of a field of one time fit; the new weights start at zero.
        outputs: how many tensors like ``x`` the network returns; ``[B, outputs, *event]`` for more than one.

    Shapes: ``t``, ``s`` ``[]`` or ``[B]``; ``x`` ``[B, channels, height, width]``; labels ``[B]`` or context
    ``[B, context]`` -> like ``x``.

    Cost: ``depth`` attentions between all tokens. ``DiT(3, 32, patch=2, width=384, depth=12, heads=6)`` has 32.5 M
    parameters. Attention stores its weights only while ``x`` or a time is differentiated; otherwise it uses fused
    kernels, which store none.

    Raises:
        ValueError: if the sizes do not fit together.

    Source: Peebles and Xie, Scalable Diffusion Models with Transformers, 2022, arXiv:2212.09748; Su et al., RoFormer,
    2021, arXiv:2104.09864.

    Example:
        >>> import torch
        >>> field = DiT(channels=1, size=8, patch=2, width=32, depth=2, heads=2, classes=10)
        >>> field(torch.tensor(0.5), torch.zeros(2, 1, 8, 8), torch.tensor([3, 7])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int],
        *,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        ratio: int = 4,
        classes: int = 0,
        context: int = 0,
        positions: str = "rope",
        two_times: bool = False,
        outputs: int = 1,
    ):
        sides = check_sizes("DiT", channels, size, patch, width, depth, heads, ratio, positions)
        check_condition("DiT", classes, context)
        check_outputs("DiT", outputs)
        super().__init__((channels, *sides), () if classes else (context,) if context else None)
        self.channels, self.size, self.patch, self.width = channels, size, patch, width
        self.depth, self.heads, self.ratio, self.positions = depth, heads, ratio, positions
        self.classes, self.context, self.two_times, self.outputs = classes, context, two_times, outputs
        self.time = TimesEmbedding(width, two_times)
        self.condition = ContextEmbedding(width, classes=classes, context=context) if classes or context else None
        self.patches = Patches(channels, sides, patch, width, outputs, heads, positions)
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        t = self.check(t, x, context, s)
        dtype, differentiable = self.patches.output.weight.dtype, differentiated(t, s, x, context)
        embedding = self.time(t, s, dtype)
        if context is not None:
            embedding = embedding + self.condition(context)
        h, turns = self.patches.tokens(x.to(dtype)), self.patches.turns()
        for block in self.blocks:
            h = block(h, embedding, turns, differentiable)
        return self.patches.image(h, embedding).to(x.dtype)
