"""A transformer on sequences of tokens, modulated by time and condition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cflow.fields.tokens.token_field import TokenField
from cflow.fields.transformer import Block, rotations
from cflow.registry import register

__all__ = ["TokenDiT"]


@register("fields.TokenDiT")
class TokenDiT(TokenField):
    r"""Computes logits of tokens with a transformer (diffusion transformer with rotary positions, adaLN-zero).

    .. math:: (t, x) \mapsto \ell,
        \qquad p(x_1^i = k \mid x_t = x) = \operatorname{softmax}(\ell_i)_k

    Every block adds self-attention between the tokens and a network of two layers. The embedding of time and condition
    shifts and scales their inputs and gates their outputs. Queries and keys are normalised and rotated by their
    position, so attention depends only on differences of positions, and no weight depends on ``length``. Gates and the
    last layer start at zero, so all logits of an untrained network are zero.

    Logits have the dtype of the network, but at least float32 (a probability in bf16 has two digits).

    Args:
        length: the number of tokens of a sequence.
        states: the number of values of an input token: ``source.states``, which counts the mask.
        vocabulary: the number of values of a token of the data, the number of logits: ``source.vocabulary``.
        width: the width of a token inside, a multiple of ``2 * heads`` and of 4.
        depth: the number of blocks.
        heads: the number of heads of every attention.
        ratio: the hidden width of a block's network, in units of ``width``.
        classes: the number of class labels, if the context is a label; 0 for none.
        context: the width of a continuous context vector; 0 for none.
        reads_time: whether the time modulates the blocks. With False, ``t`` is checked, not read, and a sampler may
            need fewer evaluations; a denoiser of masked tokens needs no time. Without time and condition, a learned
            vector modulates the blocks.
        self_conditioning: whether the network also takes the keyword ``previous``, the logits of an earlier call or
            None. Their softmax (zeros for None) passes through a linear layer that starts at zero, and is added to the
            embeddings of the tokens.
        causal: whether a token attends only to itself and to the tokens before it, as an autoregressive model does.

    Shapes: ``t`` ``[]`` or ``[B]``; ``x`` integers ``[B, length]``; labels ``[B]`` or context ``[B, context]``;
    ``previous`` ``[B, length, vocabulary]`` -> logits ``[B, length, vocabulary]``.

    Cost: ``depth`` attentions between all tokens. ``TokenDiT(256, 28, 27, width=128, depth=4, heads=4)`` has 1.3 M
    parameters. Attention uses fused kernels, which store no weights, unless a time or context is differentiated.

    Raises:
        ValueError: if the sizes do not fit together, or a shape does not.
        TypeError: for ``x`` that are not integers, and for ``previous`` without ``self_conditioning=True``.

    Source: Peebles and Xie, Scalable Diffusion Models with Transformers, 2022, arXiv:2212.09748; Su et al., RoFormer,
    2021, arXiv:2104.09864; Lou et al., Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution,
    2023, arXiv:2310.16834 (this network on tokens); Chen et al., Analog Bits, 2022, arXiv:2208.04202
    (self-conditioning).

    Example:
        >>> field = TokenDiT(length=16, states=28, vocabulary=27, width=32, depth=2, heads=2)
        >>> field(torch.tensor(0.5), torch.full((3, 16), 27)).shape
        torch.Size([3, 16, 27])
    """

    def __init__(
        self,
        length: int,
        states: int,
        vocabulary: int,
        *,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        ratio: int = 4,
        classes: int = 0,
        context: int = 0,
        reads_time: bool = True,
        self_conditioning: bool = False,
        causal: bool = False,
    ):
        if min(width, depth, heads, ratio) < 1 or width % (2 * heads) or width % 4:
            raise ValueError(
                f"TokenDiT(width={width}, depth={depth}, heads={heads}, ratio={ratio}): all must be positive; pass a "
                f"width divisible by 2 * heads and by 4."
            )
        super().__init__(
            length,
            states,
            vocabulary,
            width=width,
            classes=classes,
            context=context,
            reads_time=reads_time,
            self_conditioning=self_conditioning,
        )
        self.depth, self.heads, self.ratio, self.causal = depth, heads, ratio, causal
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        ladder = rotations(width // heads, 10_000.0).to(torch.get_default_dtype())
        self.register_buffer("ladder", ladder, persistent=False)

    def turns(self) -> tuple[Tensor, Tensor]:
        """Returns the cosines and sines ``[length, width / heads / 2]`` that rotate queries and keys by their position.

        All blocks share them, so they are computed once per call, from angles in float32 or better.
        """
        ladder = self.ladder.to(torch.promote_types(self.ladder.dtype, torch.float32))
        angles = torch.arange(self.length, dtype=ladder.dtype, device=ladder.device)[:, None] * ladder
        return angles.cos().to(self.ladder.dtype), angles.sin().to(self.ladder.dtype)

    def mix(self, h: Tensor, embedding: Tensor, differentiable: bool) -> Tensor:
        """Computes the blocks on ``h`` ``[B, length, width]``, modulated by ``embedding``.

        Attention is fused unless ``differentiable``.
        """
        turns = self.turns()
        for block in self.blocks:
            h = block(h, embedding, turns, differentiable, self.causal)
        return h
