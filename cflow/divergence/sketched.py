"""What the estimators share that look for the large part of a Jacobian first."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from cflow.divergence.divergence import Estimator

__all__ = ["Sketched", "each_column"]


class Sketched(Estimator):
    r"""Estimates the divergence by ``products`` products, some of which find a basis of the Jacobian's large part.

    With ``products`` at least D the D unit vectors take the place of all else, and the value is exact; the probe is
    then empty. A basis is a constant of the gradient: since the estimate has no bias whatever the basis, neither has
    its gradient (which therefore is not the derivative of the estimate itself).
    """

    products: int

    @property
    @abstractmethod
    def drawn(self) -> int:
        """How many vectors a probe holds unless the value is exact."""

    @abstractmethod
    def estimate(self, times: Callable[[Tensor], Tensor], probe: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the estimates from a probe that holds vectors, as :meth:`combine` does."""

    def vectors(self, size):
        """Says how many vectors the probe holds: none where the products reach for every unit vector."""
        return 0 if size <= self.products else self.drawn

    def combine(self, times, probe):
        """Computes the estimates; where no vectors were drawn, the exact values, ``count`` times."""
        if probe.shape[1]:
            return self.estimate(times, probe)
        size = probe.shape[2]
        dtype = torch.promote_types(probe.dtype, torch.float32)
        trace = norm = torch.zeros(probe.shape[0], dtype=dtype, device=probe.device)
        for d, unit in enumerate(torch.eye(size, dtype=dtype, device=probe.device)):
            row = times(unit.expand(len(trace), size))
            trace, norm = trace + row[:, d], norm + row.square().sum(1)
        return tuple(value.unsqueeze(1).expand(-1, self.count) for value in (trace, norm))


def each_column(times: Callable[[Tensor], Tensor], columns: Tensor) -> Tensor:
    """Multiplies every column of ``[B, D, k]``: one product each."""
    return torch.stack([times(column) for column in columns.unbind(2)], 2)
