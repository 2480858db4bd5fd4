"""Invertible matrices from triangular factors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular

from cflow.bijections.map import Bijection
from cflow.bijections.matrices import factors, without_autocast
from cflow.registry import register

__all__ = ["LULinear"]


@register("bijections.LULinear")
class LULinear(Bijection):
    r"""Mixes the features by an invertible matrix, the product of two triangular ones.

    .. math:: z = L U x + b, \qquad \log|\det| = \sum_i \theta_{ii}

    :math:`L` has ones on its diagonal and :math:`U` has :math:`e^{\theta_{ii}} > 0`, so the matrix is invertible for
    all parameters. It starts at the identity. Its determinant is positive, and some matrices have no such factors; with
    a :class:`Permute` before it, all can be reached.

    Args:
        features: length of an event.
        bias: whether the map has a learned shift b.

    Shapes: ``x [B, features]``.

    Cost: ``encode`` multiplies the factors once and the batch once; ``decode`` solves two triangular systems and forms
    no inverse. It computes in the dtype of ``x``, also under autocast. Keep PyTorch's default precision of float32
    products on GPUs (``torch.set_float32_matmul_precision("highest")``): with TF32 ``encode`` is right to three digits
    only.

    Raises:
        ValueError: if ``features`` is not positive.

    Source: Oliva et al., Transformation Autoregressive Networks, 2018, arXiv:1801.09819; Kingma and Dhariwal, Glow:
    Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv:1807.03039, section 3.2.

    Example:
        >>> layer = LULinear(2)
        >>> z, ladj = layer.encode(torch.tensor([[1.0, 2.0]]))
        >>> z, ladj
        (tensor([[1., 2.]], grad_fn=...), tensor([0.], grad_fn=...))
    """

    def __init__(self, features: int, bias: bool = True):
        if features < 1:
            raise ValueError(f"LULinear(features={features}): pass the length of an event, at least 1.")
        super().__init__(features)
        self.features, self.bias = features, bias
        self.weight = nn.Parameter(torch.zeros(features, features))
        self.shift = nn.Parameter(torch.zeros(features)) if bias else None

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        with without_autocast(x):
            lower, upper, ladj = factors(self.weight.to(x.dtype))
            matrix = (lower @ upper).t()
            z = x @ matrix if self.shift is None else torch.addmm(self.shift.to(x.dtype), x, matrix)
        return z, ladj.expand(x.shape[0])

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        with without_autocast(z):
            lower, upper, ladj = factors(self.weight.to(z.dtype))
            x = z if self.shift is None else z - self.shift.to(z.dtype)
            x = solve_triangular(lower.t(), x, upper=True, left=False, unitriangular=True)
            x = solve_triangular(upper.t(), x, upper=False, left=False)
        return x, (-ladj).expand(z.shape[0])

    def extra_repr(self) -> str:
        return f"features={self.features}" + ("" if self.bias else ", bias=False")
