"""Hutch++: the exact trace on a random subspace, and an estimate of the rest by probes."""

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
    r"""Computes the divergence exactly on a subspace where the Jacobian is large, and by probes on its complement.

    .. math:: \operatorname{tr} A \approx \operatorname{tr}(Q^\top A Q)
              + \frac1g \sum_{i=1}^g \epsilon_i^\top (I - Q Q^\top) A (I - Q Q^\top) \epsilon_i,
              \qquad A = J^\top, \quad Q = \operatorname{orth}(A \Omega)

    where :math:`\Omega` has ``products // 3`` Gaussian columns, drawn once per solve like the :math:`g` Rademacher
    probes. There is no bias for any J, and no error if J has a rank of at most ``products // 3``, or if
    ``products >= D``. Given Q, one probe has variance :math:`2 \sum_{i \ne j} R_{ij}^2`, where R is the symmetric part
    of A between the two projections. This is much less than for Hutchinson if J is large in few directions only.
    Otherwise it is about the same, with a third as many probes. Use it for evaluation, with some six products or more;
    it needs a QR decomposition of ``[D, products // 3]`` per sample and call.

    Args:
        products: vector-Jacobian products per call, at least three: a third each for the sketch, its basis and the
            probes; the remainder is for the probes.

    Shapes: ``x`` ``[B, *event]``; divergence and norm ``[B]``, float32 at least.

    Cost: one evaluation and ``products`` vector-Jacobian products, or D if that is less.

    Raises:
        ValueError: if ``products < 3``, and as :class:`Hutchinson`.

    Source: Meyer, Musco, Musco and Woodruff, Hutch++: Optimal Stochastic Trace Estimation, 2021, arXiv:2010.09649
    (there for positive semidefinite matrices, and with random signs for the sketch, which in few dimensions are too
    often equal).

    Example:
        >>> divergence, x = HutchPlusPlus(products=6), torch.ones(1, 8)
        >>> probe = divergence.begin(x, torch.Generator().manual_seed(0))
        >>> field = lambda t, x: x[:, :1] * torch.arange(8.0)  # a Jacobian of rank one, whose trace is 0
        >>> abs(round(divergence(field, torch.zeros(1), x, probe)[1].item(), 4))
        0.0
    """

    products: int

    def __post_init__(self):
        why = "three products are needed; pass an integer of 3 or more, or use Hutchinson."
        check_integer("HutchPlusPlus", "products", self.products, 3, why)

    @property
    def count(self) -> int:
        """The number of estimates: one per probe on the complement."""
        return self.products - 2 * (self.products // 3)

    @property
    def drawn(self) -> int:
        """The number of vectors of the sketch and of probes."""
        return self.products // 3 + self.count

    def begin(self, x, generator=None):
        """Draws the sketch and the probes of a solve with ``generator``, ``[B, vectors, *event]``."""
        if not self.vectors(x.shape[1:].numel()):
            return x.new_empty(x.shape[0], 0, *x.shape[1:])
        options = {"dtype": x.dtype, "device": x.device}
        sketch = draw_rows(torch.randn, (x.shape[0], self.products // 3, *x.shape[1:]), generator, **options)
        return torch.cat(
            [sketch, draw_rows(rademacher, (x.shape[0], self.count, *x.shape[1:]), generator, **options)], 1
        )

    def estimate(self, times, probe):
        """Computes the trace on the subspace, and adds the quadratic form of every probe on the complement.

        The arguments ``times`` and ``probe`` are those of :meth:`combine`.
        """
        sketch, probes = probe.mT.split([self.products // 3, self.count], 2)
        basis = torch.linalg.qr(each_column(times, sketch).detach()).Q
        inside = each_column(times, basis)
        probes = probes.to(basis.dtype)
        rest = probes - basis @ (basis.mT @ probes)
        outside = each_column(times, rest)
        traces = (basis * inside).sum((1, 2)).unsqueeze(1) + (rest * outside).sum(1)
        return traces, inside.square().sum((1, 2)).unsqueeze(1) + outside.square().sum(1)
