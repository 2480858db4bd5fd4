"""The width of the noise that a stochastic interpolant adds between the ends; it is zero at the ends."""

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
    r"""Computes the width :math:`\gamma_t` of the noise, with :math:`\gamma_0 = \gamma_1 = 0`: the base class.

    :math:`\gamma^2` and its derivative are finite everywhere. The class attribute ``steep`` is True if
    :math:`\dot\gamma` is infinite at the ends.

    Args:
        scale: s, the factor of the width, positive.

    Example:
        >>> class Cubic(Gamma):
        ...     def __call__(self, t):
        ...         return self.scale * t * (1 - t) ** 2
        ...
        ...     def slope(self, t):
        ...         return self.scale * (1 - t) * (1 - 3 * t)
        >>> Cubic(4.0).d_square(torch.tensor(0.5))
        tensor(-1.)
    """

    scale: float = 1.0

    steep = False

    def __post_init__(self):
        if not 0 < self.scale < math.inf:
            raise ValueError(
                f"{type(self).__name__}(scale={self.scale}): the width is positive; pass 1.0, or use paths.Linear for "
                f"no noise."
            )

    @abstractmethod
    def __call__(self, t: Tensor) -> Tensor:
        """Computes the width of the noise at times ``t`` of any shape."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """Computes the derivative of the width at times ``t``."""

    def d_square(self, t: Tensor) -> Tensor:
        """Computes the derivative of the variance :math:`\\gamma^2` at times ``t``."""
        return 2 * self(t) * self.slope(t)


@register("paths.BrownianGamma")
@dataclass(frozen=True)
class BrownianGamma(Gamma):
    r"""Adds the noise of a Brownian bridge.

    .. math:: \gamma_t = s \sqrt{t (1 - t)}

    The arguments are those of :class:`Gamma`.

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
    r"""Adds noise that starts and ends linearly, so that velocities are finite at the ends.

    .. math:: \gamma_t = s \, t (1 - t)

    The arguments are those of :class:`Gamma`.

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
    r"""Adds noise that starts and ends quadratically: near both ends there is almost none.

    .. math:: \gamma_t = s \sin^2(\pi t)

    The arguments are those of :class:`Gamma`.

    Source: Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants, 2023, arXiv:2303.08797, section 3.4.

    Example:
        >>> SineGamma()(torch.tensor(0.5))
        tensor(1.)
    """

    def __call__(self, t: Tensor) -> Tensor:
        # Measured from the nearer end, so that it is exactly zero at both.
        return self.scale * torch.sin(math.pi * torch.minimum(t, 1 - t)) ** 2

    def slope(self, t: Tensor) -> Tensor:
        return self.scale * math.pi * torch.sin(2 * math.pi * t)


@register("paths.SigmoidGamma")
@dataclass(frozen=True)
class SigmoidGamma(Gamma):
    r"""Adds noise whose width is a plateau between two sigmoid steps.

    .. math:: \gamma_t = s \, [h(t) - h(0)], \quad h(t) = \operatorname{sigmoid}(f(t - \tfrac12) + 1)
              - \operatorname{sigmoid}(f(t - \tfrac12) - 1)

    Args:
        scale: s, the factor of the width, positive.
        steepness: f, the slope of the steps, positive.

    Source: Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants, 2023, arXiv:2303.08797, section 3.4.

    Example:
        >>> bool(SigmoidGamma()(torch.tensor(0.5)) > 0.4)
        True
    """

    steepness: float = 10.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.steepness < math.inf:
            raise ValueError(f"SigmoidGamma(steepness={self.steepness}): the slope is positive; pass 10.0.")

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
