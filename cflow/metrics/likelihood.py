"""Log-likelihoods in the units of the literature."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

__all__ = ["bits_per_dim", "bits_per_token", "perplexity"]


def bits_per_dim(log_prob: Tensor, event_shape: int | Sequence[int], levels: int | None = None) -> Tensor:
    r"""Converts log-densities in nats to bits per dimension.

    .. math:: -\frac{\log p(x)}{D \log 2} \quad (+ \log_2 L \text{ where } p \text{ is a density on } x / L)

    Args:
        log_prob: log-densities ``[*batch]`` in nats.
        event_shape: shape of one event, such as ``(3, 32, 32)``, or its number of dimensions D.
        levels: number of integer levels L, only if ``log_prob`` is the density of images scaled to [0, 1]. Omit it for
            a flow with :class:`cflow.bijections.Dequantise`, whose ``log_prob`` is that of the integer levels.

    Returns:
        Bits per dimension ``[*batch]``; lower is better.

    Raises:
        ValueError: if the event is empty, or ``levels`` is below 2.

    Source: Theis et al., A note on the evaluation of generative models, 2015, arXiv:1511.01844.

    Example:
        >>> import torch
        >>> bits_per_dim(torch.tensor([-3 * 8 * math.log(2)]), event_shape=(1, 3))
        tensor([8.])
    """
    size = _size("bits_per_dim", event_shape, "dimensions; pass for example (3, 32, 32)")
    if levels is not None and levels < 2:
        raise ValueError(f"bits_per_dim(levels={levels}): pass at least 2, such as 256 for 8-bit images.")
    bits = -log_prob / (size * math.log(2))
    return bits if levels is None else bits + math.log2(levels)


def bits_per_token(log_prob: Tensor, event_shape: int | Sequence[int]) -> Tensor:
    r"""Converts log-probabilities of tokens in nats to bits per token.

    .. math:: -\frac{\log p(x)}{D \log 2}

    For a flow whose ``likelihood`` is ``"bound"``, such as a token flow, the mean of ``log_prob`` is below the
    log-probability, so these bits are an upper bound, and each value is random; average them over rows and draws. All D
    tokens count, also those that a mask source shows to the network: the bound has one term for each token.

    Args:
        log_prob: log-probabilities ``[*batch]`` in nats.
        event_shape: shape of one event, such as ``(256,)``, or its number of tokens D. Pass the number of characters
            (or their mean over the rows) for bits per character of word pieces.

    Returns:
        Bits per token ``[*batch]``; lower is better. A token that is uniform over K values has ``log2(K)``.

    Raises:
        ValueError: if the event is empty.

    Source: Graves, Generating Sequences With Recurrent Neural Networks, 2013, arXiv:1308.0850 (bits per character).

    Example:
        >>> import torch
        >>> bits_per_token(torch.tensor([-8 * math.log(27)]), event_shape=(8,))
        tensor([4.7549])
    """
    return -log_prob / (_size("bits_per_token", event_shape, "tokens; pass for example (256,)") * math.log(2))


def perplexity(log_prob: Tensor, event_shape: int | Sequence[int]) -> Tensor:
    r"""Computes the perplexity, the number of equally likely tokens that would be as hard to predict.

    .. math:: \exp\Big(-\frac{\log p(x)}{D}\Big)

    The perplexity of a whole text is that of the mean log-probability of its rows, which is not the mean of their
    perplexities: pass ``log_prob.mean()``. With a bound it is an upper bound on the perplexity
    (:func:`bits_per_token`). As a judge of samples it is one half of the truth: repeated text has a small one. Report
    :func:`token_entropy` with it.

    Args:
        log_prob: log-probabilities ``[*batch]`` in nats.
        event_shape: shape of one event, such as ``(256,)``, or its number of tokens D.

    Returns:
        Perplexities ``[*batch]``; lower is better.

    Raises:
        ValueError: if the event is empty.

    Source: Jelinek et al., Perplexity: a measure of the difficulty of speech recognition tasks, 1977.

    Example:
        >>> import torch
        >>> rows = torch.tensor([-8 * math.log(2.0), -8 * math.log(8.0)])
        >>> perplexity(rows, 8), perplexity(rows.mean(), 8)
        (tensor([2., 8.]), tensor(4.))
    """
    return (-log_prob / _size("perplexity", event_shape, "tokens; pass for example (256,)")).exp()


def _size(name: str, event_shape: int | Sequence[int], lacks: str) -> int:
    """Returns the number of entries of an event; raises if there are none."""
    size = event_shape if isinstance(event_shape, int) else math.prod(event_shape)
    if size < 1:
        raise ValueError(f"{name}(event_shape={event_shape}): an event without {lacks}.")
    return size
