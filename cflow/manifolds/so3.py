"""The group of rotations of space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from cflow.manifolds.lie_group import LieGroup
from cflow.manifolds.numerics import expand_rows, norm, sinc
from cflow.manifolds.rotations import (
    from_quaternion,
    hat,
    newton_polar,
    quaternion,
    rotation,
    rotation_vector,
    skew,
    vee,
)
from cflow.registry import register

__all__ = ["SO3"]

NEWTON = 4  # steps that reach float64 rounding from NEAR
NEAR = 0.3  # the size of X^T X - I up to which Newton's iteration starts at X itself


@register("manifolds.SO3")
@dataclass(frozen=True)
class SO3(LieGroup):
    r"""Rotations of space: matrices with :math:`R^\top R = I` and determinant one.

    .. math:: \langle A, B \rangle = \tfrac12 \operatorname{tr}(A^\top B), \qquad \exp_R(R \hat w) = R e^{\hat w},
              \qquad \log_R S = R \widehat{\log(R^\top S)}

    The distance is the angle of rotation between two points, in radians. It and ``log`` go through quaternions, with
    the component that is largest, and are accurate from angle zero to pi. Components in the body frame are rotation
    vectors; :meth:`hat` and :meth:`vee` turn them into skew matrices and back.

    ``project`` takes steps of Newton's iteration for the polar decomposition. Far from the group they start at the
    rotation of the quaternion that the matrix defines, so the result is near, but may not be nearest.

    Shapes: points and tangent vectors ``[*batch, 3, 3]``, components ``[*batch, 3]``.

    Source: for quaternions by the largest component, Shepperd, Quaternion from Rotation Matrix, 1978, Journal of
    Guidance and Control 1.

    Example:
        >>> group = SO3()
        >>> turn = group.exp(torch.eye(3), group.from_body(torch.eye(3), torch.tensor([0.0, 0.0, torch.pi / 2])))
        >>> turn @ torch.tensor([1.0, 0.0, 0.0]), group.dist(torch.eye(3), turn)
        (tensor([..., 1.0000e+00, 0.0000e+00]), tensor(1.5708))
    """

    @property
    def dim(self) -> int:
        return 3

    @property
    def event_shape(self) -> Size:
        return Size([3, 3])

    @property
    def log_volume(self) -> float:
        """The logarithm of the volume :math:`8 \\pi^2`."""
        return math.log(8 * math.pi**2)

    @property
    def injectivity(self) -> float:
        """The largest angle between two rotations."""
        return math.pi

    @staticmethod
    def hat(w: Tensor) -> Tensor:
        """Returns the skew matrices ``[..., 3, 3]`` of vectors.

        Args:
            w: vectors ``[..., 3]``.
        """
        return hat(w)

    @staticmethod
    def vee(a: Tensor) -> Tensor:
        """Returns the vectors ``[..., 3]`` of the skew parts of matrices.

        Args:
            a: matrices ``[..., 3, 3]``.
        """
        return vee(a)

    def from_body(self, x, w):
        return x @ hat(w)

    def to_body(self, x, u):
        return vee(x.mT @ u)

    def bracket(self, v, w):
        """Computes the cross product.

        Args:
            v: components ``[*batch, 3]``.
            w: components ``[*batch, 3]``.
        """
        return torch.linalg.cross(v, w)

    def _exp(self, x, u):
        return x @ rotation(self.to_body(x, u))

    def _log(self, x, y):
        return self.from_body(x, rotation_vector(x.mT @ y))

    def _dist(self, x, y):
        q = quaternion(x.mT @ y)
        return 2 * torch.atan2(norm(q[..., 1:]), q[..., 0].abs())

    def _inner(self, x, u, v):
        return self._sum(u * v) / 2

    def _project(self, x):
        eye = torch.eye(3, dtype=x.dtype, device=x.device)
        determinant = (torch.linalg.cross(x[..., 0, :], x[..., 1, :]) * x[..., 2, :]).sum(-1)
        near = norm((x.mT @ x - eye).flatten(-2)).le(NEAR) & (determinant > 0)
        size = norm(x.flatten(-2))
        scaled = x * expand_rows(3**0.5 / torch.where(size == 0, 1.0, size), x)
        x = torch.where(expand_rows(near, x), x, from_quaternion(quaternion(scaled)))
        for _ in range(NEWTON):
            x = newton_polar(x)
        return x

    def _to_tangent(self, x, u):
        return x @ skew(x.mT @ u)

    def _transport(self, x, y, u):
        # With a metric that both translations leave unchanged, half of the turn counts.
        half = rotation(rotation_vector(x.mT @ y) / 2)
        return y @ (half.mT @ (x.mT @ u) @ half)

    def _geodesic(self, x0, x1, t):
        w = rotation_vector(x0.mT @ x1)
        xt = x0 @ rotation(t.unsqueeze(-1) * w)
        return xt, xt @ hat(w)

    def normal_velocity(self, x, y, v):
        r"""Returns the velocity in normal coordinates, by the closed form of the inverse differential of ``exp``.

        .. math:: \dot u = w + \tfrac12 u \times w + \frac{1 - (\theta/2) \cot(\theta/2)}{\theta^2}\, u \times
                  (u \times w)

        Args:
            x: points ``[*batch, 3, 3]``, where the coordinates are zero.
            y: points ``[*batch, 3, 3]``.
            v: tangent vectors at ``y``.
        """
        u, w = rotation_vector(x.mT @ y), self.to_body(y, v)
        square = u.square().sum(-1, keepdim=True)
        small = square < 1e-3
        theta = torch.where(small, 1.0, square).sqrt()
        series = 1 / 12 + square / 720 + square.square() / 30240
        weight = torch.where(small, series, (1 - (theta / 2).cos() / sinc(theta / 2)) / theta.square())
        turned = self.bracket(u, w)
        return self.from_body(x, w + turned / 2 + weight * self.bracket(u, turned))

    def frame(self, x):
        """Returns the tangent vectors of the body frame, divided by the length two to the one half that they have.

        Args:
            x: points ``[*batch, 3, 3]``.
        """
        units = hat(torch.eye(3, dtype=x.dtype, device=x.device)) / 2**0.5
        return x.unsqueeze(-3) @ units

    def log_volume_element(self, x):
        """Returns the constant -1.5 log 2: the inner product is half of that of the ambient space.

        Args:
            x: points ``[*batch, 3, 3]``.
        """
        return x.new_full(x.shape[:-2], -1.5 * math.log(2))

    def cost(self, x0, x1):
        """Computes squared distances between all pairs, ``[B0, B1]``, from distances between quaternions.

        Args:
            x0: points ``[B0, 3, 3]``.
            x1: points ``[B1, 3, 3]``.
        """
        a, b = quaternion(x0), quaternion(x1)
        # The plain mode: products of matrices would lose small distances.
        far = lambda a, b: torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        one, other = far(a, b), far(a, -b)
        return (4 * torch.atan2(torch.minimum(one, other), torch.maximum(one, other))).square()

    def preimages(self, x, y, count):
        """Returns the geodesics in both directions that turn up to ``count`` times, ``[2 * count + 1, ...]``.

        Args:
            x: points ``[*batch, 3, 3]``.
            y: points ``[*batch, 3, 3]``.
            count: the largest number of full turns.
        """
        w = rotation_vector(x.mT @ y)
        angle = norm(w, keepdim=True)
        first = torch.eye(3, dtype=w.dtype, device=w.device)[0]
        axis = torch.where(angle == 0, first, w / torch.where(angle == 0, 1.0, angle))
        turns = [0.0] + [sign * k for k in range(1, count + 1) for sign in (-1.0, 1.0)]
        return torch.stack([self.from_body(x, w if k == 0 else (angle + 2 * math.pi * k) * axis) for k in turns])

    def log_det_exp(self, x, u):
        r"""Computes :math:`2 \log |\sin(\theta/2) / (\theta/2)|` with the angle :math:`\theta` of the rotation.

        Args:
            x: points ``[*batch, 3, 3]``.
            u: tangent vectors at ``x``.
        """
        return 2 * sinc(norm(self.to_body(x, u)) / 2).abs().log()

    def uniform(self, shape, *, generator=None, dtype=None, device=None):
        """Draws rotations uniformly: those of normal quaternions.

        Args:
            shape: the shape of the batch.
            generator: the source of random numbers. Default: None, torch's default generator.
            dtype: the dtype of the points. Default: None, torch's default dtype.
            device: the device of the points. Default: None, torch's default device.
        """
        q = torch.randn((*shape, 4), generator=generator, dtype=dtype, device=device)
        return from_quaternion(q / norm(q, keepdim=True))
