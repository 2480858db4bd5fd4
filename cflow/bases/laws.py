"""Simple distributions: normal, uniform, mixtures of normals, Student-t."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cflow.bases.base import Base, Number, show
from cflow.registry import register

__all__ = ["Mixture", "Normal", "StudentT", "Uniform"]

FAR = 1e15  # below it squares are finite in float32, and above it 1 + z^2 / df is z^2 / df unless df is beyond 1e14


@register("bases.Normal")
class Normal(Base):
    r"""Draws independent normal entries.

    .. math:: \log p(x) = -\tfrac12 \sum_i \Big(\frac{x_i - \mu_i}{\sigma_i}\Big)^2 - \sum_i \log \sigma_i
              - \tfrac D2 \log 2\pi

    Args:
        event_shape: shape of one event, an int or a tuple.
        loc: mean, a number or a tensor that broadcasts to the event.
        scale: standard deviation, a number or a tensor that broadcasts to the event.

    Shapes: ``sample`` returns ``[*shape, *event]``, ``log_prob`` returns ``[*batch]``. Cost: one normal draw per entry.

    Raises:
        ValueError: if ``scale`` is not positive, an argument does not broadcast, or an event has an empty dimension.

    Example:
        >>> base = Normal(2)
        >>> base.sample((3,), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
        >>> base.log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    is_gaussian = True

    def __init__(self, event_shape: int | Sequence[int], loc: Number = 0.0, scale: Number = 1.0):
        super().__init__(event_shape)
        self._keep_broadcast(loc=loc, scale=scale)
        self._require_positive("scale")
        self._is_standard = self._find_standard()

    @property
    def is_standard(self) -> bool:
        """Whether the mean is fixed at zero and the scale at one; False where either is a trained parameter."""
        return self._is_standard

    def _find_standard(self) -> bool:
        # Evaluated once, when values arrive, so that later reads never wait for the device.
        def fixed_at(value: Number, target: float) -> bool:
            if isinstance(value, nn.Parameter):
                return False
            return bool((value == target).all()) if isinstance(value, Tensor) else value == target

        return fixed_at(self.loc, 0.0) and fixed_at(self.scale, 1.0)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._is_standard = self._find_standard()

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        noise = self._draw(torch.randn, shape, generator)
        if self._is_standard:
            return noise
        return self._number("loc", self.dtype) + self._number("scale", self.dtype) * noise

    def _log_prob(self, x: Tensor) -> Tensor:
        constant = 0.5 * math.log(2 * math.pi) * self.event_shape.numel()
        if self._is_standard:
            return -0.5 * self._sum_event(x.square()) - constant
        scale = self._full(self._number("scale", x.dtype), x.dtype)
        z = (x - self._number("loc", x.dtype)) / scale
        return -0.5 * self._sum_event(z.square()) - scale.log().sum() - constant


@register("bases.Uniform")
class Uniform(Base):
    r"""Draws independent entries, uniform between ``low`` and ``high``.

    .. math:: p(x) = \prod_i \frac{1}{b_i - a_i} \quad\text{for } a \le x \le b,\qquad 0 \text{ elsewhere}

    The log-density is minus infinity outside; it has no gradient in ``x``.

    Args:
        event_shape: shape of one event, an int or a tuple.
        low: lower end, a number or a tensor that broadcasts to the event.
        high: upper end, a number or a tensor that broadcasts to the event.

    Cost: one uniform draw per entry.

    Raises:
        ValueError: if ``high`` is not above ``low`` everywhere, or an argument does not broadcast to the event.

    Example:
        >>> Uniform(2, low=-1.0, high=1.0).log_prob(torch.tensor([[0.0, 0.5], [0.0, 1.5]]))
        tensor([-1.3863,    -inf])
    """

    def __init__(self, event_shape: int | Sequence[int], low: Number = 0.0, high: Number = 1.0):
        super().__init__(event_shape)
        self._keep_broadcast(low=low, high=high)
        if not bool(torch.as_tensor(self.high > self.low).all()):
            raise ValueError(
                f"Uniform(low={show(self.low)}, high={show(self.high)}): high is not above low in every entry; "
                f"exchange them."
            )

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        low, high = self._number("low", self.dtype), self._number("high", self.dtype)
        return low + (high - low) * self._draw(torch.rand, shape, generator)

    def _log_prob(self, x: Tensor) -> Tensor:
        low, high = self._number("low", x.dtype), self._number("high", x.dtype)
        inside = self._sum_event(~((x >= low) & (x <= high))) == 0
        density = -self._full(high - low, x.dtype).log().sum()
        return torch.where(inside, density, -torch.inf)


@register("bases.Mixture")
class Mixture(Base):
    r"""Draws from a mixture of normals with diagonal covariances.

    .. math:: p(x) = \sum_{k=1}^K w_k \prod_i \mathcal N(x_i; \mu_{ki}, \sigma_{ki}^2)

    Gradients of draws reach means and scales, never weights.

    Args:
        means: ``[K, *event]``.
        scales: standard deviations, a number, ``[K]`` or ``[K, *event]``.
        weights: ``[K]``, not negative, normalised here. Default: equal.

    Cost: ``log_prob`` needs memory for ``[*batch, K, *event]``.

    Raises:
        ValueError: if the shapes disagree, a scale is not positive, or the weights are negative or all zero.

    Example:
        >>> base = Mixture(torch.tensor([[-3.0], [3.0]]), scales=0.5)
        >>> base.event_shape
        torch.Size([1])
        >>> base.log_prob(torch.tensor([[3.0]]))
        tensor([-0.9189])
    """

    def __init__(self, means: Tensor, scales: Number = 1.0, weights: Tensor | Sequence[float] | None = None):
        means = torch.as_tensor(means)
        if means.dim() == 0 or means.shape[0] == 0:
            raise ValueError(
                f"Mixture(means of shape {list(means.shape)}): there are no components; pass means [K, *event]."
            )
        count, event_shape = means.shape[0], means.shape[1:]
        super().__init__(tuple(event_shape))
        if isinstance(scales, Tensor) and scales.shape not in ((), (count,), means.shape):
            raise ValueError(
                f"Mixture(scales of shape {list(scales.shape)}): they do not fit the means; pass a number, [{count}] "
                f"(per component) or {list(means.shape)} (per entry)."
            )
        self._keep(means=means, scales=scales)
        self._require_positive("scales")
        self.weights = None
        if weights is not None:
            weights = torch.as_tensor(weights, dtype=self._like.dtype, device=self.device)
            if weights.shape != (count,) or not bool((weights >= 0).all()) or not bool(0 < weights.sum() < torch.inf):
                raise ValueError(
                    f"Mixture(weights={weights.tolist()}): pass one weight per component, [{count}], none negative "
                    f"and not all zero, or None for equal weights."
                )
            del self.weights
            self._keep(weights=weights)

    def _probabilities(self, dtype: torch.dtype) -> Tensor:
        if self.weights is None:
            count = self.means.shape[0]
            return torch.full((count,), 1 / count, dtype=dtype, device=self.device)
        return self.weights.to(dtype) / self.weights.to(dtype).sum()

    def _scales(self, dtype: torch.dtype) -> Tensor:
        scales = torch.as_tensor(self.scales, dtype=dtype, device=self.device)
        if scales.dim() == 1:
            scales = scales.reshape(-1, *[1] * len(self.event_shape))
        return scales.expand(self.means.shape)

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        total = self._probabilities(self.dtype).detach().cumsum(0)
        # The last bound is exactly one and draws stay below it, so components of weight zero are never chosen.
        choice = torch.rand(shape, generator=generator, dtype=self.dtype, device=self.device)
        component = torch.searchsorted(total / total[-1], choice, right=True)
        noise = self._draw(torch.randn, shape, generator)
        return self.means.to(self.dtype)[component] + self._scales(self.dtype)[component] * noise

    def _log_prob(self, x: Tensor) -> Tensor:
        scales = self._scales(x.dtype)
        z = (x.unsqueeze(-len(self.event_shape) - 1) - self.means.to(x.dtype)) / scales
        logs = -0.5 * self._sum_event(z.square()) - self._sum_event(scales.log())
        constant = 0.5 * math.log(2 * math.pi) * self.event_shape.numel()
        logs = logs + self._probabilities(x.dtype).log()
        # Where all components underflow, the gradient of a sum of their exponentials would be NaN.
        none = (logs == -torch.inf).all(-1)
        total = torch.logsumexp(logs.masked_fill(none.unsqueeze(-1), 0.0), -1)
        return torch.where(none, -torch.inf, total) - constant


@register("bases.StudentT")
class StudentT(Base):
    r"""Draws independent entries from Student's t, for data with tails heavier than a flow of a normal base can have.

    .. math:: p(x) = \prod_i \frac{\Gamma(\frac{\nu_i + 1}{2})}{\Gamma(\frac{\nu_i}{2}) \sqrt{\pi \nu_i}\, \sigma_i}
              \Big(1 + \frac{z_i^2}{\nu_i}\Big)^{-\frac{\nu_i + 1}{2}}, \qquad z_i = \frac{x_i - \mu_i}{\sigma_i}

    Draws are :math:`z = \sqrt{\nu (e^{2E/\nu} - 1)} \cos 2\pi U` with E exponential and U uniform: exact, without
    rejection, differentiable in ``df``, and drawn from the generator on every device.

    Args:
        event_shape: shape of one event, an int or a tuple.
        df: degrees of freedom, a number or a tensor that broadcasts to the event. Below 0.5 a draw may exceed the range
            of float32.
        loc: centre, a number or a tensor that broadcasts to the event.
        scale: width, a number or a tensor that broadcasts to the event.

    Cost: one exponential and one uniform draw per entry.

    Raises:
        ValueError: if ``df`` or ``scale`` is not positive, or an argument does not broadcast to the event.

    Source: Bailey, Polar Generation of Random Variates with the t-Distribution, 1994, Mathematics of Computation 62.
    As a base of flows: Jaini, Kobyzev, Yu and Brubaker, Tails of Lipschitz Triangular Flows, 2020, arXiv:1907.04481.

    Example:
        >>> StudentT(1, df=1.0).log_prob(torch.zeros(1))   # Cauchy: -log(pi)
        tensor(-1.1447)
    """

    def __init__(self, event_shape: int | Sequence[int], df: Number, loc: Number = 0.0, scale: Number = 1.0):
        super().__init__(event_shape)
        self._keep_broadcast(df=df, loc=loc, scale=scale)
        self._require_positive("df", "scale")

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        df = torch.as_tensor(self.df, dtype=self.dtype, device=self.device)
        ratio = torch.empty((*shape, *self.event_shape), dtype=self.dtype, device=self.device)
        ratio = ratio.exponential_(generator=generator) / df
        # The root of exp(2r) - 1 as exp(r) sqrt(1 - exp(-2r)): no cancellation at zero and twice the range.
        radius = df.sqrt() * ratio.exp() * (-torch.expm1(-2 * ratio)).sqrt()
        z = radius * torch.cos(2 * math.pi * self._draw(torch.rand, shape, generator))
        return self._number("loc", self.dtype) + self._number("scale", self.dtype) * z

    def _log_prob(self, x: Tensor) -> Tensor:
        scale = self._full(self._number("scale", x.dtype), x.dtype)
        z = (x - self._number("loc", x.dtype)) / scale
        # In float64: the two log-gammas nearly cancel when df is large.
        df = self._full(self._number("df", torch.float64), torch.float64)
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (math.pi * df).log()
        df = df.to(x.dtype)
        # For large |z| the square overflows, but its logarithm does not.
        far = z.abs() > FAR
        near = torch.log1p(torch.where(far, 0.0, z).square() / df)
        tails = 0.5 * (df + 1) * torch.where(far, 2 * torch.where(far, z.abs(), 1.0).log() - df.log(), near)
        return constant.sum().to(x.dtype) - scale.log().sum() - self._sum_event(tails)
