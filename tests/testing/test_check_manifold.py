"""The suite of manifolds finds the errors of published code."""

import math
from dataclasses import dataclass

import pytest
import torch

from cflow.manifolds import Sphere
from cflow.registry import register
from cflow.testing import check_manifold


def broken(name):
    """Registers a sphere with one error."""
    return lambda cls: register(f"tests.{name}")(dataclass(frozen=True)(cls))


@broken("Arccos")
class Arccos(Sphere):
    def _dist(self, x, y):
        return (x * y).sum(-1).clamp(-1 + 1e-4, 1 - 1e-4).acos()


@broken("ProjectedTransport")
class ProjectedTransport(Sphere):
    def _transport(self, x, y, u):
        return self._to_tangent(y, u)


@broken("VelocityAtTheStart")
class VelocityAtTheStart(Sphere):
    def _geodesic(self, x0, x1, t):
        xt, ut = super()._geodesic(x0, x1, t)
        return xt, self._log(x0, x1).expand_as(ut)


@broken("WrongSlope")
class WrongSlope(Sphere):
    def _project(self, x):
        return x / x.detach().norm(dim=-1, keepdim=True)


@broken("NotANumber")
class NotANumber(Sphere):
    def _exp(self, x, u):
        r = u.norm(dim=-1, keepdim=True)
        return r.cos() * x + torch.where(r == 0, 1.0, r.sin() / r) * u


@broken("WrongSign")
class WrongSign(Sphere):
    def log_det_exp(self, x, u):
        return -super().log_det_exp(x, u)


@broken("WrongArea")
class WrongArea(Sphere):
    @property
    def log_volume(self):
        return math.log(2 * math.pi)


@broken("CrowdedPoles")
class CrowdedPoles(Sphere):
    def uniform(self, shape, *, generator=None, dtype=None, device=None):
        x = super().uniform(shape, generator=generator, dtype=dtype, device=device)
        return self._project(x * x.new_tensor([1.0, 1.0, 1.2]))


@broken("InPlace")
class InPlace(Sphere):
    def origin(self, *, dtype=None, device=None):
        return torch.eye(3, dtype=dtype, device=device)[2]

    def _project(self, x):
        return x.div_(x.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize(
    ("manifold", "said"),
    [
        (Arccos(2), "exp inverts log"),
        (ProjectedTransport(2), "inner products|takes log"),
        (VelocityAtTheStart(2), "velocity"),
        (WrongSlope(2), "Jacobian of project"),
        (NotANumber(2), "exp at coinciding points: gradients are finite"),
        (WrongSign(2), "log_det_exp"),
        (WrongArea(2), "uniform draws and volume"),
        (CrowdedPoles(2), "uniform draws and volume"),
        (InPlace(2), "project does not change its arguments"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_broken_sphere_is_found(manifold, said):
    with pytest.raises(AssertionError, match=said):
        check_manifold(manifold)
