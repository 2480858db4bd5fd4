"""The contract of Lie groups: tangent vectors as vectors of the body frame."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from cflow.manifolds.manifold import Manifold

__all__ = ["LieGroup"]


class LieGroup(Manifold):
    r"""A manifold that is a group, with a metric that the group's left translations leave unchanged.

    The frame of a point that is moved along from the identity is its *body frame*. It turns a tangent vector into
    ``dim`` numbers, whose sum of squares is its inner product with itself. ``exp`` is that of the group.
    A subclass writes :meth:`to_body`, :meth:`from_body` and :meth:`bracket` besides the methods of a manifold.

    Example:
        >>> import torch
        >>> from cflow import manifolds
        >>> group = manifolds.SO3()
        >>> x = group.exp(torch.eye(3), group.from_body(torch.eye(3), torch.tensor([0.0, 0.0, 1.0])))
        >>> group.to_body(x, group.from_body(x, torch.tensor([1.0, 2.0, 3.0])))
        tensor([1.0000, 2.0000, 3.0000])
    """

    is_group: ClassVar[bool] = True

    @abstractmethod
    def from_body(self, x: Tensor, w: Tensor) -> Tensor:
        """Returns the tangent vectors at ``x`` with the components ``w [*batch, dim]`` in the body frame.

        Args:
            x: points ``[*batch, *event]``.
            w: components ``[*batch, dim]``.
        """

    @abstractmethod
    def to_body(self, x: Tensor, u: Tensor) -> Tensor:
        """Returns the components in the body frame ``[*batch, dim]`` of tangent vectors.

        Args:
            x: points ``[*batch, *event]``.
            u: tangent vectors at ``x``.
        """

    @abstractmethod
    def bracket(self, v: Tensor, w: Tensor) -> Tensor:
        """Computes the Lie bracket of components in the body frame, ``[*batch, dim]``.

        Args:
            v: components ``[*batch, dim]``.
            w: components ``[*batch, dim]``.
        """
