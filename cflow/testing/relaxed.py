"""What a perfect network predicts on relaxed tokens, for tokens of a known distribution."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cflow.fields import Field

__all__ = ["RelaxedTokenField"]


class RelaxedTokenField(Field):
    r"""Computes the exact logits for tokens whose joint probabilities are known, by enumeration.

    .. math:: p(x_1^d = k \mid x_t) \propto \sum_{x_1 : x_1^d = k} p(x_1) \prod_e q_t(x_t^e \mid x_1^e)

    Use this field to test paths that predict ``"logits"``, and flows on them.

    Args:
        probs: the joint probabilities ``[K, ..., K]``, one dimension per position.
        evidence: a function ``(t [B], x [B, D, K]) -> [B, D, K]``: the logarithm of
            :math:`q_t(x_t^d \mid x_1^d = k)`, up to terms that do not depend on k. For standard normal noise on an
            affine path it is ``alpha / sigma**2 * x``.

    Shapes: events are ``[D, K]``. Cost: of order ``K ** D``.

    Example:
        >>> field = RelaxedTokenField(torch.eye(2) / 2, lambda t, x: t[:, None, None] / (1 - t[:, None, None]) ** 2 * x)
        >>> field(torch.tensor(0.0), torch.zeros(1, 2, 2)).softmax(-1).detach()
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """

    def __init__(self, probs: Tensor, evidence: Callable[[Tensor, Tensor], Tensor]):
        super().__init__((probs.dim(), probs.shape[0]))
        self.evidence = evidence
        words = list(itertools.product(range(probs.shape[0]), repeat=probs.dim()))
        self.register_buffer("words", torch.tensor(words))
        self.register_buffer("log_probs", probs.flatten().log())
        self.scale = nn.Parameter(torch.ones(()))  # a parameter, so that dtype and gradients are as in a network

    def forward(self, t: Tensor, x: Tensor, context=None, *, s=None) -> Tensor:
        t = self.check(t, x, context, s)
        count, size = self.event_shape
        terms = self.evidence(t.expand(x.shape[0]), x)
        joint = self.log_probs.to(x.dtype) + sum(terms[:, d, self.words[:, d]] for d in range(count))
        columns = [
            torch.stack([joint[:, self.words[:, d] == k].logsumexp(1) for k in range(size)], 1) for d in range(count)
        ]
        return self.scale * torch.stack(columns, 1).log_softmax(-1).clamp(min=-1e4)
