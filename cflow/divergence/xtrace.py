"""XTrace: every test vector is probe for the subspace of all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.arguments import is_integer
from cflow.divergence.sketched import Sketched, each_column
from cflow.draws import draw_rows
from cflow.registry import register

__all__ = ["XTrace"]


@register("divergence.XTrace")
@dataclass(frozen=True)
class XTrace(Sketched):
    r"""Estimates the divergence with every test vector in both roles: part of the sketch, and probe of the rest.

    .. math:: \operatorname{tr} A \approx \frac1k \sum_{i=1}^k \Bigl[ \operatorname{tr}(Q_i^\top A Q_i)
              + (D - k + 1) \frac{r_i^\top A r_i}{\|r_i\|^2} \Bigr], \quad
              r_i = (I - Q_i Q_i^\top) \omega_i, \quad A = J^\top

    with :math:`k` = ``products / 2`` Gaussian vectors, drawn once per solve, and :math:`Q_i` an orthonormal basis of
    the products with all but the i-th, found for all i from one QR decomposition. No bias, whatever J; no error where
    J has a rank below k, or ``products >= D``. The k estimates are exchangeable, not
    independent; their spread over :math:`\sqrt k` is the published estimate of the error. It is too small where J is
    nearly symmetric and ``products`` come near D: by up to a third, measured on diagonal matrices; for error bars to
    rely on take :class:`HutchPlusPlus`. More exact than that for as many products, most where singular values fall off
    quickly. For evaluation.

    Args:
        products: vector-Jacobian products per call, an even number from four on.

    Shapes: ``x`` ``[B, *event]``; the probe is ``[B, products / 2, *event]``; divergence and norm ``[B]``, float32 at
    least.

    Cost: one evaluation and ``products`` vector-Jacobian products, or D where that is less; a QR decomposition of
    ``[D, k]`` per sample and call.

    Raises:
        ValueError: if ``products`` is odd or below 4, and as :class:`Hutchinson`.

    Source: Epperly, Tropp and Webber, XTrace: Making the Most of Every Sample in Stochastic Trace Estimation, 2024,
    arXiv:2301.07825, with normalised test vectors.

    Example:
        >>> divergence, x = XTrace(products=6), torch.ones(1, 8)
        >>> probe = divergence.begin(x, torch.Generator().manual_seed(0))
        >>> field = lambda t, x: x[:, :1] * torch.arange(1.0, 9.0)  # a Jacobian of rank one, whose trace is 1
        >>> round(divergence(field, torch.zeros(1), x, probe)[1].item(), 4)
        1.0
    """

    products: int

    def __post_init__(self):
        if not is_integer(self.products, 4) or self.products % 2:
            raise ValueError(
                f"XTrace(products={self.products!r}): every vector takes two products, and a vector is probe for the "
                f"others; pass an even integer >= 4."
            )

    @property
    def count(self) -> int:
        """One estimate per vector left out."""
        return self.products // 2

    @property
    def drawn(self) -> int:
        """The test vectors."""
        return self.products // 2

    def begin(self, x, generator=None):
        """Draws the test vectors of a solve, ``[B, vectors, *event]``."""
        shape = (x.shape[0], self.vectors(x.shape[1:].numel()), *x.shape[1:])
        return draw_rows(torch.randn, shape, generator, dtype=x.dtype, device=x.device)

    def estimate(self, times, probe):
        """Computes the estimate that leaves out each vector in turn."""
        sketched = each_column(times, probe.mT)
        basis, triangle = torch.linalg.qr(sketched.detach())
        omega, inside = probe.mT.to(basis.dtype), each_column(times, basis)
        # Leaving vector i out takes the direction basis @ left[:, i] away from the subspace.
        left = _orthogonal_to_others(triangle)
        along = basis.mT @ omega
        along = along - left * (left * along).sum(1, keepdim=True)
        rest = omega - basis @ along
        outside = sketched - inside @ along
        size, count = omega.shape[1:]
        scale = (size - count + 1) / rest.square().sum(1)
        within = basis.mT @ inside
        traces = within.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) - (left * (within @ left)).sum(1)
        norms = inside.square().sum((1, 2)).unsqueeze(1) - (inside @ left).square().sum(1)
        return traces + scale * (rest * outside).sum(1), norms + scale * outside.square().sum(1)


def _orthogonal_to_others(triangle: Tensor) -> Tensor:
    """Finds, for every column of ``[B, k, k]``, a unit vector that is orthogonal to all other columns.

    Where columns depend on each other (a Jacobian of low rank, or zero) there are several, and any will do.
    """
    size = triangle.abs().amax((1, 2)).unsqueeze(1)
    least = torch.finfo(triangle.dtype).eps * torch.where(size > 0, size, 1)
    diagonal = triangle.diagonal(dim1=1, dim2=2)
    shifted = triangle + torch.diag_embed(torch.where(diagonal < 0, -least, least))
    unit = torch.eye(triangle.shape[1], dtype=triangle.dtype, device=triangle.device).expand_as(triangle)
    return torch.nn.functional.normalize(torch.linalg.solve_triangular(shifted.mT, unit, upper=False), dim=1)
