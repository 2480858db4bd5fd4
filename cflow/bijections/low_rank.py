"""Linear maps: a diagonal matrix plus a term of low rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cflow.bijections.map import Bijection
from cflow.bijections.matrices import without_autocast
from cflow.registry import register

__all__ = ["LowRank"]


@register("bijections.LowRank")
class LowRank(Bijection):
    r"""Mixes the features by a diagonal matrix plus a term of low rank, in time linear in the number of features.

    .. math:: z = e^{\theta} \odot (x + s\, U V^\top x) + b, \qquad s = (1 + \lVert V^\top U \rVert_F^2)^{-1/2}, \qquad
        \log|\det| = \textstyle\sum_i \theta_i + \log \det(I_r + s\, V^\top U)

    The factor s keeps the norm of :math:`s\, V^\top U` below one, so the small determinant is positive and the map is
    invertible for all parameters; :math:`U V^\top` may have any size. ``decode`` uses Woodbury's identity,
    :math:`(I + s\, U V^\top)^{-1} = I - s\, U (I_r + s\, V^\top U)^{-1} V^\top`. U starts at zero and V at random: the
    map starts at the identity, with a gradient for U.

    Args:
        features: length of an event, D.
        rank: number of directions, r.

    Shapes: ``x [B, features]``. Cost: :math:`O(B D r + D r^2 + r^3)`. It computes in the dtype of ``x``, also under
    autocast.

    Raises:
        ValueError: if the rank is not between 1 and ``features``.

    Source: Lu and Huang, Woodbury Transformations for Deep Generative Flows, 2020, arXiv:2002.12229 (there without s).

    Example:
        >>> LowRank(3, rank=1).encode(torch.ones(1, 3))
        (tensor([[1., 1., 1.]], grad_fn=...), tensor([0.], grad_fn=...))
    """

    def __init__(self, features: int, rank: int):
        if not 1 <= rank <= features:
            raise ValueError(
                f"LowRank(features={features}, rank={rank}): the rank must be from 1 to features; pass fewer, or use "
                "LULinear."
            )
        super().__init__(features)
        self.features, self.rank = features, rank
        self.left = nn.Parameter(torch.zeros(features, rank))
        self.right = nn.Parameter(torch.randn(features, rank) * features**-0.5)
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        with without_autocast(x):
            left, right, small, log_scale, shift = self._parts(x.dtype)
            z = torch.addcmul(shift, torch.addmm(x, x @ right, left.t()), log_scale.exp())
            ladj = log_scale.sum() + torch.linalg.slogdet(small).logabsdet
        return z, ladj.expand(x.shape[0])

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        with without_autocast(z):
            left, right, small, log_scale, shift = self._parts(z.dtype)
            y = (z - shift) * (-log_scale).exp()
            inner, _ = torch.linalg.solve_ex(small.t(), y @ right, left=False)
            ladj = -log_scale.sum() - torch.linalg.slogdet(small).logabsdet
            return torch.addmm(y, inner, left.t(), alpha=-1), ladj.expand(z.shape[0])

    def _parts(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Returns s U, V, the small matrix, the logarithm of the diagonal and the shift."""
        left, right = self.left.to(dtype), self.right.to(dtype)
        inner = right.t() @ left
        factor = (1 + inner.square().sum()).rsqrt()
        small = torch.eye(self.rank, dtype=dtype, device=left.device) + factor * inner
        return factor * left, right, small, self.log_scale.to(dtype), self.shift.to(dtype)

    def extra_repr(self) -> str:
        return f"features={self.features}, rank={self.rank}"
