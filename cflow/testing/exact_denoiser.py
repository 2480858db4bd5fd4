"""The perfect denoiser of a known law of tokens, for tests of token flows."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from cflow.ctmc import Mixture, Source
from cflow.fields import Field
from cflow.registry import register

__all__ = ["ExactDenoiser"]


@register("testing.ExactDenoiser")
class ExactDenoiser(Field):
    r"""Computes the posterior of the data's tokens exactly, for a law of few tokens, by enumeration.

    .. math:: p(x_1^i = j \mid x_t) \propto \sum_{x_1 : x_1^i = j} p(x_1) \prod_k p_t(x_t^k \mid x_1^k)

    Use it to test sources, schedules, rates, samplers and bounds against their theory.

    Args:
        law: the probabilities of all sequences, ``[K, ..., K]`` with one dimension for each of D tokens.
        source: the source of the flow.
        path: the path of the flow, which defines schedule and head.

    Shapes: ``t [B]``, ``x [B, D]`` -> logits ``[B, D, K]``, float64. Cost: ``K^D`` terms for each row.

    Example:
        >>> from cflow import ctmc
        >>> law = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
        >>> denoiser = ExactDenoiser(law, ctmc.Mask(2, vocabulary=2), ctmc.Mixture())
        >>> denoiser(torch.tensor([0.5]), torch.tensor([[2, 1]])).softmax(-1).detach()
        tensor([[[0., 1.],
                 [0., 1.]]], dtype=torch.float64)
    """

    def __init__(self, law: Tensor, source: Source, path: Mixture):
        super().__init__((law.dim(),))
        self.register_buffer("law", law.double())
        self.source, self.path = source, path
        self.vocabulary, self.states = source.vocabulary, source.states
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def sequences(self) -> Tensor:
        """Returns all sequences of the data, ``[K^D, D]``."""
        size, count = self.law.shape[0], self.law.dim()
        return torch.tensor(list(itertools.product(range(size), repeat=count)), device=self.law.device)

    def channel(self, t: Tensor) -> Tensor:
        """Returns the probabilities of states given tokens of the data at times ``t [B]``, ``[B, D, K, states]``."""
        data = torch.arange(self.vocabulary, device=self.law.device)
        spread, shape = t.double().reshape(-1, 1), (len(t), self.law.dim())
        kappa = self.path.schedule.kappa(spread).expand(shape).reshape(*shape, 1, 1)
        known = torch.nn.functional.one_hot(data, self.states).double()
        table = self.source.probs(spread) if self.source.has_density else self._frequencies()
        return kappa * known + (1 - kappa) * table.expand(*shape, self.states).unsqueeze(2)

    def _frequencies(self) -> Tensor:
        """Returns the frequencies of given tokens at each position, ``[D, states]``."""
        return torch.nn.functional.one_hot(self.source.tokens, self.states).double().mean(0)

    def marginal(self, t: Tensor) -> Tensor:
        """Returns the probabilities of all states at time ``t []``, ``[states, ..., states]``."""
        found = self.law
        for each in self.channel(t.reshape(1))[0]:
            # The first dimension is the next token; its state becomes the last dimension.
            found = torch.tensordot(found, each, dims=([0], [0]))
        return found

    def forward(self, t: Tensor, x: Tensor, context: Any = None, *, s: Any = None) -> Tensor:
        count, rank = x.shape
        # The probabilities of the states given each token of the data, [B, D, K].
        index = x.reshape(count, rank, 1, 1).expand(-1, -1, self.vocabulary, -1)
        given = self.channel(t.expand(count)).gather(-1, index).squeeze(-1)
        terms = [
            given[:, k].reshape(count, *(self.vocabulary if k == i else 1 for i in range(rank))) for k in range(rank)
        ]
        leave, totals = self.path.head == "leave-one-out", []
        for i in range(rank):
            joint = self.law.expand(count, *self.law.shape)
            for k, term in enumerate(terms):
                if not (leave and k == i):
                    joint = joint * term
            totals.append(
                joint.movedim(i + 1, 1).reshape(count, self.vocabulary, self.vocabulary ** (rank - 1)).sum(-1)
            )
        return self.scale * torch.stack(totals, 1).log().clamp(min=-1e4)


def correlated(size: int, count: int, seed: int = 0) -> Tensor:
    """Returns a law of ``count`` tokens that depend on each other, ``[size, ..., size]``."""
    generator = torch.Generator().manual_seed(seed)
    law = torch.rand((size,) * count, generator=generator, dtype=torch.float64) ** 3
    return law / law.sum()


def entropy(law: Tensor) -> float:
    """Computes the entropy of a law, in nats."""
    return float(-torch.special.xlogy(law, law).sum())
