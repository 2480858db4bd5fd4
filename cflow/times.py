"""How training times are drawn, and how sampling grids are laid; t = 0 is the base (noise), t = 1 the data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cflow.registry import register

__all__ = [
    "Antithetic",
    "Beta",
    "CosMap",
    "LogitNormal",
    "Mode",
    "Shifted",
    "Stratified",
    "Times",
    "Uniform",
    "cosine_grid",
    "edm_grid",
    "power_grid",
    "quantile_grid",
    "shift_times",
    "shifted_grid",
    "uniform_grid",
]


class Times:
    """Draws training times ``[count]`` in [0, 1] through the inverse of the law's distribution function.

    A law gives ``icdf(u)``, increasing from 0 to 1, and ``log_density(t)`` (minus infinity outside [0, 1]), both
    elementwise. ``uniforms`` says how the u are drawn, which is where stratified and antithetic draws differ. Draws are
    made in float32 at least and rounded to ``dtype`` at the end.
    """

    def __call__(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        dtype = torch.get_default_dtype() if dtype is None else dtype
        u = self.uniforms(count, generator, device, torch.promote_types(dtype, torch.float32))
        # Never exactly 0 or 1, where a law with a singular inverse has no time to give.
        epsilon = torch.finfo(u.dtype).eps
        return self.icdf(u.clamp(epsilon / 4, 1 - epsilon / 2)).to(dtype)

    def uniforms(self, count: int, generator, device, dtype: torch.dtype) -> Tensor:
        """Draws ``count`` numbers, each uniform in [0, 1]."""
        return torch.rand(count, generator=generator, device=device, dtype=dtype)

    def icdf(self, u: Tensor) -> Tensor:
        """Computes the time below which the share ``u`` of all draws lies."""
        raise NotImplementedError(f"{type(self).__name__} gives no icdf(u).")

    def log_density(self, t: Tensor) -> Tensor:
        """Computes the log-density at times ``t``, in nats."""
        raise NotImplementedError(f"{type(self).__name__} gives no log_density(t).")

    def density(self, t: Tensor) -> Tensor:
        """Computes the density at times ``t``."""
        return self.log_density(t).exp()


@register
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
        return _inside(t, torch.zeros_like(t))


@register
@dataclass(frozen=True)
class LogitNormal(Times):
    r"""Draws times that crowd where the velocity is hardest to learn.

    .. math:: t = \operatorname{sigmoid}(\mu + \sigma \epsilon), \qquad \epsilon \sim \mathcal N(0, 1)

    A positive ``loc`` moves times towards the data. Cost: one uniform draw and an inverse normal per time.

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
        _require(self, "loc", math.isfinite(self.loc), "the median's logit is a finite number, such as 0.0")
        _require(self, "scale", 0 < self.scale < math.inf, "the scale of a normal is positive, such as 1.0")

    def icdf(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.loc + self.scale * torch.special.ndtri(u))

    def log_density(self, t: Tensor) -> Tensor:
        z = (torch.logit(t) - self.loc) / self.scale
        value = -0.5 * z.square() - torch.log(t) - torch.log1p(-t) - math.log(self.scale * math.sqrt(2 * math.pi))
        return torch.where((t > 0) & (t < 1), value, -torch.inf)


@register
@dataclass(frozen=True)
class Mode(Times):
    r"""Draws times with a mode in the middle and tails that still reach both ends.

    .. math:: t = u + s \big(u - \sin^2(\tfrac{\pi}{2} u)\big), \qquad u \sim \mathcal U(0, 1)

    A positive ``scale`` prefers the middle, a negative one the ends. The law is symmetric, so that it reads the same in
    the source's convention (t = 1 noise). Cost: one uniform draw per time; the density solves for u by 60 bisections.

    Raises:
        ValueError: if ``scale`` leaves [-1, 2 / (pi - 2)], where the map stops being monotone.

    Source: Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
    arXiv:2403.03206, section 3.1, "mode sampling with heavy tails".

    Example:
        >>> Mode(1.29).icdf(torch.tensor([0.0, 0.25, 0.5, 1.0]))
        tensor([0.0000, 0.3836, 0.5000, 1.0000])
    """

    scale: float

    def __post_init__(self):
        bound = 2 / (math.pi - 2)
        _require(self, "scale", -1 <= self.scale <= bound, f"the map is monotone for -1 <= scale <= {bound:.4f} only")

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
        return _inside(t, -slope.log().to(t.dtype))


