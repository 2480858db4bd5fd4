"""Rotations and reflections: linear maps that keep every length and volume."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cflow.bijections.map import Bijection
from cflow.bijections.matrices import apply_reflections, rotation, without_autocast
from cflow.registry import register

__all__ = ["Householder", "Orthogonal"]


@register("bijections.Householder")
class Householder(Bijection):
    r"""Mixes the features by a product of reflections.

    .. math:: z = H_1 \cdots H_K x, \qquad H_k = I - 2 \frac{v_k v_k^\top}{v_k^\top v_k}, \qquad \log|\det| = 0

    The vectors start as random pairs of equal vectors, whose reflections undo each other: the map starts at the
    identity (at one reflection, if K is odd) and every vector has a gradient. With K = features it reaches all
    orthogonal matrices of determinant :math:`(-1)^K`.

    Args:
        features: length of an event.
        reflections: K. Default: ``features``, plus one if it is odd.

    Shapes: ``x [B, features]``. Cost: two products of the batch with ``[features, K]`` and one triangular solve of
    that size, not K steps. It computes in the dtype of ``x``, also under autocast.

    Raises:
        ValueError: if a count is not positive.

    Source: Tomczak and Welling, Improving Variational Auto-Encoders using Householder Flow, 2016, arXiv:1611.09630.

    Example:
        >>> layer = Householder(3)
        >>> layer
        Householder(features=3, reflections=4)
        >>> z, ladj = layer.encode(torch.tensor([[3.0, 0.0, 4.0]]))
        >>> round(float(z.detach().norm()), 4), ladj
        (5.0, tensor([0.]))
    """

    def __init__(self, features: int, reflections: int | None = None):
        if reflections is None:
            reflections = features + features % 2
        if features < 1 or reflections < 1:
            raise ValueError(
                f"Householder(features={features}, reflections={reflections}): both must be at least 1; omit "
                "reflections for the default."
            )
        super().__init__(features)
        self.features, self.reflections = features, reflections
        pairs = torch.randn(-(-reflections // 2), features).repeat_interleave(2, 0)
        self.vectors = nn.Parameter(pairs[:reflections].contiguous())

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        with without_autocast(x):
            return apply_reflections(x, self.vectors.to(x.dtype), inverse=False), x.new_zeros(x.shape[0])

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        with without_autocast(z):
            return apply_reflections(z, self.vectors.to(z.dtype), inverse=True), z.new_zeros(z.shape[0])

    def extra_repr(self) -> str:
        return f"features={self.features}, reflections={self.reflections}"


@register("bijections.Orthogonal")
class Orthogonal(Bijection):
    r"""Mixes the features by a rotation.

    .. math:: z = \exp(W - W^\top) x, \qquad \log|\det| = 0

    It starts at the identity and reaches every rotation; ``decode`` multiplies by the transpose.

    Args:
        features: length of an event.

    Shapes: ``x [B, features]``. Cost: one product with the batch, and about ten products of ``[features, features]``
    for the rotation; from about a hundred features on, :class:`Householder` is cheaper. It computes in the dtype of
    ``x``, also under autocast.

    Raises:
        ValueError: if ``features`` is not positive.

    Source: Lezcano-Casado and Martínez-Rubio, Cheap Orthogonal Constraints in Neural Networks: A Simple
    Parametrization of the Orthogonal and Unitary Group, 2019, arXiv:1901.08428.

    Example:
        >>> Orthogonal(2).encode(torch.tensor([[1.0, 2.0]]))
        (tensor([[1., 2.]], grad_fn=...), tensor([0.]))
    """

    def __init__(self, features: int):
        if features < 1:
            raise ValueError(f"Orthogonal(features={features}): pass the length of an event, at least 1.")
        super().__init__(features)
        self.features = features
        self.weight = nn.Parameter(torch.zeros(features, features))

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        with without_autocast(x):
            return x @ rotation(self.weight.to(x.dtype)).t(), x.new_zeros(x.shape[0])

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        with without_autocast(z):
            return z @ rotation(self.weight.to(z.dtype)), z.new_zeros(z.shape[0])

    def extra_repr(self) -> str:
        return f"features={self.features}"
