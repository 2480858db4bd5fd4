"""Hutch++: the trace on a random subspace exactly, and that of the rest by probes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cflow.arguments import check_integer
from cflow.divergence.hutchinson import rademacher
from cflow.divergence.sketched import Sketched, each_column
from cflow.draws import draw_rows
from cflow.registry import register

__all__ = ["HutchPlusPlus"]


@register("divergence.HutchPlusPlus")
@dataclass(frozen=True)
class HutchPlusPlus(Sketched):
    r"""Estimates the divergence exactly on a subspace where the Jacobian is large, and by probes on its complement.

    .. math:: \operatorname{tr} A \approx \operatorname{tr}(Q^\top A Q)
              + \frac1g \sum_{i=1}^g \epsilon_i^\top (I - Q Q^\top) A (I - Q Q^\top) \epsilon_i, \qquad
              A = J^\top, \quad Q = \operatorname{orth}(A \Omega)

    with :math:`\Omega` of ``products // 3`` Gaussian columns, drawn once per solve as the :math:`g` Rademacher probes
    are. No bias, whatever J; no error where J has rank ``products // 3`` at most, or ``products >= D``. Given Q, one
    probe has variance :math:`2 \sum_{i \ne j} R_{ij}^2`, where R is the symmetric part of A between the two
    projections: much below Hutchinson's where few directions carry most of J, about as much where they do not, and
    then a third as many probes are averaged. For evaluation: pays from some six products on, and needs a QR
    decomposition of ``[D, products // 3]`` per sample and call.

    Args:
        products: vector-Jacobian products per call, three at least: a third each for the sketch, its basis and the
            probes, and what is left over for the probes.

    Shapes: ``x`` ``[B, *event]``; divergence and norm ``[B]``, float32 at least.

    Cost: one evaluation and ``products`` vector-Jacobian products, or D where that is less.

    Raises:
        ValueError: if ``products < 3``, and as :class:`Hutchinson`.

    Source: Meyer, Musco, Musco and Woodruff, Hutch++: Optimal Stochastic Trace Estimation, 2021, arXiv:2010.09649
    (there for positive semidefinite matrices, and with signs for the sketch: in few dimensions two of them are too
    often the same).

    Example:
        >>> divergence, x = HutchPlusPlus(products=6), torch.ones(1, 8)
        >>> probe = divergence.begin(x, torch.Generator().manual_seed(0))
        >>> field = lambda t, x: x[:, :1] * torch.arange(8.0)  # a Jacobian of rank one, whose trace is 0
        >>> abs(round(divergence(field, torch.zeros(1), x, probe)[1].item(), 4))
        0.0
    """

    products: int

    def __post_init__(self):
        why = "a sketch, its basis and a probe take a product each; pass an integer of 3 or more, or take Hutchinson."
        check_integer("HutchPlusPlus", "products", self.products, 3, why)

    @property
    def count(self) -> int:
        """One estimate per probe on the complement."""
        return self.products - 2 * (self.products // 3)

    @property
    def drawn(self) -> int:
        """Vectors of the sketch, and probes."""
        return self.products // 3 + self.count

    def begin(self, x, generator=None):
        """Draws sketch and probes of a solve, ``[B, vectors, *event]``."""
        if not self.vectors(x.shape[1:].numel()):
            return x.new_empty(x.shape[0], 0, *x.shape[1:])
        options = {"dtype": x.dtype, "device": x.device}
        sketch = draw_rows(torch.randn, (x.shape[0], self.products // 3, *x.shape[1:]), generator, **options)
        return torch.cat(
            [sketch, draw_rows(rademacher, (x.shape[0], self.count, *x.shape[1:]), generator, **options)], 1
        )

    def estimate(self, times, probe):
        """Computes the trace on the subspace, and adds every probe's form on the complement."""
        sketch, probes = probe.mT.split([self.products // 3, self.count], 2)
        basis = torch.linalg.qr(each_column(times, sketch).detach()).Q
        inside = each_column(times, basis)
        probes = probes.to(basis.dtype)
        rest = probes - basis @ (basis.mT @ probes)
        outside = each_column(times, rest)
        traces = (basis * inside).sum((1, 2)).unsqueeze(1) + (rest * outside).sum(1)
        return traces, inside.square().sum((1, 2)).unsqueeze(1) + outside.square().sum(1)