@register
@dataclass(frozen=True)
class CosMap(Times):
    r"""Draws times at which the linear path has the noise-to-signal ratios of the cosine schedule under uniform times.

    .. math:: t = \frac{\tan(\pi u / 2)}{1 + \tan(\pi u / 2)}, \qquad p(t) = \frac{2}{\pi - 2 \pi t + 2 \pi t^2}

    The law is symmetric. Cost: one uniform draw per time.

    Source: Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
    arXiv:2403.03206, section 3.1.

    Example:
        >>> CosMap().icdf(torch.tensor([0.0, 0.25, 0.5, 1.0]))
        tensor([0.0000, 0.2929, 0.5000, 1.0000])
    """

    def icdf(self, u: Tensor) -> Tensor:
        # Both written as sines of an angle up to pi/2, so that the ends are met without a rounded cosine below zero.
        rising, falling = torch.sin(0.5 * math.pi * u), torch.sin(0.5 * math.pi * (1 - u))
        return rising / (rising + falling)

    def log_density(self, t: Tensor) -> Tensor:
        return _inside(t, math.log(2 / math.pi) - torch.log1p(-2 * t * (1 - t)))


@register
@dataclass(frozen=True)
class Beta(Times):
    r"""Draws times from a Beta law.

    .. math:: p(t) = \frac{t^{\alpha - 1} (1 - t)^{\beta - 1}}{B(\alpha, \beta)}

    Cost: one uniform draw and one power per time where ``alpha`` or ``beta`` is one; otherwise SciPy inverts the
    distribution function in float64 on the host, about a microsecond per time and a round trip from another device.

    Raises:
        ValueError: if ``alpha`` or ``beta`` is not positive.

    Source: Black et al., pi_0: A Vision-Language-Action Flow Model for General Robot Control, 2024, arXiv:2410.24164
    (a Beta(1.5, 1) law with its weight on the noisy end: here ``Beta(1, 1.5)``).

    Example:
        >>> Beta(1.0, 2.0).icdf(torch.tensor([0.0, 0.75, 1.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """

    alpha: float
    beta: float

    def __post_init__(self):
        for name in ("alpha", "beta"):
            _require(self, name, 0 < getattr(self, name) < math.inf, "the exponents of a Beta law are positive")

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
        return _inside(t, powers - constant)


@register
@dataclass(frozen=True)
class Shifted(Times):
    r"""Draws times of another law, moved towards the noise, as high resolutions need.

    .. math:: t \mapsto \frac{t}{s + (1 - s)\, t}

    Shifting by a and then by b is shifting by a b; a shift of 1 changes nothing. Cost: that of ``inner``.

    Raises:
        ValueError: if ``shift`` is not positive.

    Source: Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
    arXiv:2403.03206, section 5.3.2. There t = 1 is noise and the map is s t / (1 + (s - 1) t); put 1 - t for t on both
    sides.

    Example:
        >>> Shifted(Uniform(), shift=3.0).icdf(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.2500, 1.0000])
    """

    inner: Times
    shift: float

    def __post_init__(self):
        _require_law(self, self.inner)
        _require(self, "shift", 0 < self.shift < math.inf, "a shift is a positive factor; 3.0 is usual for 1024 pixels")

    def uniforms(self, count: int, generator, device, dtype: torch.dtype) -> Tensor:
        return self.inner.uniforms(count, generator, device, dtype)

    def icdf(self, u: Tensor) -> Tensor:
        return shift_times(self.inner.icdf(u), self.shift)

    def log_density(self, t: Tensor) -> Tensor:
        # The slope of the inverse map, which is a shift by 1 / s: with r = 1 / s it is r / (r + (1 - r) t)^2.
        inverse = 1 / self.shift
        slope = math.log(inverse) - 2 * torch.log(inverse + (1 - inverse) * t.clamp(0, 1))
        return _inside(t, self.inner.log_density(shift_times(t.clamp(0, 1), inverse)) + slope)


