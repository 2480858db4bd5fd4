"""Fields on Lie groups from networks that return the velocity in the body frame."""

from __future__ import annotations

from torch import Tensor, nn

from cflow.fields.wrapper import FieldWrapper
from cflow.manifolds.lie_group import LieGroup
from cflow.registry import register

__all__ = ["BodyFrame"]


@register("manifolds.BodyFrame")
class BodyFrame(FieldWrapper):
    r"""Makes a tangent field of a Lie group from a network that returns its components in the body frame.

    .. math:: v(t, R) = R\, \hat w(t, R)

    on rotations: ``dim`` numbers are learned in place of a matrix, and the field is tangent without a projection. A
    network whose answer does not depend on where a body looks makes a field that turns with it.

    Shapes: the network returns ``[B, dim]`` (3 on :class:`SO3`, 6 on :class:`SE3`); the field ``[B, *event]``. Cost:
    one evaluation of the network, and one product of matrices.

    Args:
        field: a network called as ``network(t, x)`` or ``network(t, x, context)`` with points ``[B, *event]``.
        manifold: the group.

    Raises:
        ValueError: if the manifold is not a Lie group, or, in a call, the network returns another shape.

    Source: Bose et al., SE(3)-Stochastic Flow Matching for Protein Backbone Generation, 2023, arXiv:2310.02391.

    Example:
        >>> import torch
        >>> from cflow import manifolds
        >>> spin = lambda t, x, context=None: torch.stack((0 * t, 0 * t, t), 1)
        >>> field = BodyFrame(spin, manifolds.SO3())
        >>> field(torch.ones(1), torch.eye(3).unsqueeze(0)) @ torch.tensor([1.0, 0.0, 0.0])
        tensor([[0., 1., 0.]])
    """

    def __init__(self, field: nn.Module, manifold: LieGroup):
        if not getattr(manifold, "is_group", False):
            raise ValueError(
                f"BodyFrame(manifold={manifold!r}): it is not a Lie group, and has no body frame; use the network as "
                f"the field."
            )
        super().__init__(field)
        self.manifold = manifold

    @property
    def event_shape(self):
        """The shape of one point of the group."""
        return self.manifold.event_shape

    def forward(
        self,
        t: Tensor,
        x: Tensor,
        context: Tensor | None = None,
        *,
        s: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """Calls the network with the same arguments, and returns a tangent vector at ``x``."""
        w = super().forward(t, x, context, s=s, previous=previous)
        if w.shape[1:] != (self.manifold.dim,):
            raise ValueError(
                f"BodyFrame: the network returned {list(w.shape)} on {self.manifold!r}, whose body frame has "
                f"{self.manifold.dim} components; return [B, {self.manifold.dim}]."
            )
        return self.manifold.from_body(x, w)
