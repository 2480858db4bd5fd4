"""Latitude and longitude: places on the earth become unit vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.bijections.map import Bijection
from cflow.registry import register

__all__ = ["LatLon"]


@register("bijections.LatLon")
class LatLon(Bijection):
    r"""Maps latitude and longitude in degrees to unit vectors: it brings data of the earth to a flow on the sphere.

    .. math:: z = (\cos\phi \cos\lambda, \; \cos\phi \sin\lambda, \; \sin\phi), \qquad
              \text{contribution} = \log \cos\phi + 2 \log \frac{\pi}{180}

    A density of the sphere is per steradian; that of a flow with this transform is per square degree of latitude and
    longitude. Subtract the contribution for nats per steradian, the unit of published figures: ``flow.preprocess(x)``
    returns it. Longitudes are taken as their class modulo 360 degrees, and ``decode`` returns them in [-180, 180).

    Shapes: ``x [B, 2]``, latitude before longitude; ``z [B, 3]``. The dimension of the manifold is two on both sides,
    so a density passes unchanged but for the area element. Cost: a few trigonometric functions.

    A latitude beyond 90 degrees counts as that of the pole, with a density of zero. At the poles the density per square
    degree is zero.

    Example:
        >>> places = torch.tensor([[0.0, 0.0], [45.0, 90.0]])
        >>> z, _ = LatLon().encode(places)
        >>> z, LatLon().decode(z)[0]
        (tensor([[ 1.0000e+00,  ...]]), tensor([[ 0.,  0.],
                [45., 90.]]))
    """

    def __init__(self):
        super().__init__(2, latent_shape=3)

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        outside = x[:, 0].abs() > 90
        latitude = torch.deg2rad(x[:, 0].clamp(-90, 90))
        # Reduced in degrees, where it is exact.
        longitude = torch.deg2rad(torch.remainder(x[:, 1] + 180, 360) - 180)
        cosine = torch.cos(latitude)
        z = torch.stack((cosine * longitude.cos(), cosine * longitude.sin(), latitude.sin()), 1)
        pole = outside | (cosine <= torch.finfo(x.dtype).eps)
        area = torch.where(pole, 1.0, cosine).log() + 2 * math.log(math.pi / 180)
        return z, torch.where(pole, -torch.inf, area)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        cosine = torch.hypot(z[:, 0], z[:, 1])
        pole = cosine == 0
        # A place at a pole has no longitude: it gets 0, and no gradient.
        east, north = torch.where(pole, 1.0, z[:, 0]), torch.where(pole, 0.0, z[:, 1])
        x = torch.stack((torch.atan2(z[:, 2], cosine), torch.atan2(north, east)), 1)
        x = torch.rad2deg(x)
        x = torch.stack((x[:, 0], torch.where(x[:, 1] >= 180, x[:, 1] - 360, x[:, 1])), 1)
        area = torch.where(pole, 1.0, cosine).log() + 2 * math.log(math.pi / 180)
        return x, -torch.where(pole, -torch.inf, area)
