"""Hutchinson's estimator: the quadratic form of the Jacobian for random probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cflow.arguments import check_integer
from cflow.divergence.divergence import Estimator
from cflow.draws import draw_rows
from cflow.registry import register

__all__ = ["Hutchinson", "rademacher"]

LAWS = ("rademacher", "gaussian")


@register("divergence.Hutchinson")
@dataclass(frozen=True)
class Hutchinson(Estimator):
    r"""Estimates the divergence without bias from random probes.

    .. math:: \nabla \cdot f \approx \frac1k \sum_{i=1}^k \epsilon_i^\top J \epsilon_i, \qquad
              \|J\|_F^2 \approx \frac1k \sum_{i=1}^k \|J^\top \epsilon_i\|^2, \qquad
              \mathbb E[\epsilon \epsilon^\top] = I

    With :math:`S = (J + J^\top)/2`, one Rademacher probe (entries of plus or minus one) has variance
    :math:`2 \sum_{i \ne j} S_{ij}^2`, which is zero for a diagonal Jacobian; one Gaussian probe has
    :math:`2 \|S\|_F^2`, which is never less.

    Args:
        law: the distribution of a probe's entries, ``"rademacher"`` or ``"gaussian"``.
        probes: the number of independent probes that are averaged.

    Shapes: ``x`` ``[B, *event]``; the probe is ``[B, probes, *event]``; divergence and norm ``[B]``, float32 at least.

    Cost: one evaluation and ``probes`` vector-Jacobian products.

    Raises:
        ValueError: if ``law`` is unknown, ``probes < 1``, ``f`` returns another shape than ``x``, or the probe was
            drawn for another shape.

    Source: A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines, Hutchinson,
    1989; FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models, Grathwohl et al., 2018,
    arXiv:1810.01367.

    Example:
        >>> divergence, x = Hutchinson("rademacher"), torch.ones(1, 2)
        >>> probe = divergence.begin(x, torch.Generator().manual_seed(0))
        >>> v, div, frobenius = divergence(lambda t, x: 3 * x, torch.zeros(1), x, probe)
        >>> div.item(), frobenius.item()
        (6.0, 18.0)
    """

    law: Literal["rademacher", "gaussian"] = "rademacher"
    probes: int = 1

    def __post_init__(self):
        if self.law not in LAWS:
            raise ValueError(
                f"Hutchinson(law={self.law!r}): unknown; pass 'rademacher' or 'gaussian', and the number of probes as "
                f"probes=...."
            )
        check_integer("Hutchinson", "probes", self.probes, 1, "an estimate needs a probe; pass an integer >= 1.")

    @property
    def count(self) -> int:
        """The number of estimates: one per probe."""
        return self.probes

    def vectors(self, size):
        """Returns ``probes``, for every ``size``."""
        return self.probes

    def begin(self, x, generator=None):
        """Draws the probes of a solve with ``generator``, ``[B, probes, *event]``."""
        shape = (x.shape[0], self.probes, *x.shape[1:])
        if self.law == "gaussian":
            return draw_rows(torch.randn, shape, generator, dtype=x.dtype, device=x.device)
        return draw_rows(rademacher, shape, generator, dtype=x.dtype, device=x.device)

    def combine(self, times, probe):
        """Computes the quadratic form of every probe, and the squared norm of its product."""
        products = [(times(e), e) for e in probe.unbind(1)]
        traces = torch.stack([(product * e).sum(1) for product, e in products], 1)
        return traces, torch.stack([product.square().sum(1) for product, _ in products], 1)


def rademacher(shape: Sequence[int], **options: Any) -> Tensor:
    """Draws plus or minus one with equal probability."""
    return torch.randint(0, 2, shape, **options).mul_(2).sub_(1)
