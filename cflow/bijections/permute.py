"""Permutations of the features."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.bijections.map import Bijection
from cflow.registry import register

__all__ = ["Permute", "check_permutation"]


@register("bijections.Permute")
class Permute(Bijection):
    r"""Puts the features into another, fixed order.

    .. math:: z_i = x_{\pi(i)}, \qquad \log|\det| = 0

    The order is a buffer of integers, saved with the flow and never trained.

    Args:
        permutation: for each entry of the latent, the index of the feature that it takes.

    Shapes: ``x [B, features]``. Cost: one gather.

    Raises:
        ValueError: if the numbers are not 0, 1, ..., features - 1, each once.

    Example:
        >>> Permute([2, 0, 1]).encode(torch.tensor([[10.0, 11.0, 12.0]]))[0]
        tensor([[12., 10., 11.]])
        >>> Permute.reverse(3)
        Permute([2, 1, 0])
    """

    fixed_buffers = True

    def __init__(self, permutation: Sequence[int] | Tensor):
        order = check_permutation("Permute", permutation)
        super().__init__(len(order))
        index = torch.tensor(order)
        self.register_buffer("permutation", index)
        self.register_buffer("_back", index.argsort(), persistent=False)

    @classmethod
    def random(cls, features: int, generator: torch.Generator | None = None) -> Permute:
        """Draws a permutation of ``features`` numbers from ``generator``, each with equal probability."""
        device = "cpu" if generator is None else generator.device
        return cls(torch.randperm(features, generator=generator, device=device))

    @classmethod
    def reverse(cls, features: int) -> Permute:
        """Returns the permutation that reverses the order of ``features`` numbers."""
        return cls(range(features)[::-1])

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        return x.index_select(1, self.permutation), x.new_zeros(x.shape[0])

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        return z.index_select(1, self._back), z.new_zeros(z.shape[0])

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._back = self.permutation.argsort()

    def __repr__(self) -> str:
        shown = "..." if len(self.permutation) > 16 or self.permutation.is_meta else self.permutation.tolist()
        return f"{type(self).__name__}({shown})"


def check_permutation(owner: str, permutation: Sequence[int] | Tensor, features: int | None = None) -> list[int]:
    """Returns the numbers of a permutation; raises if they are not a permutation, or not of that many features."""
    order = permutation.tolist() if isinstance(permutation, Tensor) else [operator.index(i) for i in permutation]
    wanted = len(order) if features is None else features
    if not order or sorted(order) != list(range(wanted)):
        raise ValueError(
            f"{owner}({order}): a permutation has every number from 0 to {wanted - 1} once; pass for example "
            f"{list(range(max(wanted, 1)))[::-1]}."
        )
    return order
