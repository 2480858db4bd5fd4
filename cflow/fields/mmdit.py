"""The transformer on images and the tokens of a description, which attend to each other."""

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
    """One kind of tokens within a joint block, with weights of its own; the last block only listens to the context."""

    def __init__(self, width: int, heads: int, ratio: int, listens: bool):
        super().__init__()
        self.modulation = Modulation(width, width, 6 if listens else 2)
        self.attention = Attention(width, heads, listens)
        self.up = nn.Linear(width, ratio * width) if listens else None
        self.down = nn.Linear(ratio * width, width) if listens else None

    def finish(self, x: Tensor, attended: Tensor, gate1: Tensor, shift2: Tensor, scale2: Tensor, gate2: Tensor):
        x = torch.addcmul(x, gate1, self.attention.join(attended))
        h = self.down(F.gelu(self.up(modulate(x, shift2, scale2)), approximate="tanh"))
        return torch.addcmul(x, gate2, h)


class JointBlock(nn.Module):
    """Adds attention over image and description together, and a network of two layers to each."""

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
    r"""Computes a vector field on images by a transformer in which patches and the tokens of a description
    attend to each other, each kind with weights of its own (as in Stable Diffusion 3).

    The description is a context of ``tokens`` vectors of ``token_width``, such as a text encoder gives. A token that
    means "no condition" (``field.null_context``) is replaced by a learned one: a description shorter than ``tokens`` is
    filled up with such rows, and one that is left out consists of them. The mean of the tokens joins the
    time in the embedding that modulates every block.

    Args:
        channels, size, patch, width, depth, heads, ratio, positions, two_times, outputs: see :class:`DiT`.
        tokens: how many tokens a description has.
        token_width: the width of one.

    Shapes: ``t``, ``s`` ``[]`` or ``[B]``; ``x`` ``[B, channels, height, width]``; context ``[B, tokens, token_width]``
    -> like ``x``.

    Cost: ``depth`` attentions between all tokens of an image and of its context, and twice the weights of a
    :class:`DiT`.

    Raises:
        ValueError: if the sizes do not fit together; says which.

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
                f"MMDiT(tokens={tokens}, token_width={token_width}): a description has one token or more, each of one "
                f"entry or more; for images without one, use DiT."
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
        # The reserved value never enters the network: it would overflow there, and NaN its gradient.
        words = torch.where(null, self.null, self.words(torch.where(null, 0.0, context).to(dtype)))
        embedding = self.time(t, s, dtype) + self.pooled(words.mean(1))
        h, turns = self.patches.tokens(x.to(dtype)), self.patches.turns()
        for block in self.blocks:
            h, words = block(h, words, embedding, turns, differentiable)
        return self.patches.image(h, embedding).to(x.dtype)
