"""Distributions of times that change another one: shifted, stratified, in mirrored pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cflow.registry import register
from cflow.times.law import Times, inside, require
from cflow.times.laws import Uniform

__all__ = ["Antithetic", "Shifted", "Stratified", "shift_times"]


@register("times.Shifted")
@dataclass(frozen=True)
class Shifted(Times):
    r"""Draws times of another distribution and moves them towards the noise, for high resolutions.

    .. math:: t \mapsto \frac{t}{s + (1 - s)\, t}

    A shift by a and then by b is a shift by a b; a shift of 1 has no effect. Cost: that of ``inner``.

    Args:
        inner: the distribution of the times before the shift.
        shift: s, positive; above 1 it moves times towards the noise.

    Raises:
        ValueError: if ``shift`` is not positive.

    Source: Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024,
    arXiv:2403.03206, section 5.3.2. There t = 1 is noise and the map is s t / (1 + (s - 1) t); replace t by 1 - t on
    both sides.

    Example:
        >>> Shifted(Uniform(), shift=3.0).icdf(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.2500, 1.0000])
    """

    inner: Times
    shift: float

    def __post_init__(self):
        _require_law(self, self.inner)
        require(self, "shift", 0 < self.shift < math.inf, "pass a positive factor; 3.0 is usual for 1024 pixels")

    def uniforms(self, count: int, generator, device, dtype: torch.dtype) -> Tensor:
        return self.inner.uniforms(count, generator, device, dtype)

    def icdf(self, u: Tensor) -> Tensor:
        return shift_times(self.inner.icdf(u), self.shift)

    def log_density(self, t: Tensor) -> Tensor:
        # The slope of the inverse map, which is a shift by 1 / s: with r = 1 / s it is r / (r + (1 - r) t)^2.
        inverse = 1 / self.shift
        slope = math.log(inverse) - 2 * torch.log(inverse + (1 - inverse) * t.clamp(0, 1))
        return inside(t, self.inner.log_density(shift_times(t.clamp(0, 1), inverse)) + slope)


@register("times.Stratified")
@dataclass(frozen=True)
class Stratified(Times):
    r"""Draws one time per stratum of equal probability, in random order, so that the loss has less noise.

    .. math:: t_{\pi(i)} = F^{-1}\Big(\frac{i + u_i}{n}\Big), \qquad i = 0, \dots, n - 1

    Each time has the distribution ``inner``; the times of one call depend on each other. Cost: that of ``inner`` and a
    permutation.

    Args:
        inner: the distribution of a single time.

    Raises:
        ValueError: if ``inner`` already draws dependent times.

    Source: Kingma et al., Variational Diffusion Models, 2021, arXiv:2107.00630 (there all strata share one draw; here
    each has its own).

    Example:
        >>> times = Stratified()(4, generator=torch.Generator().manual_seed(0))
        >>> (4 * times.sort().values).floor()
        tensor([0., 1., 2., 3.])
    """

    inner: Times = field(default_factory=Uniform)

    def __post_init__(self):
        _require_law(self, self.inner)
        dependent = _dependent(self.inner)
        require(self, "inner", dependent is None, f"{dependent} draws dependent times; pass its inner distribution")

    def uniforms(self, count: int, generator, device, dtype: torch.dtype) -> Tensor:
        stratum = torch.randperm(count, generator=generator, device=device)
        within = torch.rand(count, generator=generator, device=device, dtype=dtype)
        return (stratum + within) / max(count, 1)

    def icdf(self, u: Tensor) -> Tensor:
        return self.inner.icdf(u)

    def log_density(self, t: Tensor) -> Tensor:
        return self.inner.log_density(t)


@register("times.Antithetic")
@dataclass(frozen=True)
class Antithetic(Times):
    r"""Draws times in mirrored pairs, neighbours in the batch, so that a loss that is monotone in time has less noise.

    .. math:: t_{2i} = F^{-1}(u_i), \qquad t_{2i + 1} = F^{-1}(1 - u_i)

    Each time has the distribution ``inner``. ``Antithetic(Stratified(...))`` mirrors stratified draws. With an odd
    count the last time has no partner. Cost: that of ``inner``, with half the draws.

    Args:
        inner: the distribution of a single time.

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
        require(self, "inner", dependent != "Antithetic", "its times are already mirrored; use Antithetic once")

    def uniforms(self, count: int, generator, device, dtype: torch.dtype) -> Tensor:
        u = self.inner.uniforms((count + 1) // 2, generator, device, dtype)
        return torch.stack([u, 1 - u], 1).flatten()[:count]

    def icdf(self, u: Tensor) -> Tensor:
        return self.inner.icdf(u)

    def log_density(self, t: Tensor) -> Tensor:
        return self.inner.log_density(t)


def shift_times(t: Tensor | float, shift: float) -> Tensor | float:
    r"""Moves times towards the noise: :math:`t / (s + (1 - s) t)`; ``1 / shift`` moves them back.

    Args:
        t: times in [0, 1].
        shift: s, positive.
    """
    return t / (shift + (1 - shift) * t)


def _dependent(law: Times) -> str | None:
    """Returns the name of the outermost distribution that draws dependent times; None if there is none."""
    while law is not None:
        if isinstance(law, Stratified | Antithetic):
            return type(law).__name__
        law = getattr(law, "inner", None)
    return None


def _require_law(law: Times, inner: object) -> None:
    if not isinstance(inner, Times):
        raise TypeError(
            f"{type(law).__name__}(inner={inner!r}): expected a distribution of times; pass one of cflow.times, such "
            f"as Uniform()."
        )
