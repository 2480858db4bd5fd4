"""Manifolds of geoopt."""

from __future__ import annotations

import functools
import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor

from cflow.manifolds.manifold import Manifold
from cflow.registry import register
from cflow.shapes import as_shape

__all__ = ["Geoopt"]


@register("manifolds.Geoopt")
@dataclass(frozen=True)
class Geoopt(Manifold):
    """Wraps a manifold of geoopt.

    The class is found by name, so that a flow on it can be saved. geoopt is imported when it is first used, without
    its warnings. Methods return plain tensors.

    Frames, and with them ``to_tangent``, ``project`` and ``log_volume_element``, are computed from geoopt's projection
    of vectors, and are orthogonal in the ambient space. Everything else is geoopt's, with its accuracy: its ``Sphere``
    loses distances below 0.014 in float32, has no finite gradient of exp at zero, and its transport is a projection;
    ``Stiefel`` has no log. There are no volumes and no uniform draws. Where this package has the same manifold
    (:class:`Sphere`, :class:`Poincare`, :class:`Lorentz`), use that.

    Shapes: points ``[*batch, *event]``. Cost: a frame needs a singular value decomposition of ``n x n`` for n numbers.

    Args:
        manifold: the name of the class in geoopt, such as ``"PoincareBall"``.
        shape: the shape of one point, an int or a tuple.
        options: the arguments of the class. Default: None, geoopt's defaults.

    Raises:
        ValueError: if geoopt has no manifold of this name.

    Source: Kochurov et al., Geoopt: Riemannian Optimization in PyTorch, 2020, arXiv:2005.02819.

    Example:
        >>> ball = Geoopt("PoincareBall", 2, {"c": 0.5})
        >>> ball.dim, ball.dist(torch.zeros(2), torch.tensor([0.5, 0.0]))
        (2, tensor(1.0451))
    """

    manifold: str
    shape: int | tuple[int, ...]
    options: dict[str, Any] | None = None

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(as_shape(self.shape)))
        self._geoopt  # noqa: B018 - raises if there is no such class

    def __hash__(self):
        return hash((self.manifold, self.shape, tuple(sorted((self.options or {}).items()))))

    @functools.cached_property
    def _geoopt(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import geoopt
        found = getattr(geoopt, self.manifold, None)
        if not (inspect.isclass(found) and issubclass(found, geoopt.Manifold)):
            raise ValueError(
                f"Geoopt({self.manifold!r}): geoopt has no manifold of this name; pass one such as 'PoincareBall'."
            )
        return found(**(self.options or {}))

    @property
    def event_shape(self) -> Size:
        return Size(self.shape)

    @functools.cached_property
    def dim(self) -> int:
        """The rank of the projection onto a tangent space."""
        values = torch.linalg.svdvals(self._projection(self.origin(dtype=torch.float64)))
        return int((values > 1e-6 * values[0]).sum())

    def _axes(self, like: Tensor) -> Tensor:
        n = self.event_shape.numel()
        return torch.eye(n, dtype=like.dtype, device=like.device).reshape(n, *self.shape)

    def _projection(self, x: Tensor) -> Tensor:
        """Returns the images of the axes, ``[*batch, n, n]``."""
        rank = len(self.shape)
        at = x.unsqueeze(x.dim() - rank)
        return self._ask("proju", at, self._axes(x)).flatten(-rank)

    def _ask(self, method: str, *points: Tensor, scalar: bool = False) -> Tensor:
        """Calls a method of geoopt with points and vectors of one batch, which geoopt needs not to be empty."""
        points = torch.broadcast_tensors(*points)
        batch = points[0].shape[: points[0].dim() - len(self.shape)]
        if not points[0].numel():
            return sum(points) if not scalar else sum(points).new_zeros(batch)
        # Without keepdim, factors of the metric that have the last dimension would broadcast against the batch.
        return getattr(self._geoopt, method)(*points, **({"keepdim": True} if scalar else {})).reshape(
            batch if scalar else points[0].shape
        )

    def _exp(self, x, u):
        return self._ask("expmap", x, u)

    def _log(self, x, y):
        return self._ask("logmap", x, y)

    def _dist(self, x, y):
        return self._ask("dist", x, y, scalar=True)

    def _inner(self, x, u, v):
        return self._ask("inner", x, u, v, scalar=True)

    def _transport(self, x, y, u):
        return self._ask("transp", x, y, u)

    def _project(self, x):
        # Of the first projection only the place counts: with the second term the derivative at points of the manifold
        # is the orthogonal projection, whatever geoopt's is.
        p = self._ask("projx", x)
        return self._ask("projx", p + self._to_tangent(p, x - p))

    def _to_tangent(self, x, u):
        x, u = torch.broadcast_tensors(x, u)
        rank = len(self.shape)
        frame = self.frame(x).flatten(-rank)
        u = u.flatten(-rank).unsqueeze(-1)
        return (frame.mT @ (frame @ u)).reshape(x.shape)

    def frame(self, x):
        """Returns an orthonormal basis of the image of geoopt's projection of vectors.

        Args:
            x: points ``[*batch, *event]``.
        """
        rank = len(self.shape)
        at = x.unsqueeze(x.dim() - rank)
        with torch.no_grad():  # the decomposition has no derivative where singular values are equal
            basis = torch.linalg.svd(self._projection(x)).Vh[..., : self.dim, :]
            basis = basis.reshape(*basis.shape[:-1], *self.shape)
        basis = self._ask("proju", at, basis).flatten(-rank)
        lower = torch.linalg.cholesky(basis @ basis.mT)
        return torch.linalg.solve_triangular(lower, basis, upper=False).reshape(*basis.shape[:-1], *self.shape)

    def log_volume_element(self, x):
        """Computes half the log determinant of ``inner`` on ``frame``.

        Args:
            x: points ``[*batch, *event]``.
        """
        rank = len(self.shape)
        frame = self.frame(x)
        first, second = frame.unsqueeze(-rank - 1), frame.unsqueeze(-rank - 2)
        at = x.reshape(*x.shape[: x.dim() - rank], 1, 1, *self.shape)
        return 0.5 * torch.linalg.slogdet(self._inner(at, first, second)).logabsdet

    def origin(self, *, dtype=None, device=None):
        """Returns geoopt's origin.

        Args:
            dtype: the dtype of the point. Default: None, torch's default dtype.
            device: the device of the point. Default: None, torch's default device.
        """
        return self._geoopt.origin(*self.shape, dtype=dtype, device=device).as_subclass(Tensor)
