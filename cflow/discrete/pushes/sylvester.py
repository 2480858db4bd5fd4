"""Planar flows along several directions at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cflow.bijections import Bijection
from cflow.bijections.matrices import orthonormal, without_autocast
from cflow.discrete.pushes.planar import excess, log_slope, undo_push
from cflow.discrete.pushes.push import parameters_of
from cflow.registry import register

__all__ = ["Sylvester"]


@register("discrete.Sylvester")
class Sylvester(Bijection):
    r"""Moves points within a subspace by functions of the projection on it.

    .. math:: z = x + Q R \tanh(a), \quad a = \tilde R Q^\top x + b, \qquad
        \log|\det| = \sum_{i=1}^M \log(1 + m_i \operatorname{sech}^2 a_i), \quad m_i = R_{ii} \tilde R_{ii}

    with orthonormal columns Q, from Householder reflections, and upper triangular R and :math:`\tilde R`. It is
    invertible where every :math:`m_i > -1`, so the diagonals are :math:`\tilde R_{ii} = e^{2 \tanh(\rho_i / 2)}` and
    :math:`R_{ii} = m_i / \tilde R_{ii}`, with m as in :class:`Planar`. R starts at zero, so the map starts at the
    identity.

    ``encode`` is the closed form; ``decode`` solves the triangular system in the subspace from its last entry to its
    first, one monotone equation for each. In variational inference, samples of the posterior come from ``decode``: use
    ``Inverse(Sylvester(...))`` there.

    Args:
        features: length of an event.
        directions: M, the dimension of the subspace, at most ``features``. Default: ``features``.
        context: width of a context on which b depends linearly; 0 for none.

    Shapes: ``x [B, features]``, ``context [B, context]``.

    Cost: ``encode`` takes two products of the batch with ``[features, M]``; ``decode`` also takes ten Newton steps on
    ``[B]`` for each direction. It computes in the dtype of ``x``, also under autocast.

    Raises:
        ValueError: if ``directions`` is not between 1 and ``features``, or ``context`` is negative.

    Source: van den Berg et al., Sylvester Normalizing Flows for Variational Inference, 2018, arXiv:1803.05649,
    section 3 and 4.3.

    Example:
        >>> Sylvester(3, directions=2).encode(torch.ones(1, 3))
        (tensor([[1., 1., 1.]], grad_fn=...), tensor([0.], grad_fn=...))
    """

    def __init__(self, features: int, directions: int | None = None, context: int = 0):
        if directions is None:
            directions = features
        if not 1 <= directions <= features or context < 0:
            raise ValueError(
                f"Sylvester(features={features}, directions={directions}, context={context}): directions must be from "
                "1 to features, context 0 or more; omit directions."
            )
        super().__init__(features, context or None)
        self.features, self.directions, self.context = features, directions, context
        self.vectors = nn.Parameter(torch.randn(directions, features))
        self.outer = nn.Parameter(torch.zeros(directions, directions))
        self.inner = nn.Parameter(torch.randn(directions, directions) * directions**-0.5)
        self.b = nn.Parameter(torch.zeros(directions))
        self.weight = nn.Parameter(torch.zeros(directions, context)) if context else None

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, context = self.accept(x, context, "encode")
        with without_autocast(x):
            basis, outer, inner, b, raw = self._parts(x, context)
            a = torch.addmm(b, x @ basis, inner.t())
            z = torch.addmm(x, torch.tanh(a) @ outer.t(), basis.t())
            return z, log_slope(a, raw).sum(-1)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, context = self.accept(z, context, "decode")
        with without_autocast(z):
            basis, outer, inner, b, raw = self._parts(z, context)
            ys, pushes, ladjs = [], [], []
            for i, target in reversed(list(enumerate((z @ basis).unbind(-1)))):
                offset = b[:, i]
                # Terms that the later entries add to the argument of tanh, and to the latent.
                if ys:
                    offset = offset + torch.stack(ys, -1) @ inner[i, i + 1 :]
                    target = target - torch.stack(pushes, -1) @ outer[i, i + 1 :]
                a, ladj = undo_push(inner[i, i] * target + offset, raw[i].expand(z.shape[0]))
                pushes.insert(0, torch.tanh(a))
                ys.insert(0, target - outer[i, i] * pushes[0])
                ladjs.append(ladj)
            x = torch.addmm(z, torch.stack(pushes, -1) @ outer.t(), basis.t(), alpha=-1)
            return x, torch.stack(ladjs).sum(0)

    def _parts(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """Returns Q, both triangular matrices, b per sample, and the raw numbers whose :func:`excess` are the m."""
        dtype = value.dtype
        outer, inner = self.outer.to(dtype), self.inner.to(dtype)
        raw = outer.diagonal()
        gain = (2 * torch.tanh(0.5 * inner.diagonal())).exp()
        inner = inner.triu(1) + gain.diag_embed()
        outer = outer.triu(1) + (excess(raw) / gain).diag_embed()
        b = parameters_of(value, context, (self.b,), self.weight)
        return orthonormal(self.vectors.to(dtype)), outer, inner, b, raw

    def extra_repr(self) -> str:
        context = f", context={self.context}" if self.context else ""
        return f"features={self.features}, directions={self.directions}{context}"
