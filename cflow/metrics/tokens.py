"""The variety of tokens: what the likelihood of samples under a judge does not see."""

from __future__ import annotations

import torch
from torch import Tensor

from cflow.arguments import is_integer

__all__ = ["distinct_ngrams", "token_entropy"]


def token_entropy(tokens: Tensor, vocabulary: int) -> Tensor:
    r"""Computes the entropy of the frequencies of tokens in each row, in nats.

    .. math:: -\sum_k f_k \log f_k, \qquad f_k = \frac{1}{L} \sum_i 1[x^i = k]

    Rows that repeat themselves have a small one. Compare it with that of rows of the data with the same length: short
    rows have a smaller one, since they cannot have all tokens. Pass ``tokens.flatten()`` for the entropy of all rows
    together. It does not see the order of tokens: shuffled text has the same one.

    Args:
        tokens: integers ``[*batch, L]``, from 0 to ``vocabulary - 1``.
        vocabulary: the number of tokens K.

    Returns:
        Entropies ``[*batch]`` in float64, between 0 and ``log(min(K, L))``. Cost: a table ``[*batch, K]``.

    Raises:
        TypeError: if the tokens are not integers.
        ValueError: for empty rows, and for a token outside the vocabulary.

    Source: Zheng et al., Masked Diffusion Models are Secretly Time-Agnostic Masked Models, 2024, arXiv:2409.02908
    (which reports it with the perplexity of samples).

    Example:
        >>> token_entropy(torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1]]), vocabulary=3)
        tensor([0.0000, 0.6931], dtype=torch.float64)
    """
    _check("token_entropy", tokens)
    if not is_integer(vocabulary, 1) or not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise ValueError(
            f"token_entropy(vocabulary={vocabulary!r}): tokens lie between {int(tokens.min())} and "
            f"{int(tokens.max())}; pass the number of tokens, source.vocabulary."
        )
    counts = torch.zeros(*tokens.shape[:-1], vocabulary, dtype=torch.float64, device=tokens.device)
    counts.scatter_add_(-1, tokens.long(), torch.ones_like(tokens, dtype=torch.float64))
    return torch.special.entr(counts / tokens.shape[-1]).sum(-1)


def distinct_ngrams(tokens: Tensor, n: int) -> float:
    r"""Computes the share of different sequences among all sequences of ``n`` neighbouring tokens.

    1 if no sequence occurs twice, and small if rows repeat themselves or each other. It decreases with the number of
    rows, so compare samples and data with the same number. Sequences do not cross the end of a row.

    Args:
        tokens: integers ``[*batch, L]``.
        n: the length of a sequence, from 1 to L.

    Returns:
        A number in (0, 1]. Cost: a sort of all sequences.

    Raises:
        TypeError: if the tokens are not integers.
        ValueError: for empty rows, and if ``n`` is not between 1 and L.

    Source: Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models, 2015, arXiv:1510.03055.

    Example:
        >>> distinct_ngrams(torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]]), n=2)  # 01 10 01 01 12 23
        0.6666666666666666
    """
    _check("distinct_ngrams", tokens)
    if not is_integer(n, 1) or n > tokens.shape[-1]:
        raise ValueError(
            f"distinct_ngrams(n={n!r}): rows have {tokens.shape[-1]} tokens; pass an integer from 1 to that."
        )
    grams = tokens.unfold(-1, n, 1).reshape(-1, n)
    return len(grams.unique(dim=0)) / len(grams)


def _check(name: str, tokens: Tensor) -> None:
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(f"{name}(tokens of {tokens.dtype}): tokens are integers; pass tokens.long().")
    if not tokens.dim() or not tokens.numel():
        raise ValueError(f"{name}(tokens of shape {list(tokens.shape)}): there are no tokens; pass [*batch, L].")
