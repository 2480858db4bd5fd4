"""The schedules of affine paths: the weights of data and base over time, and their derivatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.paths.affine import AffinePath, Prediction
from cflow.registry import register

__all__ = ["Cosine", "Linear", "Polynomial", "VariancePreserving"]


@register("paths.Linear")
class Linear(AffinePath):
    r"""Moves in a straight line at constant speed: the path of rectified flow and of conditional flow matching.

    .. math:: \alpha_t = t, \qquad \sigma_t = 1 - (1 - \sigma_{\min}) t

    Args:
        sigma_min: the weight of the base at the data's end, in [0, 1). A positive value is Lipman's path, which ends at
            a Gaussian of that width around each data point, so that the conditional density exists; 1e-4 is usual.

    The other arguments are those of :class:`AffinePath`.

    Source: Liu, Gong and Liu, Flow Straight and Fast, 2022, arXiv:2209.03003; Lipman et al., Flow Matching for
    Generative Modeling, 2022, arXiv:2210.02747, equation 20.

    Example:
        >>> x0, x1 = torch.zeros(2, 3), torch.ones(2, 3)
        >>> Linear().sample(x0, x1, torch.tensor([0.25, 1.0])).xt[:, 0]
        tensor([0.2500, 1.0000])
    """

    straight = True

    def __init__(
        self,
        predict: Prediction = "velocity",
        *,
        sigma_min: float = 0.0,
        margin: float = 1e-3,
    ):
        if not 0 <= sigma_min < 1:
            raise ValueError(f"Linear(sigma_min={sigma_min}): the width at the data's end is in [0, 1); use 0 or 1e-4.")
        self.sigma_min = sigma_min
        super().__init__(predict, margin=margin)

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.sigma_min) * t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_min - 1)

    def time_at(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha / (sigma + (1 - self.sigma_min) * alpha)


@register("paths.Polynomial")
class Polynomial(AffinePath):
    r"""Starts slowly at the base and arrives fast at the data (``power > 1``).

    .. math:: \alpha_t = t^n, \qquad \sigma_t = 1 - t^n

    Args:
        power: n, at least 1.

    The other arguments are those of :class:`AffinePath`.

    Source: Lipman et al., Flow Matching Guide and Code, 2024, arXiv:2412.06264, section 4.

    Example:
        >>> Polynomial(3.0).alpha(torch.tensor(0.5))
        tensor(0.1250)
    """

    def __init__(self, power: float = 2.0, predict: Prediction = "velocity", *, margin: float = 1e-3):
        if not power >= 1:
            raise ValueError(f"Polynomial(power={power}): below 1 the velocity is infinite at t = 0; pass 1 or more.")
        self.power = power
        super().__init__(predict, margin=margin)

    def alpha(self, t: Tensor) -> Tensor:
        return t**self.power

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t**self.power

    def d_alpha(self, t: Tensor) -> Tensor:
        return self.power * t ** (self.power - 1)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -self.d_alpha(t)

    def time_at(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / (alpha + sigma)) ** (1 / self.power)

    @property
    def ends_interval(self) -> tuple[float, float]:
        """The times at which :meth:`ends` is well conditioned; a velocity that vanishes does not determine the ends."""
        low, high = self.interval
        if self.predict == "velocity" and self.power > 1:
            low = max(low, (self.margin / self.power) ** (1 / (self.power - 1)))
        return low, high


@register("paths.Cosine")
class Cosine(AffinePath):
    r"""Moves on a circle, which keeps the variance of standardised data: the trigonometric or "generalised VP" path.

    .. math:: \alpha_t = \sin(\pi t / 2), \qquad \sigma_t = \cos(\pi t / 2)

    The arguments are those of :class:`AffinePath`.

    Source: Albergo and Vanden-Eijnden, Building Normalizing Flows with Stochastic Interpolants, 2022, arXiv:2209.15571;
    Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, arXiv:2102.09672.

    Example:
        >>> path = Cosine()
        >>> float(path.alpha(torch.tensor(0.3)) ** 2 + path.sigma(torch.tensor(0.3)) ** 2)
        1.0
    """

    def __init__(self, predict: Prediction = "velocity", *, margin: float = 1e-3):
        super().__init__(predict, margin=margin)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        # sin(0) is exactly 0 at t = 1, while the cosine of the rounded pi / 2 is not.
        return torch.sin(math.pi / 2 * (1 - t))

    def d_alpha(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.alpha(t)

    def time_at(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.atan2(alpha, sigma) / (math.pi / 2)


@register("paths.VariancePreserving")
class VariancePreserving(AffinePath):
    r"""Follows the variance-preserving diffusion backwards, from noise to data.

    .. math:: \alpha_t = e^{-L(1 - t)}, \quad \sigma_t = \sqrt{1 - e^{-2 L(1 - t)}},
              \quad L(s) = \tfrac14 s^2 (\beta_{\max} - \beta_{\min}) + \tfrac12 s \beta_{\min}

    For the defaults, the path starts at ``alpha(0) = 0.0066``, not at zero: a small rest of the data remains at the
    base, as in diffusion models. For single points the velocity is infinite at ``t = 1``, so every solve ends with the
    closed-form step.

    Args:
        beta_min: the rate of the diffusion at the data.
        beta_max: the rate of the diffusion at the base, larger than ``beta_min``.

    The other arguments are those of :class:`AffinePath`.

    Source: Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, 2020,
    arXiv:2011.13456.

    Example:
        >>> VariancePreserving().interval[1] < 1
        True
    """

    def __init__(
        self,
        predict: Prediction = "velocity",
        *,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        margin: float = 1e-3,
    ):
        if not 0 < beta_min < beta_max:
            raise ValueError(
                f"VariancePreserving(beta_min={beta_min}, beta_max={beta_max}): 0 < beta_min < beta_max is needed; "
                f"pass 0.1 and 20."
            )
        self.beta_min, self.beta_max = beta_min, beta_max
        super().__init__(predict, margin=margin)

    def _decay(self, t: Tensor) -> Tensor:
        s = 1 - t
        return 0.25 * s * s * (self.beta_max - self.beta_min) + 0.5 * s * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._decay(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-2 * self._decay(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        return self.alpha(t) * 0.5 * ((1 - t) * (self.beta_max - self.beta_min) + self.beta_min)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.d_alpha(t) / self.sigma(t)

    def time_at(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        decay = 0.5 * torch.log1p((sigma / alpha) ** 2)
        slope = self.beta_max - self.beta_min
        # The root of the quadratic in s, in a form without cancellation for small decay.
        s = 2 * decay / (0.5 * self.beta_min + torch.sqrt(0.25 * self.beta_min**2 + slope * decay))
        return (1 - torch.nan_to_num(s, nan=1.0)).clamp(0, 1)
