"""XTrace: every test vector is a probe for the subspace of all others."""

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
    r"""Estimates the divergence with every test vector in both roles: in the sketch, and as a probe for the rest.

    .. math:: \operatorname{tr} A \approx \frac1k \sum_{i=1}^k \Bigl[ \operatorname{tr}(Q_i^\top A Q_i)
              + (D - k + 1) \frac{r_i^\top A r_i}{\|r_i\|^2} \Bigr],
              \quad r_i = (I - Q_i Q_i^\top) \omega_i, \quad A = J^\top

    with :math:`k` = ``products / 2`` Gaussian vectors, drawn once per solve, and :math:`Q_i` an orthonormal basis of
    the products with all but the i-th, computed for all i from one QR decomposition. There is no bias for any J, and no
    error if J has a rank below k, or if ``products >= D``. It is more accurate than :class:`HutchPlusPlus` for the same
    number of products, most of all if the singular values decay quickly. Use it for evaluation.

    The k estimates are exchangeable, not independent; their spread over :math:`\sqrt k` is the published estimate of
    the error. It is too small, by up to a third on diagonal matrices, if J is nearly symmetric and ``products`` is
    close to D. For reliable error bars use :class:`HutchPlusPlus`.

    Args:
        products: vector-Jacobian products per call, an even number of at least four.

    Shapes: ``x`` ``[B, *event]``; the probe is ``[B, products / 2, *event]``; divergence and norm ``[B]``, float32 at
    least.

    Cost: one evaluation and ``products`` vector-Jacobian products, or D if that is less; a QR decomposition of
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
                f"XTrace(products={self.products!r}): two or more vectors take two products each; pass an even "
                f"integer >= 4."
            )

    @property
    def count(self) -> int:
        """The number of estimates: one per test vector."""
        return self.products // 2

    @property
    def drawn(self) -> int:
        """The number of test vectors."""
        return self.products // 2

    def begin(self, x, generator=None):
        """Draws the test vectors of a solve with ``generator``, ``[B, vectors, *event]``."""
        shape = (x.shape[0], self.vectors(x.shape[1:].numel()), *x.shape[1:])
        return draw_rows(torch.randn, shape, generator, dtype=x.dtype, device=x.device)

    def estimate(self, times, probe):
        """Computes the estimates that omit each vector in turn; ``times`` and ``probe`` as in :meth:`combine`."""
        sketched = each_column(times, probe.mT)
        basis, triangle = torch.linalg.qr(sketched.detach())
        omega, inside = probe.mT.to(basis.dtype), each_column(times, basis)
        # Omitting vector i removes the direction basis @ left[:, i] from the subspace.
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
    """Computes, for every column of ``[B, k, k]``, a unit vector that is orthogonal to all other columns.

    If columns are linearly dependent (a Jacobian of low rank, or zero), there are several, and any can be used.
    """
    size = triangle.abs().amax((1, 2)).unsqueeze(1)
    least = torch.finfo(triangle.dtype).eps * torch.where(size > 0, size, 1)
    diagonal = triangle.diagonal(dim1=1, dim2=2)
    shifted = triangle + torch.diag_embed(torch.where(diagonal < 0, -least, least))
    unit = torch.eye(triangle.shape[1], dtype=triangle.dtype, device=triangle.device).expand_as(triangle)
    return torch.nn.functional.normalize(torch.linalg.solve_triangular(shifted.mT, unit, upper=False), dim=1)
