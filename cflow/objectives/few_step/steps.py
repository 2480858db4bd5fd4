"""The ends of whole steps, on manifolds and in flat spaces, and errors of steps that are measured there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cflow.divergence.forward_mode import jvp
from cflow.paths.path import mean_square

__all__ = ["Steps"]


@dataclass(frozen=True)
class Steps:
    r"""Computes where steps end in the space of a flow, and squared errors there.

    .. math:: X(x) = \exp_x w, \qquad \text{in a flat space } x + w

    Args:
        manifold: the manifold of the flow. None, or one that is flat: the Euclidean space.

    Example:
        >>> import torch
        >>> from cflow import manifolds
        >>> north, w = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[torch.pi / 2, 0.0, 0.0]])
        >>> Steps(manifolds.Sphere(2)).end(north, w).round(decimals=4)
        tensor([[1., 0., -0.]])
    """

    manifold: Any = None

    @property
    def flat(self) -> bool:
        return self.manifold is None or self.manifold.flat

    def end(self, x: Tensor, w: Tensor) -> Tensor:
        """Returns the end of the step with tangent vector ``w`` at ``x``, both ``[B, *event]``."""
        return x + w if self.flat else self.manifold.exp(x, w)

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the tangent vector at ``x`` of the shortest step to ``y``."""
        return y - x if self.flat else self.manifold.log(x, y)

    def follow(self, error: Tensor, x: Tensor, w: Tensor, u: Tensor) -> Tensor:
        r"""Returns ``error``, a tangent vector at the end of the step ``w``, with the gradient of that end.

        .. math:: e - d(\exp_x)_w \bigl( u - \operatorname{sg} u \bigr)

        Half its square has the gradient of half the squared distance from the end of the step to where ``error``
        points, also beyond the cut locus, where the ``log`` at ``x`` of that point would jump. In a flat space it is
        the error of ``u``.

        Args:
            error: the errors at the ends, without gradient.
            x: the points ``[B, *event]``.
            w: the steps, tangent vectors at ``x``, without gradient.
            u: the average velocities, with their gradient.
        """
        change = u - u.detach()
        return error - (change if self.flat else jvp(lambda w: self.manifold.exp(x, w), (w,), (change,))[1])

    def square(self, x: Tensor, e: Tensor) -> Tensor:
        """Computes the squared length of tangent vectors ``e`` at ``x`` per dimension, ``[B]``."""
        return mean_square(e, None) if self.flat else self.manifold.inner(x, e, e) / self.manifold.dim
