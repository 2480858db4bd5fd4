"""Distributions of training times; t = 0 is the base (noise), t = 1 the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.registry import register
from cflow.times.law import Times, inside, require

__all__ = ["Beta", "CosMap", "Ends", "Exponential", "LogitNormal", "Mode", "Uniform"]


@register("times.Uniform")
@dataclass(frozen=True)
class Uniform(Times):
    """Draws times uniformly.

    Cost: one uniform draw per time.

    Example:
        >>> Uniform()(3, generator=torch.Generator().manual_seed(0))
        tensor([0.4963, 0.7682, 0.0885])
    """

    def icdf(self, u: Tensor) -> Tensor:
        return u

    def log_density(self, t: Tensor) -> Tensor:
        return inside(t, torch.zeros_like(t))


@register("times.LogitNormal")
@dataclass(frozen=True)
class LogitNormal(Times):
    r"""Draws times mostly in the middle, where the velocity is hardest to learn.

    .. math:: t = \operatorname{sigmoid}(\mu + \sigma \epsilon), \qquad \epsilon \sim \mathcal N(0, 1)

    Args:
        loc: :math:`\mu`, the logit of the median; a positive one moves times towards the data.
        scale: :math:`\sigma`, positive.

    Cost: one uniform draw and one inverse normal distribution function per time.

    Raises:
        ValueError: if ``scale`` is not positive, or an argument is not finite.

    Source: Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
    arXiv:2403.03206, section 3.1 (there t = 1 is noise, hence the opposite sign of ``loc``).

    Example:
        >>> LogitNormal(loc=1.0).icdf(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.7311, 1.0000])
    """

    loc: float = 0.0
    scale: float = 1.0

    def __post_init__(self):
        require(self, "loc", math.isfinite(self.loc), "pass a finite number, such as 0.0")
        require(self, "scale", 0 < self.scale < math.inf, "pass a positive number, such as 1.0")

    def icdf(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.loc + self.scale * torch.special.ndtri(u))

    def log_density(self, t: Tensor) -> Tensor:
        z = (torch.logit(t) - self.loc) / self.scale
        value = -0.5 * z.square() - torch.log(t) - torch.log1p(-t) - math.log(self.scale * math.sqrt(2 * math.pi))
        return torch.where((t > 0) & (t < 1), value, -torch.inf)


@register("times.Mode")
@dataclass(frozen=True)
class Mode(Times):
    r"""Draws times with a mode in the middle and tails that reach both ends.

    .. math:: t = u + s \big(u - \sin^2(\tfrac{\pi}{2} u)\big), \qquad u \sim \mathcal U(0, 1)

    The distribution is symmetric, so it is the same in the convention of the source (t = 1 is noise).

    Args:
        scale: s, between -1 and 2 / (pi - 2). A positive one prefers the middle, a negative one the ends.

    Cost: one uniform draw per time; the density solves for u with 60 bisections.

    Raises:
        ValueError: if ``scale`` is outside [-1, 2 / (pi - 2)], where the map is not monotone.

    Source: Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
    arXiv:2403.03206, section 3.1, "mode sampling with heavy tails".

    Example:
        >>> Mode(1.29).icdf(torch.tensor([0.0, 0.25, 0.5, 1.0]))
        tensor([0.0000, 0.3836, 0.5000, 1.0000])
    """

    scale: float

    def __post_init__(self):
        bound = 2 / (math.pi - 2)
        require(self, "scale", -1 <= self.scale <= bound, f"the map is monotone only for -1 <= scale <= {bound:.4f}")

    def icdf(self, u: Tensor) -> Tensor:
        return u + self.scale * (u - torch.sin(0.5 * math.pi * u).square())

    def log_density(self, t: Tensor) -> Tensor:
        target = t.double()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self.icdf(middle) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        slope = 1 + self.scale * (1 - 0.5 * math.pi * torch.sin(math.pi * high))
        return inside(t, -slope.log().to(t.dtype))


@register("times.CosMap")
@dataclass(frozen=True)
class CosMap(Times):
    r"""Draws times at which the linear path has the noise-to-signal ratios of the cosine schedule at uniform times.

    .. math:: t = \frac{\tan(\pi u / 2)}{1 + \tan(\pi u / 2)}, \qquad p(t) = \frac{2}{\pi - 2 \pi t + 2 \pi t^2}

    The distribution is symmetric. Cost: one uniform draw per time.

    Source: Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
    arXiv:2403.03206, section 3.1.

    Example:
        >>> CosMap().icdf(torch.tensor([0.0, 0.25, 0.5, 1.0]))
        tensor([0.0000, 0.2929, 0.5000, 1.0000])
    """

    def icdf(self, u: Tensor) -> Tensor:
        # Sines of angles up to pi/2 are exact at the ends; a rounded cosine may be below zero.
        rising, falling = torch.sin(0.5 * math.pi * u), torch.sin(0.5 * math.pi * (1 - u))
        return rising / (rising + falling)

    def log_density(self, t: Tensor) -> Tensor:
        return inside(t, math.log(2 / math.pi) - torch.log1p(-2 * t * (1 - t)))


@register("times.Ends")
@dataclass(frozen=True)
class Ends(Times):
    r"""Draws times mostly near both ends.

    .. math:: t = \tfrac12 + \tfrac1a \operatorname{arsinh}\bigl((2 u - 1) \sinh \tfrac a2\bigr),
        \qquad p(t) = \frac{a \cosh(a (t - \frac12))}{2 \sinh \frac a2} \propto e^{a t} + e^{a (1 - t)}

    For the second round of reflow, where the paths of pairs hardly cross. Velocities are then hardest to learn near the
    ends, where a point determines its pair least, or most.

    Args:
        scale: a, positive; a larger one prefers the ends more.

    Cost: one uniform draw per time.

    Raises:
        ValueError: if ``scale`` is not positive, or above 80 (where the hyperbolic sine overflows).

    Source: Lee et al., Improving the Training of Rectified Flows, 2024, arXiv:2405.20320, section 4.1.

    Example:
        >>> Ends(4.0).icdf(torch.tensor([0.0, 0.25, 0.5, 1.0]))
        tensor([0.0000, 0.1608, 0.5000, 1.0000])
    """

    scale: float = 4.0

    def __post_init__(self):
        require(self, "scale", 0 < self.scale <= 80, "pass a number in (0, 80]; 4 is usual")

    def icdf(self, u: Tensor) -> Tensor:
        return 0.5 + torch.asinh((2 * u - 1) * math.sinh(self.scale / 2)) / self.scale

    def log_density(self, t: Tensor) -> Tensor:
        constant = math.log(self.scale / (2 * math.sinh(self.scale / 2)))
        return inside(t, torch.cosh(self.scale * (t - 0.5)).log() + constant)


@register("times.Exponential")
@dataclass(frozen=True)
class Exponential(Times):
    r"""Draws times near the base, from an exponential distribution that ends at 1.

    .. math:: p(t) = \frac{e^{-t / s}}{s (1 - e^{-1 / s})}, \qquad t = -s \log\bigl(1 - u (1 - e^{-1 / s})\bigr)

    Args:
        scale: s, positive: the mean, where it is well below 1.

    Cost: one uniform draw and one logarithm per time.

    Raises:
        ValueError: if ``scale`` is not positive.

    Source: Stark et al., Dirichlet Flow Matching with Applications to DNA Sequence Design, 2024, arXiv:2402.05841, with
    s = 0.25 for ``paths.Dirichlet(8.0)`` (there times go up to 8, with mean 2, and are not cut off).

    Example:
        >>> Exponential(0.25).icdf(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.1687, 1.0000])
    """

    scale: float

    def __post_init__(self):
        require(self, "scale", 0 < self.scale < math.inf, "pass a positive number, such as 0.25")

    def icdf(self, u: Tensor) -> Tensor:
        return -self.scale * torch.log1p(u * math.expm1(-1 / self.scale))

    def log_density(self, t: Tensor) -> Tensor:
        return inside(t, -t / self.scale - math.log(-self.scale * math.expm1(-1 / self.scale)))


@register("times.Beta")
@dataclass(frozen=True)
class Beta(Times):
    r"""Draws times from a Beta distribution.

    .. math:: p(t) = \frac{t^{\alpha - 1} (1 - t)^{\beta - 1}}{B(\alpha, \beta)}

    Args:
        alpha, beta: positive parameters. A larger ``alpha`` moves times towards the data, a larger ``beta`` towards the
            noise.

    Cost: one uniform draw and one power per time if ``alpha`` or ``beta`` is one. Otherwise SciPy inverts the
    distribution function in float64 on the host, which takes about a microsecond per time, and a transfer to the host
    and back.

    Raises:
        ValueError: if ``alpha`` or ``beta`` is not positive.

    Source: Black et al., pi_0: A Vision-Language-Action Flow Model for General Robot Control, 2024, arXiv:2410.24164
    (a Beta(1.5, 1) distribution that prefers the noise: here ``Beta(1, 1.5)``).

    Example:
        >>> Beta(1.0, 2.0).icdf(torch.tensor([0.0, 0.75, 1.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """

    alpha: float
    beta: float

    def __post_init__(self):
        for name in ("alpha", "beta"):
            require(self, name, 0 < getattr(self, name) < math.inf, "pass a positive number")

    def icdf(self, u: Tensor) -> Tensor:
        if self.beta == 1:
            return u ** (1 / self.alpha)
        if self.alpha == 1:
            return -torch.expm1(torch.log1p(-u) / self.beta)
        import scipy.special

        t = scipy.special.betaincinv(self.alpha, self.beta, u.detach().to("cpu", torch.float64).numpy())
        return torch.as_tensor(t, dtype=u.dtype, device=u.device)

    def log_density(self, t: Tensor) -> Tensor:
        constant = math.lgamma(self.alpha) + math.lgamma(self.beta) - math.lgamma(self.alpha + self.beta)
        powers = torch.xlogy(torch.full_like(t, self.alpha - 1), t) + torch.special.xlog1py(
            torch.full_like(t, self.beta - 1), -t
        )
        return inside(t, powers - constant)
