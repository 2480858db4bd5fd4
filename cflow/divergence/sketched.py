"""The base class of estimators that first find the subspace in which a Jacobian is large."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from cflow.divergence.divergence import Estimator

__all__ = ["Sketched", "each_column"]


class Sketched(Estimator):
    r"""Estimates the divergence by ``products`` products; some of them find a basis of the Jacobian's large part.

    If ``products`` is at least D, the D unit vectors are used instead, the value is exact and the probe is empty. In
    gradients the basis is a constant: the estimate is unbiased for every basis, and so is this gradient (which
    therefore differs from the derivative of the estimate itself).
    """

    products: int

    @property
    @abstractmethod
    def drawn(self) -> int:
        """The number of vectors in a probe, if the value is not exact."""

    @abstractmethod
    def estimate(self, times: Callable[[Tensor], Tensor], probe: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the estimates from a probe that is not empty; the arguments are those of :meth:`combine`."""

    def vectors(self, size):
        """Returns the number of vectors in the probe: none if there are products for all ``size`` unit vectors."""
        return 0 if size <= self.products else self.drawn

    def combine(self, times, probe):
        """Computes the estimates; for an empty probe, the exact values, ``count`` times."""
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