@register
@dataclass(frozen=True)
class Stratified(Times):
    r"""Draws one time per stratum of equal probability, in random order: the same law, with less noise in the loss.

    .. math:: t_{\pi(i)} = F^{-1}\Big(\frac{i + u_i}{n}\Big), \qquad i = 0, \dots, n - 1

    A time alone follows ``inner``; times of one call depend on each other. Cost: that of ``inner`` and a permutation.

    Raises:
        ValueError: if ``inner`` itself draws dependent times, which strata would undo.

    Source: Kingma et al., Variational Diffusion Models, 2021, arXiv:2107.00630 (one draw shared by all
    strata there; one draw per stratum here).

    Example:
        >>> times = Stratified()(4, generator=torch.Generator().manual_seed(0))
        >>> (4 * times.sort().values).floor()
        tensor([0., 1., 2., 3.])
    """

    inner: Times = field(default_factory=Uniform)

    def __post_init__(self):
        _require_law(self, self.inner)
        dependent = _dependent(self.inner)
        _require(self, "inner", dependent is None, f"strata would undo the draws of {dependent}; give its law alone")

    def uniforms(self, count: int, generator, device, dtype: torch.dtype) -> Tensor:
        stratum = torch.randperm(count, generator=generator, device=device)
        within = torch.rand(count, generator=generator, device=device, dtype=dtype)
        return (stratum + within) / max(count, 1)

    def icdf(self, u: Tensor) -> Tensor:
        return self.inner.icdf(u)

    def log_density(self, t: Tensor) -> Tensor:
        return self.inner.log_density(t)


@register
@dataclass(frozen=True)
class Antithetic(Times):
    r"""Draws times in mirrored pairs, neighbours in the batch: the same law, less noise where the loss is monotone.

    .. math:: t_{2i} = F^{-1}(u_i), \qquad t_{2i + 1} = F^{-1}(1 - u_i)

    ``Antithetic(Stratified(law))`` mirrors stratified draws. Of an odd count the last has no partner. Cost: that of
    ``inner``, with half the draws.

    Raises:
        ValueError: if ``inner`` is antithetic already.

    Source: Hammersley and Morton, A New Monte Carlo Technique: Antithetic Variates, 1956.

    Example:
        >>> times = Antithetic(Uniform())(4, generator=torch.Generator().manual_seed(0))
        >>> times[0] + times[1], times[2] + times[3]
        (tensor(1.), tensor(1.))
    """

    inner: Times = field(default_factory=Uniform)

    def __post_init__(self):
        _require_law(self, self.inner)
        dependent = _dependent(self.inner)
        _require(self, "inner", dependent != "Antithetic", "pairs mirrored twice are each drawn twice; mirror once")

    def uniforms(self, count: int, generator, device, dtype: torch.dtype) -> Tensor:
        u = self.inner.uniforms((count + 1) // 2, generator, device, dtype)
        return torch.stack([u, 1 - u], 1).flatten()[:count]

    def icdf(self, u: Tensor) -> Tensor:
        return self.inner.icdf(u)

    def log_density(self, t: Tensor) -> Tensor:
        return self.inner.log_density(t)


def shift_times(t: Tensor | float, shift: float) -> Tensor | float:
    r"""Moves times towards the noise: :math:`t / (s + (1 - s) t)`; ``1 / shift`` moves them back."""
    return t / (shift + (1 - shift) * t)


def uniform_grid(steps: int) -> tuple[float, ...]:
    """Lays ``steps`` equal steps from 0.0 to 1.0."""
    return _grid("uniform_grid", steps, lambda u: u)


def shifted_grid(steps: int, shift: float) -> tuple[float, ...]:
    """Lays equal steps moved towards the noise by ``shift`` (see :class:`Shifted`); above 1 for high resolutions.

    Source: Esser et al., 2024, arXiv:2403.03206, section 5.3.2.

    Example:
        >>> shifted_grid(2, 3.0)
        (0.0, 0.25, 1.0)
    """
    _require_number("shifted_grid", "shift", shift)
    return _grid("shifted_grid", steps, lambda u: shift_times(u, shift))


def cosine_grid(steps: int) -> tuple[float, ...]:
    r"""Lays steps that are short at both ends: :math:`t_i = \tfrac12 (1 - \cos(\pi i / n))`."""
    return _grid("cosine_grid", steps, lambda u: math.sin(0.5 * math.pi * u) ** 2)


def power_grid(steps: int, power: float) -> tuple[float, ...]:
    r"""Lays :math:`t_i = 1 - (1 - i / n)^p`: steps short near the data for p > 1, near the noise for p < 1."""
    _require_number("power_grid", "power", power)
    return _grid("power_grid", steps, lambda u: 1 - (1 - u) ** power)


def edm_grid(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> tuple[float, ...]:
    r"""Lays the noise levels of EDM, seen as times of the linear path by :math:`t = 1 / (1 + \sigma)`.

    .. math:: \sigma_i = \Big(\sigma_{\max}^{1/\rho} + \frac{i}{n - 1}
              \big(\sigma_{\min}^{1/\rho} - \sigma_{\max}^{1/\rho}\big)\Big)^\rho, \qquad i = 0, \dots, n - 1

    The first time is 0.0 in place of :math:`1 / (1 + \sigma_{\max})`, since a flow starts at pure noise; the last,
    1.0, follows :math:`\sigma_{\min}`.

    Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364.
    """
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max), ("rho", rho)):
        _require_number("edm_grid", name, value)
    if not sigma_min < sigma_max:
        raise ValueError(
            f"edm_grid(sigma_min={sigma_min}, sigma_max={sigma_max}): the noise falls from sigma_max to sigma_min; "
            f"pass sigma_min below sigma_max."
        )
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)

    def time(u: float) -> float:
        return 1 / (1 + (first + u * steps / (steps - 1) * (last - first)) ** rho)

    return _grid("edm_grid", steps, time)


