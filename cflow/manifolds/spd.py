"""Symmetric positive definite matrices: covariances, diffusion tensors, scatter of signals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Size, Tensor

from cflow.arguments import check_integer
from cflow.manifolds.eigen import exp_change, log_change, matrix_exp, matrix_log, symmetric
from cflow.manifolds.manifold import Manifold
from cflow.manifolds.numerics import norm
from cflow.registry import register

__all__ = ["SPD"]


@register("manifolds.SPD")
@dataclass(frozen=True)
class SPD(Manifold):
    r"""Symmetric matrices with positive eigenvalues, with the affine-invariant or the log-Euclidean metric.

    .. math:: \text{affine-invariant:} \quad d(P, Q) = \big\| \log(L^{-1} Q L^{-\top}) \big\|_F, \quad P = L L^\top;
              \qquad \text{log-Euclidean:} \quad d(P, Q) = \| \log Q - \log P \|_F

    The first does not change under :math:`P \mapsto A P A^\top`, and has negative curvature. The second is flat: a
    Euclidean space seen through the logarithm. Both need no step to stay positive. Logarithms and exponentials have
    derivatives at repeated eigenvalues, twice and in both modes.

    ``project`` takes the symmetric part, and raises eigenvalues to 64 units of rounding of the largest.

    Shapes: points and tangent vectors ``[*batch, n, n]``. Cost: eigenvalues of a matrix per operation.

    Args:
        n: the size of the matrices.
        metric: ``"affine-invariant"`` or ``"log-euclidean"``.

    Raises:
        ValueError: if ``n`` is not a positive integer, or the metric is unknown.

    Source: Pennec, Fillard and Ayache, A Riemannian Framework for Tensor Computing, 2006, International Journal of
    Computer Vision 66; Arsigny et al., Log-Euclidean Metrics for Fast and Simple Calculus on Diffusion Tensors, 2006,
    Magnetic Resonance in Medicine 56.

    Example:
        >>> spd = SPD(2)
        >>> xt, ut = spd.geodesic(torch.eye(2), torch.diag(torch.tensor([4.0, 1.0])), torch.tensor(0.5))
        >>> xt
        tensor([[2., 0.],
                [0., 1.]])
    """

    n: int
    metric: Literal["affine-invariant", "log-euclidean"] = "affine-invariant"

    def __post_init__(self):
        check_integer("SPD", "n", self.n, 1, "a matrix has a row or more; pass 3 for diffusion tensors.")
        if self.metric not in ("affine-invariant", "log-euclidean"):
            raise ValueError(
                f"SPD({self.n}, metric={self.metric!r}): unknown metric; pass 'affine-invariant' or 'log-euclidean'."
            )

    @property
    def event_shape(self) -> Size:
        return Size([self.n, self.n])

    @property
    def dim(self) -> int:
        return self.n * (self.n + 1) // 2

    @property
    def _invariant(self) -> bool:
        return self.metric == "affine-invariant"

    def _exp(self, x, u):
        u = self._whitened(x, u)
        if self._invariant:
            root = _root(x)
            return symmetric(root @ matrix_exp(u) @ root.mT)
        return matrix_exp(matrix_log(x) + u)

    def _log(self, x, y):
        if self._invariant:
            root = _root(x)
            return symmetric(root @ matrix_log(_inside(root, y)) @ root.mT)
        start = matrix_log(x)
        return exp_change(start, matrix_log(y) - start)

    def _whitened(self, x: Tensor, u: Tensor) -> Tensor:
        """Takes tangent vectors to symmetric matrices whose Frobenius product is the inner product."""
        if self._invariant:
            return _inside(_root(x), u)
        return log_change(x, symmetric(u))

    def _inner(self, x, u, v):
        return self._sum(self._whitened(x, u) * self._whitened(x, v))

    def _dist(self, x, y):
        if self._invariant:
            change = matrix_log(_inside(_root(x), y))
        else:
            change = matrix_log(y) - matrix_log(x)
        return norm(change.flatten(-2))

    def _project(self, x):
        x = symmetric(x)
        values, vectors = torch.linalg.eigh(x.detach())
        largest = values.abs().amax(-1, keepdim=True)
        floor = torch.where(largest == 0, 1.0, 64 * torch.finfo(x.dtype).eps * largest)
        raised = (floor - values).clamp(min=0)
        return x + symmetric((vectors * raised.unsqueeze(-2)) @ vectors.mT)

    def _to_tangent(self, x, u):
        return symmetric(u).expand(torch.broadcast_shapes(x.shape, u.shape))

    def _transport(self, x, y, u):
        if not self._invariant:
            return exp_change(matrix_log(y), self._whitened(x, u))
        root = _root(x)
        half = root @ matrix_exp(matrix_log(_inside(root, y)) / 2)
        return symmetric(half @ _inside(root, u) @ half.mT)

    def _geodesic(self, x0, x1, t):
        t = t[..., None, None]
        if not self._invariant:
            start = matrix_log(x0)
            change = matrix_log(x1) - start
            middle = start + t * change
            return matrix_exp(middle), exp_change(middle, change)
        root = _root(x0)
        change = matrix_log(_inside(root, x1))
        middle = matrix_exp(t * change)
        return symmetric(root @ middle @ root.mT), symmetric(root @ (middle @ change) @ root.mT)

    def frame(self, x):
        """Returns the matrices with one entry on the diagonal, or two equal ones off it.

        Args:
            x: points ``[*batch, n, n]``.
        """
        row, column = torch.triu_indices(self.n, self.n, device=x.device)
        units = x.new_zeros(self.dim, self.n, self.n)
        number = torch.arange(self.dim, device=x.device)
        size = torch.where(row == column, x.new_tensor(1.0), x.new_tensor(0.5**0.5))
        units = units.index_put((number, row, column), size).index_put((number, column, row), size)
        return units.expand(*x.shape[:-2], *units.shape)

    def log_volume_element(self, x):
        r"""Computes :math:`-\tfrac{n+1}2 \log\det P`, or the log-determinant of the derivative of the logarithm.

        Args:
            x: points ``[*batch, n, n]``.
        """
        if self._invariant:
            return -(self.n + 1) * _root(x).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        # log((log a - log b) / (a - b)) over pairs: minus the mean logarithm, and a term of the difference.
        logs = torch.linalg.eigvalsh(matrix_log(x))
        return -(self.n + 1) / 2 * logs.sum(-1) - _log_sinhc_of_pairs(logs)

    def log_det_exp(self, x, u):
        r"""Computes :math:`\sum_{i \lt j} \log \frac{\sinh d_{ij}}{d_{ij}}`, d half the differences of eigenvalues.

        It is zero for the log-Euclidean metric, which is flat.

        Args:
            x: points ``[*batch, n, n]``.
            u: tangent vectors at ``x``.
        """
        if not self._invariant:
            return x.new_zeros(torch.broadcast_shapes(x.shape, u.shape)[:-2])
        return _log_sinhc_of_pairs(torch.linalg.eigvalsh(self._whitened(x, u)))


def _root(a: Tensor) -> Tensor:
    """Computes lower triangles with ``root root^T = a``."""
    return torch.linalg.cholesky(symmetric(a))  # in forward mode, torch's derivative is that of a symmetric change


def _inside(root: Tensor, a: Tensor) -> Tensor:
    """Computes ``root^-1 a root^-T`` for a lower triangle ``root``."""
    half = torch.linalg.solve_triangular(root, a, upper=False)
    return symmetric(torch.linalg.solve_triangular(root, half.mT, upper=False))


def _log_sinhc_of_pairs(values: Tensor) -> Tensor:
    """Computes the sum over pairs of the logarithm of sinh(d) / d, with d half their difference."""
    n = values.shape[-1]
    row, column = torch.triu_indices(n, n, 1, device=values.device)
    d = (values[..., row] - values[..., column]).abs() / 2
    small = d < 1e-2
    wide = torch.where(small, 1.0, d)
    # log sinh d = d + log(1 - exp(-2 d)) - log 2 does not overflow.
    far = wide + torch.log(-torch.expm1(-2 * wide)) - math.log(2) - wide.log()
    return torch.where(small, d.square() / 6 - d.pow(4) / 180 + d.pow(6) / 2835, far).sum(-1)
