"""Fields on manifolds whose solutions are known."""

import torch

from cflow.manifolds import SO3

AXIS = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)


def swirl(t, x):
    """Towards an axis at rate cos t and around it at rate 2 t, as a tangent field on the sphere."""
    x = x / x.norm(dim=-1, keepdim=True)
    height = (x * AXIS).sum(-1, keepdim=True)
    around = torch.linalg.cross(AXIS.expand_as(x), x)
    return t.cos().unsqueeze(1) * (AXIS - height * x) + 2 * t.unsqueeze(1) * around


def swirled(x0, t):
    """The solution of ``swirl`` from time 0 to a number ``t``: atanh of the height grows by sin t."""
    t = torch.tensor(t, dtype=x0.dtype)
    height = x0 @ AXIS
    new = torch.tanh(torch.atanh(height) + t.sin()).unsqueeze(1)
    flat = x0 - height.unsqueeze(1) * AXIS
    flat = flat / flat.norm(dim=1, keepdim=True)
    angle = t.square()
    turned = angle.cos() * flat + angle.sin() * torch.linalg.cross(AXIS.expand_as(flat), flat)
    return new * AXIS + (1 - new.square()).sqrt() * turned


FIRST, SECOND = torch.tensor([[0.3, -1.0, 0.8], [1.0, 0.5, -0.4]], dtype=torch.float64)


def spin(t, x):
    """The left-invariant field of the curve x0 exp(t a) exp(t b)."""
    w = SECOND + torch.linalg.matrix_exp(SO3.hat(-t.unsqueeze(1) * SECOND)) @ FIRST
    return x @ SO3.hat(w)


def spun(x0, t):
    """The solution of ``spin`` from time 0 to ``t``."""
    return x0 @ torch.linalg.matrix_exp(SO3.hat(t * FIRST)) @ torch.linalg.matrix_exp(SO3.hat(t * SECOND))
