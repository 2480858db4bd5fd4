"""Rotations of space as matrices, quaternions and rotation vectors, accurate at every angle from 0 to pi."""

from __future__ import annotations

import torch
from torch import Tensor

from cflow.manifolds.numerics import cos_sinc, norm

__all__ = ["from_quaternion", "hat", "newton_polar", "quaternion", "rotation", "rotation_vector", "skew", "vee"]


def hat(w: Tensor) -> Tensor:
    """Returns the skew matrices ``[..., 3, 3]`` with ``hat(w) @ z`` the cross product of ``w [..., 3]`` and ``z``."""
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))


def vee(a: Tensor) -> Tensor:
    """Returns the vectors ``[..., 3]`` of the skew parts of matrices: the inverse of :func:`hat`."""
    flat = a.flatten(-2)
    return (flat[..., [7, 2, 3]] - flat[..., [5, 6, 1]]) / 2


def skew(a: Tensor) -> Tensor:
    """Returns the skew parts of matrices."""
    return (a - a.mT) / 2


def rotation(w: Tensor) -> Tensor:
    r"""Returns the rotations about ``w [..., 3]`` by the angle ``|w|``: Rodrigues' formula.

    .. math:: R = I + \frac{\sin\theta}{\theta} \hat w + \frac12 \Big(\frac{\sin(\theta/2)}{\theta/2}\Big)^2 \hat w^2
    """
    square, a = w.square().sum(-1)[..., None, None], hat(w)
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    return eye + cos_sinc(square)[1] * a + cos_sinc(square / 4)[1].square() / 2 * (a @ a)


def quaternion(r: Tensor) -> Tensor:
    """Returns unit quaternions ``[..., 4]``, scalar first, of matrices ``[..., 3, 3]``; each has two, up to the sign.

    The row of the largest component is used, so that nothing cancels. It is finite for every matrix that is finite.
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in r.unbind(-2))
    squares = torch.stack((1 + a + e + i, 1 + a - e - i, 1 - a + e - i, 1 - a - e + i), -1)
    w, x, y, z = squares.unbind(-1)
    wx, wy, wz, xy, xz, yz = h - f, c - g, d - b, b + d, c + g, f + h
    rows = torch.stack((w, wx, wy, wz, wx, x, xy, xz, wy, xy, y, yz, wz, xz, yz, z), -1).unflatten(-1, (4, 4))
    largest = squares.detach().argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    row = rows.gather(-2, largest).squeeze(-2)
    return row / norm(row, keepdim=True)


def from_quaternion(q: Tensor) -> Tensor:
    """Returns the rotations ``[..., 3, 3]`` of unit quaternions ``[..., 4]``, scalar first."""
    w, x, y, z = q.unbind(-1)
    entries = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def rotation_vector(r: Tensor) -> Tensor:
    r"""Returns the shortest vectors ``[..., 3]`` of which ``r [..., 3, 3]`` are the rotations.

    .. math:: w = 2 \operatorname{atan2}(|v|, |q_0|) \frac{v}{|v|} \operatorname{sign} q_0, \qquad q = (q_0, v)
    """
    q = quaternion(r)
    scalar, v = q[..., :1], q[..., 1:]
    length = norm(v, keepdim=True)
    none = length == 0
    factor = torch.where(none, 2.0, 2 * torch.atan2(length, scalar.abs()) / torch.where(none, 1.0, length))
    return torch.where(scalar < 0, -factor, factor) * v


def newton_polar(a: Tensor) -> Tensor:
    r"""Computes one step of Newton's iteration for the orthogonal factor of a matrix, ``[..., 3, 3]``.

    .. math:: A^+ = \tfrac12 (A + A^{-\top})

    At a rotation it returns it, and its Jacobian is the orthogonal projection onto the tangent space.

    Source: Higham, Computing the Polar Decomposition, 1986, SIAM Journal on Scientific and Statistical Computing 7.
    """
    cofactors = torch.linalg.cross(a[..., [1, 2, 0], :], a[..., [2, 0, 1], :])
    determinant = (a[..., :1, :] * cofactors[..., :1, :]).sum(-1, keepdim=True)
    return (a + cofactors / determinant) / 2
