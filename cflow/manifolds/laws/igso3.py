"""The distribution of Brownian motion on rotations: the isotropic Gaussian of SO(3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.bases.base import Base
from cflow.manifolds.numerics import cosh_sinhc, norm, sinc
from cflow.manifolds.rotations import rotation
from cflow.manifolds.so3 import SO3
from cflow.registry import register

__all__ = ["IGSO3"]

WIDE = 1.5  # the scale from which the series of characters is used, and below which the one of turns
TURNS, CHARACTERS = 3, 8  # terms; the first omitted ones are below 1e-25


@register("manifolds.IGSO3")
class IGSO3(Base):
    r"""Draws rotations of the isotropic Gaussian on SO(3): Brownian motion from ``loc`` at time ``scale`` squared.

    .. math:: p(R) = \frac1{8 \pi^2} \sum_{l \ge 0} (2 l + 1)\, e^{-l (l + 1) \sigma^2 / 2}\,
              \frac{\sin((l + \tfrac12) \theta)}{\sin(\theta / 2)},
              \qquad \theta = d(\text{loc}, R)

    The density is with respect to the Riemannian volume of :class:`cflow.manifolds.SO3`, :math:`8 \pi^2` as a whole.
    Below a scale of 1.5 it is computed by the other, rapidly convergent form of the same series, a sum over full turns,
    so that it is accurate to rounding at every scale and angle. Some papers write :math:`e^{-l (l + 1) \epsilon^2}`:
    their :math:`\epsilon` is :math:`\sigma / \sqrt 2`.

    Draws are exact, by rejection of normal rotation vectors (small scales) or of uniform rotations; about half of the
    proposals or more are accepted. Gradients of draws reach ``loc``.

    Shapes: ``sample`` returns ``[*shape, 3, 3]``, ``log_prob`` returns ``[*batch]``; it is -inf for points that are not
    rotations.

    Args:
        scale: the standard deviation :math:`\sigma` of each component of the rotation vector, for small scales. At 3
            and more the distribution is nearly uniform.
        loc: the rotation ``[3, 3]`` at the centre. Default: None, the identity.

    Raises:
        ValueError: if ``scale`` is not positive and finite, or ``loc`` is not a rotation.

    Source: Nikolayev and Savyolova, Normal Distribution on the Rotation Group SO(3), 1997, Textures and Microstructures
    29; Leach et al., Denoising Diffusion Probabilistic Models on SO(3) for Rotational Alignment, 2022, ICLR workshop on
    Geometrical and Topological Representation Learning.

    Example:
        >>> base = IGSO3(0.5)
        >>> base.log_prob(torch.eye(3))   # near that of a normal of the rotation vector, -0.68
        tensor(-0.6461)
    """

    def __init__(self, scale: float, loc: Tensor | None = None):
        super().__init__((3, 3))
        if not 0 < scale < math.inf:
            raise ValueError(f"IGSO3(scale={scale}): a scale is positive and finite; pass 1.5, or manifolds.Uniform.")
        if loc is not None and (loc.shape != (3, 3) or not bool(SO3().holds(loc))):
            raise ValueError(f"IGSO3(loc of shape {list(loc.shape)}): it is not a rotation; pass SO3().project(loc).")
        self.manifold, self.scale, self.loc = SO3(), float(scale), None
        if loc is not None:
            del self.loc
            self._keep(loc=loc)
        angles = torch.linspace(0, math.pi, 513, dtype=torch.float64)
        weight = self._turns(angles) * sinc(angles / 2) if self.scale < WIDE else self._characters(angles)
        self._bound = 1.001 * float(weight.max())  # the maximum between two angles is at most this

    def _turns(self, angle: Tensor) -> Tensor:
        r"""Sums over full turns, without its factor: ``f(angle)`` is this times a normal density over a sinc."""
        total, square = torch.ones_like(angle), self.scale**2
        for k in range(1, TURNS + 1):
            rate, start = 2 * math.pi * k / square, -2 * (math.pi * k) ** 2 / square
            x = rate * angle
            near = x < 1
            cosh, sinhc = cosh_sinhc(torch.where(near, x, 0.0).square())
            small = math.exp(start) * (cosh - 2 * math.pi * k * rate * sinhc)
            away = 2 * math.pi * k / torch.where(near, 1.0, angle)
            # Exponents are joined, so that nothing overflows at small scales.
            large = ((1 - away) * (start + x).exp() + (1 + away) * (start - x).exp()) / 2
            total = total + 2 * (-1) ** k * torch.where(near, small, large)
        return total

    def _characters(self, angle: Tensor) -> Tensor:
        """Sums over characters: the density with respect to the uniform distribution."""
        character = torch.ones_like(angle)
        total = character
        for index in range(1, CHARACTERS + 1):
            character = character + 2 * (index * angle).cos()
            total = total + (2 * index + 1) * math.exp(-index * (index + 1) * self.scale**2 / 2) * character
        return total

    def _log_density(self, angle: Tensor) -> Tensor:
        """Computes the logarithm of the density with respect to the uniform distribution."""
        if self.scale >= WIDE:
            return self._characters(angle).log()
        factor = math.log(2) + 0.5 * math.log(2 * math.pi) - 3 * math.log(self.scale) + self.scale**2 / 8
        return factor - angle.square() / (2 * self.scale**2) - sinc(angle / 2).log() + self._turns(angle).log()

    def _log_prob(self, x: Tensor) -> Tensor:
        inside = self.manifold.holds(x)
        loc = torch.eye(3, dtype=x.dtype, device=x.device) if self.loc is None else self.loc.to(x.dtype)
        value = self._log_density(self.manifold.dist(loc, self.manifold.project(x))) - self.manifold.log_volume
        return torch.where(inside, value, -torch.inf)

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        count, parts = math.prod(shape), []
        while count > 0:
            draws, accepted = self._proposals(2 * count + 16, generator)
            parts.append(draws[accepted][:count])
            count -= len(parts[-1])
        x = torch.cat(parts) if parts else torch.empty(0, 3, 3, dtype=self.dtype, device=self.device)
        x = x.reshape(*shape, 3, 3)
        return x if self.loc is None else self.loc.to(x.dtype) @ x

    def _proposals(self, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draws rotations, and which of them are accepted."""
        options = {"generator": generator, "dtype": self.dtype, "device": self.device}
        level = self._bound * torch.rand(count, **options)
        if self.scale >= WIDE:
            x = self.manifold.uniform((count,), **options)
            return x, level < self._characters(self.manifold.dist(torch.eye(3).to(x), x))
        w = self.scale * torch.randn(count, 3, **options)
        angle = norm(w)
        inside = angle < math.pi
        angle = torch.where(inside, angle, 0.0)
        return rotation(w), inside & (level < self._turns(angle) * sinc(angle / 2))

    def extra_repr(self) -> str:
        return f"scale={self.scale}"
