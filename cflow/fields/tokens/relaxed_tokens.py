"""Networks of token flows on relaxed tokens: the rows of the embedding are weighted by a vector."""

from __future__ import annotations

import torch
from torch import Tensor

from cflow.fields.tokens.token_field import TokenField
from cflow.fields.transformer import differentiated
from cflow.fields.wrapper import FieldWrapper
from cflow.registry import register

__all__ = ["RelaxedTokens"]


@register("fields.RelaxedTokens")
class RelaxedTokens(FieldWrapper):
    r"""Evaluates a network on tokens at vectors ``x`` in place of tokens, for :class:`cflow.RelaxedFlow`.

    .. math:: h_p = \sum_k x_{p, k} \, E_k

    where E are the embeddings of the network. At one-hot vectors the logits are those of their tokens.

    Args:
        field: the network, such as ``fields.TokenDiT(length, states=K, vocabulary=K)``.

    Shapes: ``t`` ``[]`` or ``[B]``; ``x`` ``[B, length, vocabulary]``; the context is that of the network; returns
    logits like ``x``. Cost: one function evaluation (NFE), with a product of matrices in place of a table.

    Raises:
        TypeError: if the field is not a network on tokens.
        ValueError: if the network has other states than the vocabulary.

    Example:
        >>> from cflow import fields
        >>> network = RelaxedTokens(fields.TokenDiT(8, states=5, vocabulary=5, width=16, depth=1, heads=2))
        >>> network(torch.tensor(0.5), torch.randn(3, 8, 5)).shape
        torch.Size([3, 8, 5])
    """

    self_conditioned = False

    def __init__(self, field: TokenField):
        if not callable(getattr(field, "logits", None)):
            raise TypeError(
                f"RelaxedTokens(field={type(field).__name__}): not a network on tokens; pass one such as "
                f"fields.TokenDiT."
            )
        if field.states != field.vocabulary:
            raise ValueError(
                f"RelaxedTokens(field={type(field).__name__}): the network has {field.states} states for a vocabulary "
                f"of {field.vocabulary}; build it with equal numbers."
            )
        super().__init__(field)

    @property
    def event_shape(self) -> torch.Size:
        return torch.Size((self.field.length, self.field.vocabulary))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        t = self.check(t, x, context, s)
        table = self.field.table.weight
        logits = self.field.logits(t, x.to(table.dtype) @ table, context, None, differentiated(x, t, context))
        return logits.to(x.dtype)
