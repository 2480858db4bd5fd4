"""A transformer in which patches of an image and tokens of its description attend to each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cflow.fields.base import Field, check_outputs, is_null
from cflow.fields.transformer import (
    Attention,
    Modulation,
    Patches,
    TimesEmbedding,
    attend,
    check_sizes,
    differentiated,
    modulate,
    rotate,
)  # fmt: skip
from cflow.registry import register

__all__ = ["MMDiT"]


class Stream(nn.Module):
    """The weights of one kind of tokens in a joint block; tokens that are not updated have keys and values only."""

    def __init__(self, width: int, heads: int, ratio: int, updated: bool):
        super().__init__()
        self.modulation = Modulation(width, width, 6 if updated else 2)
        self.attention = Attention(width, heads, updated)
        self.up = nn.Linear(width, ratio * width) if updated else None
        self.down = nn.Linear(ratio * width, width) if updated else None

    def finish(self, x: Tensor, attended: Tensor, gate1: Tensor, shift2: Tensor, scale2: Tensor, gate2: Tensor):
        x = torch.addcmul(x, gate1, self.attention.join(attended))
        h = self.down(F.gelu(self.up(modulate(x, shift2, scale2))))
        return torch.addcmul(x, gate2, h)


class JointBlock(nn.Module):
    """Adds joint attention over image and description, and a network of two layers to each."""

    def __init__(self, width: int, heads: int, ratio: int, last: bool):
        super().__init__()
        self.image, self.words = Stream(width, heads, ratio, True), Stream(width, heads, ratio, not last)
        self.last = last

    def forward(
        self, x: Tensor, words: Tensor, embedding: Tensor, turns: tuple[Tensor, Tensor] | None, differentiable: bool
    ) -> tuple[Tensor, Tensor]:
        shift, scale, *rest = self.image.modulation(embedding)
        shift_words, scale_words, *rest_words = self.words.modulation(embedding)
        q, k, v = self.image.attention.split(modulate(x, shift, scale))
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        q_words, k_words, v_words = self.words.attention.split(modulate(words, shift_words, scale_words))
        q = q if self.last else torch.cat((q, q_words), 2)
        attended = attend(q, torch.cat((k, k_words), 2), torch.cat((v, v_words), 2), differentiable)
        x = self.image.finish(x, attended[:, :, : x.shape[1]], *rest)
        return x, words if self.last else self.words.finish(words, attended[:, :, x.shape[1] :], *rest_words)


@register("fields.MMDiT")
class MMDiT(Field):
    r"""Computes a vector field on images that are conditioned on a text or another sequence of tokens.

    Patches of the image and tokens of the description attend to each other, and each kind has its own weights (as in
    Stable Diffusion 3). The description is a context of ``tokens`` vectors of ``token_width``, such as the output of a
    text encoder. A row that means "no condition" (``field.null_context``) is replaced by a learned one. Pad a shorter
    description with such rows; a context of such rows alone means no description. The time and the mean of the tokens
    modulate every block.

    Args:
        tokens: the number of tokens of a description.
        token_width: the width of one token of the description.

    The other arguments are those of :class:`DiT`.

    Shapes: ``t``, ``s`` ``[]`` or ``[B]``; ``x`` ``[B, channels, height, width]``; context ``[B, tokens, token_width]``
    -> like ``x``.

    Cost: ``depth`` attentions between all tokens of an image and of its context. It has twice the weights of a
    :class:`DiT`.

    Raises:
        ValueError: if the sizes do not fit together.

    Source: Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
    arXiv:2403.03206, section 4.

    Example:
        >>> field = MMDiT(channels=1, size=8, tokens=5, token_width=12, patch=2, width=32, depth=2, heads=2)
        >>> words = torch.randn(3, 5, 12)
        >>> words[0, 3:] = field.null_context(words[0, 3:])  # a description of three tokens
        >>> field(torch.tensor(0.5), torch.zeros(3, 1, 8, 8), words).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int],
        *,
        tokens: int,
        token_width: int,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        ratio: int = 4,
        positions: str = "rope",
        two_times: bool = False,
        outputs: int = 1,
    ):
        sides = check_sizes("MMDiT", channels, size, patch, width, depth, heads, ratio, positions)
        if tokens < 1 or token_width < 1:
            raise ValueError(
                f"MMDiT(tokens={tokens}, token_width={token_width}): both must be positive; for images without a "
                f"description use DiT."
            )
        check_outputs("MMDiT", outputs)
        super().__init__((channels, *sides), (tokens, token_width))
        self.channels, self.size, self.patch, self.width = channels, size, patch, width
        self.depth, self.heads, self.ratio, self.positions = depth, heads, ratio, positions
        self.tokens, self.token_width, self.two_times, self.outputs = tokens, token_width, two_times, outputs
        self.time = TimesEmbedding(width, two_times)
        self.words = nn.Linear(token_width, width)
        self.null = nn.Parameter(torch.randn(width) / width**0.5)
        self.pooled = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.patches = Patches(channels, sides, patch, width, outputs, heads, positions)
        self.blocks = nn.ModuleList(JointBlock(width, heads, ratio, i == depth - 1) for i in range(depth))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        t = self.check(t, x, context, s)
        dtype, differentiable = self.null.dtype, differentiated(t, s, x, context)
        null = is_null(context)
        # The reserved value must not enter the network, where it would overflow and make gradients NaN.
        words = torch.where(null, self.null, self.words(torch.where(null, 0.0, context).to(dtype)))
        embedding = self.time(t, s, dtype) + self.pooled(words.mean(1))
        h, turns = self.patches.tokens(x.to(dtype)), self.patches.turns()
        for block in self.blocks:
            h, words = block(h, words, embedding, turns, differentiable)
        return self.patches.image(h, embedding).to(x.dtype)
