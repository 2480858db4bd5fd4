"""What all networks on tokens share: the embeddings, the conditions and the layer of logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cflow.arguments import check_integer
from cflow.fields.base import Field
from cflow.fields.embedding import ContextEmbedding, check_condition
from cflow.fields.transformer import Modulation, TimesEmbedding, differentiated, modulate

__all__ = ["TokenField"]


class TokenField(Field):
    """Embeds tokens and conditions, and returns logits; a subclass writes :meth:`mix`, its layers.

    The last layer starts at zero, so all logits of an untrained network are zero. Logits have the dtype of the network,
    but at least float32: a probability in bf16 has two digits.

    Args:
        length: the number of tokens of a sequence.
        states: the number of values of an input token, the rows of the table of embeddings: ``source.states``.
        vocabulary: the number of values of a token of the data, the number of logits: ``source.vocabulary``.
        width: the width of an embedding.
        classes: the number of class labels, if the context is a label; 0 for none.
        context: the width of a continuous context vector; 0 for none.
        reads_time: whether the time modulates the layers. Without time and condition, a learned vector does.
        self_conditioning: whether the network also reads the logits of an earlier call, the keyword ``previous``.

    Shapes: ``t`` ``[]`` or ``[B]``; ``x`` integers ``[B, length]``; ``previous`` ``[B, length, vocabulary]`` -> logits
    ``[B, length, vocabulary]``.
    """

    def __init__(
        self,
        length: int,
        states: int,
        vocabulary: int,
        *,
        width: int,
        classes: int,
        context: int,
        reads_time: bool,
        self_conditioning: bool,
    ):
        name = type(self).__name__
        for key, value in (("length", length), ("states", states), ("vocabulary", vocabulary)):
            check_integer(name, key, value, 1, "pass a positive integer, such as 64; flatten images to rows.")
        check_condition(name, classes, context)
        super().__init__((length,), () if classes else (context,) if context else None)
        self.length, self.states, self.vocabulary, self.width = length, states, vocabulary, width
        self.classes, self.context, self.reads_time = classes, context, reads_time
        self.self_conditioning = self.self_conditioned = self_conditioning
        self.table = nn.Embedding(states, width)
        self.time = TimesEmbedding(width, two_times=False) if reads_time else None
        self.condition = ContextEmbedding(width, classes=classes, context=context) if classes or context else None
        self.constant = None if reads_time or self.condition else nn.Parameter(torch.randn(1, width) / width**0.5)
        self.guess = nn.Linear(vocabulary, width, bias=False) if self_conditioning else None
        self.modulation, self.output = Modulation(width, width, 2), nn.Linear(width, vocabulary)
        # Blocks change small embeddings sooner than those of torch's default, of deviation 1: a loss of 2.43, not 2.60
        # nats, after 300 steps on characters (3 blocks of width 96).
        nn.init.normal_(self.table.weight, std=width**-0.5)
        for each in (self.output.weight, self.output.bias, *([] if self.guess is None else [self.guess.weight])):
            nn.init.zeros_(each)

    def mix(self, h: Tensor, embedding: Tensor, differentiable: bool) -> Tensor:
        """Computes the layers on ``h`` ``[B, length, width]``; every subclass writes this method.

        ``embedding`` ``[1, width]`` or ``[B, width]`` is that of time and condition; ``differentiable`` is whether
        these are differentiated, which :func:`attend` needs to know.
        """
        # An abstract method: nn.Module raises the same where a subclass has no forward.
        raise NotImplementedError(f"{type(self).__name__} has no mix(h, embedding, differentiable); write it.")

    def forward(
        self,
        t: Tensor,
        x: Tensor,
        context: Tensor | None = None,
        *,
        s: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """Computes the logits of tokens ``x`` at time ``t``, given a ``context`` and the logits of an earlier call.

        Shapes: ``previous`` ``[B, length, vocabulary]``, only with ``self_conditioning=True``; None adds nothing. The
        others are those of :meth:`Field.forward`; ``s`` must be None.
        """
        t = self.check(t, x, context, s)
        self._check_tokens(x, previous)
        return self.logits(t, self.table(x.long()), context, previous, differentiated(t, context, previous))

    def logits(
        self, t: Tensor, h: Tensor, context: Tensor | None, previous: Tensor | None, differentiable: bool
    ) -> Tensor:
        """Computes the logits from embedded tokens ``h`` ``[B, length, width]``.

        The arguments ``t``, ``context`` and ``previous`` are those of :meth:`forward`, ``differentiable`` is that of
        :meth:`mix`.
        """
        embedding = self._embedding(t, context)
        if self.guess is not None:
            h = h + self._guessed(previous, h)
        h = self.mix(h, embedding, differentiable)
        logits = self.output(modulate(h, *self.modulation(embedding)))
        return logits.to(torch.promote_types(self.output.weight.dtype, torch.float32))

    def _embedding(self, t: Tensor, context: Tensor | None) -> Tensor:
        parts = [] if self.constant is None else [self.constant]
        if self.time is not None:
            parts.append(self.time(t, None, self.output.weight.dtype))
        if context is not None:
            parts.append(self.condition(context))
        return sum(parts[1:], parts[0])

    def _guessed(self, previous: Tensor | None, h: Tensor) -> Tensor:
        if previous is None:  # zeros, so that every parameter is in the graph: distributed training needs it
            return self.guess(h.new_zeros(1, 1, self.vocabulary))
        return self.guess(F.softmax(previous, -1, torch.promote_types(previous.dtype, torch.float32)).to(h.dtype))

    def _check_tokens(self, x: Tensor, previous: Tensor | None) -> None:
        name = type(self).__name__
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(
                f"{name}(t, x): x has dtype {x.dtype}, but tokens are integers from 0 to {self.states - 1}; pass "
                f"x.long()."
            )
        if previous is None:
            return
        if self.guess is None:
            raise TypeError(
                f"{name}(t, x, previous=...): this network reads no earlier logits; omit previous, or build it with "
                f"self_conditioning=True."
            )
        wanted = [*x.shape, self.vocabulary]
        if list(previous.shape) != wanted:
            raise ValueError(
                f"{name}(t, x, previous of shape {list(previous.shape)}): x has shape {list(x.shape)}; pass the logits "
                f"of an earlier call, of shape {wanted}."
            )
