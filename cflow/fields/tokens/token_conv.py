"""A small convolutional network on sequences of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from cflow.arguments import is_integer
from cflow.fields.tokens.token_field import TokenField
from cflow.fields.transformer import Modulation, modulate
from cflow.registry import register

__all__ = ["TokenConv"]


class ConvBlock(nn.Module):
    """Adds a dilated convolution along the sequence and a linear map to its input; the branch starts at zero."""

    def __init__(self, width: int, kernel: int, dilation: int):
        super().__init__()
        self.modulation = Modulation(width, width, 3)
        self.conv = nn.Conv1d(width, width, kernel, padding=dilation * (kernel // 2), dilation=dilation)
        self.output = nn.Linear(width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(embedding)
        mixed = self.conv(modulate(h, shift, scale).mT).mT
        return h + gate * self.output(F.gelu(mixed))


@register("fields.TokenConv")
class TokenConv(TokenField):
    r"""Computes logits of tokens with residual dilated convolutions, for short sequences and cheap problems.

    .. math:: h \leftarrow h + g(t) \odot W \operatorname{gelu}\bigl(
        K_d * (s(t) \odot \operatorname{norm}(h) + b(t))\bigr)

    The embedding of time and condition shifts, scales and gates every block. Positions outside the sequence are zero,
    so the network knows the ends, not the positions. Gates and the last layer start at zero, so all logits of an
    untrained network are zero.

    Logits have the dtype of the network, but at least float32 (a probability in bf16 has two digits).

    Args:
        width: the number of channels, a multiple of 4.
        depth: the number of blocks.
        kernel: the number of taps of a convolution, odd.
        dilations: the distances between taps, one for each block, repeated. Default: 1, 4, 16, 64, of which those below
            ``length``.

    The other arguments (``length``, ``states``, ``vocabulary``, ``classes``, ``context``, ``reads_time`` and
    ``self_conditioning``) are those of :class:`TokenDiT`.

    Shapes: ``t`` ``[]`` or ``[B]``; ``x`` integers ``[B, length]``; labels ``[B]`` or context ``[B, context]``;
    ``previous`` ``[B, length, vocabulary]`` -> logits ``[B, length, vocabulary]``.

    Cost: linear in ``length``. ``TokenConv(64, 28, 27)`` has 1.8 M parameters. A block sees
    ``dilation * (kernel - 1) / 2`` tokens on each side; eight blocks of the default see 680.

    Raises:
        ValueError: if the sizes do not fit together, or a shape does not.
        TypeError: for ``x`` that are not integers, and for ``previous`` without ``self_conditioning=True``.

    Source: Stark et al., Dirichlet Flow Matching with Applications to DNA Sequence Design, 2024, arXiv:2402.05841
    (dilated convolutions of nine taps on tokens).

    Example:
        >>> import torch
        >>> field = TokenConv(length=16, states=5, vocabulary=4, width=16, depth=3)
        >>> field.dilations, field(torch.tensor(0.5), torch.full((3, 16), 4)).shape
        ((1, 4), torch.Size([3, 16, 4]))
    """

    def __init__(
        self,
        length: int,
        states: int,
        vocabulary: int,
        *,
        width: int = 128,
        depth: int = 8,
        kernel: int = 9,
        dilations: Sequence[int] | None = None,
        classes: int = 0,
        context: int = 0,
        reads_time: bool = True,
        self_conditioning: bool = False,
    ):
        if min(width, depth, kernel) < 1 or width % 4 or not kernel % 2:
            raise ValueError(
                f"TokenConv(width={width}, depth={depth}, kernel={kernel}): all must be positive; pass a width "
                f"divisible by 4 and an odd kernel."
            )
        fitting = (d for d in (1, 4, 16, 64) if not is_integer(length) or d < max(length, 2))
        dilations = tuple(fitting if dilations is None else dilations)
        if not dilations or not all(is_integer(each, 1) for each in dilations):
            raise ValueError(f"TokenConv(dilations={dilations}): pass positive integers, such as (1, 4, 16).")
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
        self.depth, self.kernel, self.dilations = depth, kernel, dilations
        self.blocks = nn.ModuleList(ConvBlock(width, kernel, dilations[i % len(dilations)]) for i in range(depth))

    def mix(self, h: Tensor, embedding: Tensor, differentiable: bool) -> Tensor:
        """Computes the blocks on ``h`` ``[B, length, width]``, modulated by ``embedding``.

        They are the same whether or not they are ``differentiable``.
        """
        for block in self.blocks:
            h = block(h, embedding)
        return h
