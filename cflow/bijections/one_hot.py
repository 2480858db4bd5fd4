"""One-hot tokens: whole numbers become the corners of a simplex."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.arguments import check_integer, check_tokens
from cflow.bijections.map import Map
from cflow.registry import register
from cflow.shapes import as_shape

__all__ = ["OneHot"]


@register("bijections.OneHot")
class OneHot(Map):
    r"""Maps tokens to one-hot vectors; ``decode`` returns the token with the largest entry.

    .. math:: z_{p, k} = 1[x_p = k], \qquad x_p = \operatorname{argmax}_k z_{p, k}

    It makes a flow over tokens from a continuous flow over ``[*positions, vocabulary]``. The density of such a flow at
    a corner of the simplex says nothing about the probability of the tokens, so its likelihood is ``"none"``;
    :class:`cflow.RelaxedFlow` has a bound.

    Args:
        event_shape: shape of the tokens, ``[*positions]``.
        vocabulary: the number K of tokens.

    Shapes: ``x [B, *event_shape]`` holds whole numbers from 0 to K - 1 in any dtype; ``z`` is
    ``[B, *event_shape, K]``, in float32, or float64 where ``x`` or torch's default dtype (for integers) is. ``decode``
    returns int64; it has no gradient.

    Cost: on the CPU, ``encode`` reads whether all tokens are in the vocabulary. On other devices it does not wait: a
    token outside becomes NaN.

    Raises:
        ValueError: if ``vocabulary`` is not a whole number of at least 2; in ``encode``, for a value that is not a
            token.

    Example:
        >>> one_hot = OneHot(2, vocabulary=3)
        >>> z, _ = one_hot.encode(torch.tensor([[2, 0]]))
        >>> z, one_hot.decode(z)[0]
        (tensor([[[0., 0., 1.],
                 [1., 0., 0.]]]), tensor([[2, 0]]))
    """

    likelihood = "none"
    has_rsample = False
    takes_integers = True
    reads_values = True

    def __init__(self, event_shape: int | Sequence[int], vocabulary: int):
        why = "a vocabulary has two tokens or more; pass their number, such as 27."
        check_integer("OneHot", "vocabulary", vocabulary, 2, why, numpy=True)
        super().__init__(event_shape, latent_shape=(*as_shape(event_shape), vocabulary))
        self.vocabulary = self.levels = int(vocabulary)
        self.domain = (0.0, vocabulary - 1.0)

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        check_tokens("OneHot.encode", x, self.vocabulary)
        valid = (x >= 0) & (x < self.vocabulary) & (x == x.floor())
        tokens = torch.where(valid, x.detach(), 0).long().unsqueeze(-1)
        ones = torch.where(valid, 1.0, torch.nan).to(x.dtype).unsqueeze(-1)
        z = x.new_zeros(*x.shape, self.vocabulary).scatter(-1, tokens, ones)
        return z, x.new_zeros(x.shape[0])

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        return z.argmax(-1), z.new_zeros(z.shape[0])

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}, vocabulary={self.vocabulary}"
