"""How much noise a stochastic interpolant adds on the way: none at the ends."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.registry import register

__all__ = ["BrownianGamma", "Gamma", "QuadraticGamma", "SigmoidGamma", "SineGamma"]


@dataclass(frozen=True)
class Gamma(ABC):
    r"""Gives the width :math:`\gamma_t` of the noise, with :math:`\gamma_0 = \gamma_1 = 0`.

    :math:`\gamma^2` and its derivative are finite everywhere; ``steep`` says that :math:`\dot\gamma` itself is
    infinite at the ends.
    """

    scale: float = 1.0

    steep = False

    def __post_init__(self):
        if not 0 < self.scale < math.inf:
            raise ValueError(
                f"{type(self).__name__}(scale={self.scale}): the noise has a positive width; pass a value such as 1.0, "
                f"or use paths.Linear for a path without noise."
            )

    @abstractmethod
    def __call__(self, t: Tensor) -> Tensor:
        """Gives the width."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """Gives the derivative of the width."""

    def d_square(self, t: Tensor) -> Tensor:
        """Gives the derivative of the variance."""
        return 2 * self(t) * self.slope(t)


@register("paths.BrownianGamma")
@dataclass(frozen=True)
class BrownianGamma(Gamma):
    r"""Adds the noise of a Brownian bridge.

    .. math:: \gamma_t = s \sqrt{t (1 - t)}

    Source: Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants, 2023, arXiv:2303.08797, section 3.4.

    Example:
        >>> BrownianGamma(2.0)(torch.tensor([0.0, 0.5]))
        tensor([0., 1.])
    """

    steep = True

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * (t * (1 - t)).sqrt()

    def slope(self, t: Tensor) -> Tensor:
        return self.d_square(t) / (2 * self(t))

    def d_square(self, t: Tensor) -> Tensor:
        return self.scale**2 * (1 - 2 * t)


@register("paths.QuadraticGamma")
@dataclass(frozen=True)
class QuadraticGamma(Gamma):
    r"""Adds noise that starts and ends linearly, so that velocities stay finite at the ends.

    .. math:: \gamma_t = s \, t (1 - t)

    Source: Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants, 2023, arXiv:2303.08797, section 3.4.

    Example:
        >>> QuadraticGamma(4.0)(torch.tensor(0.5))
        tensor(1.)
    """

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * t * (1 - t)

    def slope(self, t: Tensor) -> Tensor:
        return self.scale * (1 - 2 * t)


@register("paths.SineGamma")
@dataclass(frozen=True)
class SineGamma(Gamma):
    r"""Adds noise that starts and ends quadratically: next to both ends the path is nearly free of it.

    .. math:: \gamma_t = s \sin^2(\pi t)

    Source: Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants, 2023, arXiv:2303.08797, section 3.4.

    Example:
        >>> SineGamma()(torch.tensor(0.5))
        tensor(1.)
    """

    def __call__(self, t: Tensor) -> Tensor:
        # Measured from the nearer end: exactly zero at both.
        return self.scale * torch.sin(math.pi * torch.minimum(t, 1 - t)) ** 2

    def slope(self, t: Tensor) -> Tensor:
        return self.scale * math.pi * torch.sin(2 * math.pi * t)


@register("paths.SigmoidGamma")
@dataclass(frozen=True)
class SigmoidGamma(Gamma):
    r"""Adds noise on a plateau between two sigmoid steps.

    .. math:: \gamma_t = s \, [h(t) - h(0)], \quad h(t) = \operatorname{sigmoid}(f(t - \tfrac12) + 1)
              - \operatorname{sigmoid}(f(t - \tfrac12) - 1)

    Source: Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants, 2023, arXiv:2303.08797, section 3.4.

    Example:
        >>> bool(SigmoidGamma()(torch.tensor(0.5)) > 0.4)
        True
    """

    steepness: float = 10.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.steepness < math.inf:
            raise ValueError(
                f"SigmoidGamma(steepness={self.steepness}): the steps have a positive slope; pass a value such as 10.0."
            )

    def _steps(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u = self.steepness * (torch.minimum(t, 1 - t) - 0.5)
        return torch.sigmoid(u + 1), torch.sigmoid(u - 1)

    def __call__(self, t: Tensor) -> Tensor:
        up, down = self._steps(t)
        first, second = self._steps(torch.zeros_like(t))
        return self.scale * ((up - down) - (first - second))

    def slope(self, t: Tensor) -> Tensor:
        up, down = self._steps(t)
        slope = self.scale * self.steepness * (up * (1 - up) - down * (1 - down))
        return torch.where(t <= 0.5, slope, -slope)