def quantile_grid(steps: int, law: Times) -> tuple[float, ...]:
    """Lays steps of equal probability under a law of training times: short where the training looked most."""
    return _grid("quantile_grid", steps, lambda u: law.icdf(torch.tensor(u, dtype=torch.float64)).item())


def _grid(name: str, steps: int, time: Callable[[float], float]) -> tuple[float, ...]:
    """Lays ``time(i / steps)`` between exact ends, and makes sure that every step goes forward."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"{name}(steps={steps!r}): a grid has a whole number of steps, one at least; pass 1 or more.")
    grid = (0.0, *(time(i / steps) for i in range(1, steps)), 1.0)
    if not all(a < b for a, b in itertools.pairwise(grid)):
        raise ValueError(
            f"{name}(steps={steps}): neighbouring times coincide in float64, so some step would have no length; take "
            f"fewer steps or milder parameters."
        )
    return grid


def _inside(t: Tensor, value: Tensor) -> Tensor:
    """Keeps log-densities within [0, 1] and gives minus infinity outside."""
    return torch.where((t >= 0) & (t <= 1), value, -torch.inf)


def _dependent(law: Times) -> str | None:
    """Names the outermost law in a nest that draws dependent times."""
    while law is not None:
        if isinstance(law, Stratified | Antithetic):
            return type(law).__name__
        law = getattr(law, "inner", None)
    return None


def _require(law: Times, name: str, holds: bool, why: str) -> None:
    if not holds:
        raise ValueError(f"{type(law).__name__}({name}={getattr(law, name)}): {why}.")


def _require_law(law: Times, inner: object) -> None:
    if not isinstance(inner, Times):
        raise TypeError(
            f"{type(law).__name__}(inner={inner!r}): the inner law must be one that can be inverted; pass an object of "
            f"cflow.times such as Uniform()."
        )


def _require_number(name: str, argument: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}({argument}={value}): it must be a positive number; 1.0 is the neutral choice.")
