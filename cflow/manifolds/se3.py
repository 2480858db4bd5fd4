"""Rigid motions of space: rotations and translations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from cflow.manifolds.lie_group import LieGroup
from cflow.manifolds.so3 import SO3
from cflow.registry import register

__all__ = ["SE3"]

ROTATIONS = SO3()


@register("manifolds.SE3")
@dataclass(frozen=True)
class SE3(LieGroup):
    r"""Rigid motions as the product of rotations and translations: matrices ``[R | p]`` with a rotation and a vector.

    .. math:: d\big((R, p), (S, q)\big)^2 = \theta(R, S)^2 + w \, |p - q|^2

    The group of rigid motions has no metric that both translations leave unchanged, so geodesics are those of the
    product :math:`SO(3) \times \mathbb R^3`, as in models of proteins: the rotation turns at constant speed while the
    position moves on a straight line. Components in the body frame are a rotation vector in the frame of the body,
    and :math:`\sqrt w` times the velocity of the position in the frame of space.

    Shapes: points and tangent vectors ``[*batch, 3, 4]``, components ``[*batch, 6]``.

    Args:
        weight: the factor w of squared distances between positions, in squared radians per squared unit of length.

    Raises:
        ValueError: if ``weight`` is not positive and finite.

    Source: Yim et al., SE(3) Diffusion Model with Application to Protein Backbone Generation, 2023, arXiv:2302.02277.

    Example:
        >>> group = SE3()
        >>> start = group.origin()
        >>> end = group.exp(start, group.from_body(start, torch.tensor([0.0, 0.0, 1.0, 2.0, 0.0, 0.0])))
        >>> end[:, 3], group.dist(start, end)
        (tensor([2., 0., 0.]), tensor(2.2361))
    """

    weight: float = 1.0

    def __post_init__(self):
        if not 0 < self.weight < math.inf:
            raise ValueError(f"SE3(weight={self.weight}): a weight of squared distances is positive; pass 1.0.")

    @property
    def dim(self) -> int:
        return 6

    @property
    def event_shape(self) -> Size:
        return Size([3, 4])

    @property
    def injectivity(self) -> float:
        """The largest angle between two rotations."""
        return math.pi

    def from_body(self, x, w):
        return _join(ROTATIONS.from_body(x[..., :3], w[..., :3]), w[..., 3:].unsqueeze(-1) / self.weight**0.5)

    def to_body(self, x, u):
        return torch.cat([ROTATIONS.to_body(x[..., :3], u[..., :3]), u[..., 3] * self.weight**0.5], -1)

    def bracket(self, v, w):
        """Computes the cross product of the rotation vectors; translations commute.

        Args:
            v: components ``[*batch, 6]``.
            w: components ``[*batch, 6]``.
        """
        turned = torch.linalg.cross(v[..., :3], w[..., :3])
        return torch.cat([turned, torch.zeros_like(turned)], -1)

    def _exp(self, x, u):
        return _join(ROTATIONS._exp(x[..., :3], u[..., :3]), x[..., 3:] + u[..., 3:])

    def _log(self, x, y):
        return _join(ROTATIONS._log(x[..., :3], y[..., :3]), y[..., 3:] - x[..., 3:])

    def _inner(self, x, u, v):
        return ROTATIONS._inner(x, u[..., :3], v[..., :3]) + self.weight * (u[..., 3] * v[..., 3]).sum(-1)

    def _project(self, x):
        return _join(ROTATIONS._project(x[..., :3]), x[..., 3:])

    def _to_tangent(self, x, u):
        return _join(ROTATIONS._to_tangent(x[..., :3], u[..., :3]), u[..., 3:])

    def _transport(self, x, y, u):
        return _join(ROTATIONS._transport(x[..., :3], y[..., :3], u[..., :3]), u[..., 3:])

    def _geodesic(self, x0, x1, t):
        rotation, spin = ROTATIONS._geodesic(x0[..., :3], x1[..., :3], t)
        change = x1[..., 3:] - x0[..., 3:]
        return _join(rotation, x0[..., 3:] + t[..., None, None] * change), _join(spin, change)

    def normal_velocity(self, x, y, v):
        """Returns the velocity in normal coordinates: that of rotations, and of positions.

        Args:
            x: points ``[*batch, 3, 4]``, where the coordinates are zero.
            y: points ``[*batch, 3, 4]``.
            v: tangent vectors at ``y``.
        """
        return _join(ROTATIONS.normal_velocity(x[..., :3], y[..., :3], v[..., :3]), v[..., 3:])

    def frame(self, x):
        """Returns the frame of the rotation, then the axes of space.

        Args:
            x: points ``[*batch, 3, 4]``.
        """
        turns = ROTATIONS.frame(x[..., :3])
        axes = torch.eye(3, dtype=x.dtype, device=x.device).unsqueeze(-1).expand(*turns.shape[:-3], 3, 3, 1)
        zeros = torch.zeros_like(turns)
        return torch.cat([_join(turns, zeros[..., :1]), _join(zeros, axes)], -3)

    def log_volume_element(self, x):
        r"""Returns the constant :math:`\tfrac32 \log(w / 2)`.

        Args:
            x: points ``[*batch, 3, 4]``.
        """
        return x.new_full(x.shape[:-2], 1.5 * math.log(self.weight / 2))

    def cost(self, x0, x1):
        """Computes squared distances between all pairs, ``[B0, B1]``.

        Args:
            x0: points ``[B0, 3, 4]``.
            x1: points ``[B1, 3, 4]``.
        """
        far = torch.cdist(x0[..., 3], x1[..., 3], compute_mode="donot_use_mm_for_euclid_dist")
        return ROTATIONS.cost(x0[..., :3], x1[..., :3]) + self.weight * far.square()

    def preimages(self, x, y, count):
        """Returns the geodesics whose rotations turn up to ``count`` times, ``[2 * count + 1, ...]``.

        Args:
            x: points ``[*batch, 3, 4]``.
            y: points ``[*batch, 3, 4]``.
            count: the largest number of full turns.
        """
        turns = ROTATIONS.preimages(x[..., :3], y[..., :3], count)
        return _join(turns, (y[..., 3:] - x[..., 3:]).expand(*turns.shape[:-1], 1))

    def log_det_exp(self, x, u):
        """Computes the factor of the rotations; that of translations is one.

        Args:
            x: points ``[*batch, 3, 4]``.
            u: tangent vectors at ``x``.
        """
        return ROTATIONS.log_det_exp(x[..., :3], u[..., :3])


def _join(rotation: Tensor, position: Tensor) -> Tensor:
    batch = torch.broadcast_shapes(rotation.shape[:-2], position.shape[:-2])
    return torch.cat([rotation.expand(*batch, 3, 3), position.expand(*batch, 3, 1)], -1)
