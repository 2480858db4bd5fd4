"""Transforms between the data as measured and what a flow sees, each with its log-determinant.

``encode`` goes from the data towards the latent, ``decode`` back. A flow carries them (``flow.with_transform``), so
its densities are those of the data as measured.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cflow.registry import register

__all__ = ["DataTransform", "Dequantise", "Logit", "Rescale", "Standardise"]


class DataTransform(nn.Module, ABC):
    """Maps data to what a flow models, event by event.

    A transform has ``encode(x, *, generator=None) -> (u, ladj)`` and ``decode(u) -> (x, ladj)``; each returns the
    logarithm of the absolute determinant of its own map's Jacobian.

    Shapes: ``x`` and ``u`` are ``[*batch, *event_shape]`` for any batch, ``ladj`` is ``[*batch]`` in float32 or
    better. An int as ``event_shape`` means a vector of that length.

    ``likelihood`` says what a density of a flow means after the transform, ``has_rsample`` whether gradients pass
    through ``decode``.
    """

    likelihood: Literal["exact", "bound"] = "exact"
    has_rsample: bool = True

    def __init__(self, event_shape: int | Sequence[int]):
        super().__init__()
        self.event_shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)

    @abstractmethod
    def encode(self, x: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Maps data to what the flow models, with the log-determinant."""

    @abstractmethod
    def decode(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Maps what the flow models back to data, with the log-determinant."""

    def _accept(self, x: Tensor, method: str) -> Tensor:
        """Checks the shape and makes integers and half precision float."""
        rank = len(self.event_shape)
        if tuple(x.shape[x.ndim - rank :]) != self.event_shape or x.ndim < rank:
            raise ValueError(
                f"{type(self).__name__}.{method}(tensor of shape {list(x.shape)}): this transform was built with "
                f"event_shape={self.event_shape}, which must be the last dimensions; pass [*batch, *event_shape]."
            )
        return x if x.dtype in (torch.float32, torch.float64) else x.to(_float(x.dtype))

    def _sum(self, values: Tensor) -> Tensor:
        """Sums over the event."""
        return values.flatten(values.ndim - len(self.event_shape)).sum(-1) if self.event_shape else values

    def _constant(self, value: float | Tensor, x: Tensor) -> Tensor:
        """Repeats one log-determinant for every item of the batch."""
        batch = x.shape[: x.ndim - len(self.event_shape)]
        return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(batch)

    @property
    def _size(self) -> int:
        """Gives the number of values in an event."""
        return math.prod(self.event_shape)


@register("data.Standardise")
class Standardise(DataTransform):
    r"""Shifts and scales every feature, usually to mean zero and variance one.

    .. math:: u = \frac{x - \text{loc}}{\text{scale}}, \qquad \log |\det| = -\sum_i \log \text{scale}_i

    Shapes: ``loc`` and ``scale`` broadcast to ``event_shape``, and are kept as buffers (of the default dtype if given
    as numbers).

    Raises:
        ValueError: if they do not broadcast to ``event_shape``, are not finite, or a scale is not positive.

    Example:
        >>> data = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
        >>> u, ladj = Standardise.fit(data).encode(data)
        >>> u
        tensor([[-1., -1.],
                [ 1.,  1.]])
        >>> ladj
        tensor([-2.3026, -2.3026])
    """

    def __init__(self, event_shape: int | Sequence[int], loc: Tensor | float, scale: Tensor | float):
        super().__init__(event_shape)
        for name, value in (("loc", loc), ("scale", scale)):
            tensor = torch.as_tensor(value)
            tensor = tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
            tensor = tensor.detach().clone()
            if not _broadcasts(tensor.shape, self.event_shape):
                raise ValueError(
                    f"Standardise({name} of shape {list(tensor.shape)}, event_shape={self.event_shape}): the former "
                    f"does not broadcast to the latter; pass one value per feature or a shape with ones."
                )
            if not tensor.isfinite().all() or (name == "scale" and not (tensor > 0).all()):
                raise ValueError(
                    f"Standardise({name}): values must be finite{' and positive' if name == 'scale' else ''}, got a "
                    f"smallest of {tensor.min().item():.4g}; Standardise.fit finds them from data."
                )
            self.register_buffer(name, tensor)

    @classmethod
    def fit(
        cls, data: Tensor, *, pooled: Sequence[int] = (), minimum_scale: float | None = None, dtype=None
    ) -> Standardise:
        """Measures mean and standard deviation on data ``[N, *event]``.

        Args:
            data: the training data; statistics are taken over N in float64.
            pooled: event dimensions, as negative numbers, that share one mean and scale: ``()`` measures every
                feature by itself, ``(-2, -1)`` every channel of images ``[N, C, H, W]``, ``(-3, -2, -1)`` all alike.
            minimum_scale: the scale of features that vary less than it; ``None`` refuses constant features.
            dtype: of the buffers; default: the data's, or torch's default for integers.

        Raises:
            ValueError: if there are fewer than two items, a value is not finite, a feature is constant (the message
                names some) while ``minimum_scale`` is ``None``, or ``pooled`` names no event dimension.
        """
        if data.ndim < 1 or len(data) < 2:
            raise ValueError(
                f"Standardise.fit(data of shape {list(data.shape)}): a standard deviation takes at least two items; "
                f"pass [N, *event]."
            )
        rank = data.ndim - 1
        pooled = tuple(pooled)
        if any(not -rank <= dim <= -1 for dim in pooled):
            raise ValueError(
                f"Standardise.fit(pooled={pooled}): the event of data of shape {list(data.shape)} has dimensions "
                f"{list(range(-rank, 0))}; pass some of these."
            )
        dtype = dtype or (data.dtype if data.is_floating_point() else torch.get_default_dtype())
        chunks = data.split(4096)  # float64 copies of a whole image set would be large
        dims, count = (0, *pooled), len(data) * math.prod(data.shape[dim] for dim in pooled)
        mean = sum(chunk.to(torch.float64).sum(dims, keepdim=True) for chunk in chunks) / count
        if not mean.isfinite().all():
            raise ValueError(
                f"Standardise.fit: {int((~data.isfinite()).sum())} values of the data are not finite; remove or fill "
                f"them first."
            )
        variance = sum((chunk - mean).square().sum(dims, keepdim=True) for chunk in chunks) / count
        loc, scale = mean[0], variance[0].sqrt()
        # A constant feature may show a variance of rounding errors, relative to its size.
        constant = scale <= loc.abs() * 1e-12
        if minimum_scale is not None:
            scale = torch.where(constant | (scale < minimum_scale), torch.as_tensor(minimum_scale).to(scale), scale)
        elif constant.any():
            some = [tuple(index) for index in constant.nonzero()[:5].tolist()]
            raise ValueError(
                f"Standardise.fit: {int(constant.sum())} of {constant.numel()} features are constant (at "
                f"{', '.join(str(index) for index in some)}{', ...' if constant.sum() > 5 else ''}), so they have no "
                f"scale; drop them, pool dimensions (pooled=...), or pass minimum_scale=1.0."
            )
        return cls(tuple(data.shape[1:]), loc.to(dtype), scale.to(dtype))

    def encode(self, x: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        x = self._accept(x, "encode")
        u = (x - self.loc) / self.scale
        return u, self._constant(-self._log_scale(), u)

    def decode(self, u: Tensor) -> tuple[Tensor, Tensor]:
        u = self._accept(u, "decode")
        x = self.loc + self.scale * u
        return x, self._constant(self._log_scale(), x)

    def _log_scale(self) -> Tensor:
        return self.scale.log().expand(self.event_shape).sum()


@register("data.Rescale")
class Rescale(DataTransform):
    r"""Brings the interval [low, high] to [-1, 1]; grey levels 0 to 255 for instance.

    .. math:: u = \frac{2 x - \text{low} - \text{high}}{\text{high} - \text{low}}, \qquad
        \log |\det| = D \log \frac{2}{\text{high} - \text{low}}

    Values outside the interval are mapped just as well.

    Raises:
        ValueError: if ``low`` is not below ``high``.
    """

    def __init__(self, event_shape: int | Sequence[int], low: float = 0.0, high: float = 1.0):
        super().__init__(event_shape)
        if not low < high or not math.isfinite(high - low):
            raise ValueError(f"Rescale(low={low}, high={high}): an interval needs low < high, both finite; swap them?")
        self.low, self.high = low, high

    def encode(self, x: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        x = self._accept(x, "encode")
        u = (x - self.low) * (2 / (self.high - self.low)) - 1
        return u, self._constant(self._size * math.log(2 / (self.high - self.low)), u)

    def decode(self, u: Tensor) -> tuple[Tensor, Tensor]:
        u = self._accept(u, "decode")
        x = (u + 1) * ((self.high - self.low) / 2) + self.low
        return x, self._constant(self._size * math.log((self.high - self.low) / 2), x)


@register("data.Logit")
class Logit(DataTransform):
    r"""Opens the unit interval to the whole line, after shrinking it a little away from its ends.

    .. math:: u = \operatorname{logit}(p), \quad p = \alpha + (1 - 2 \alpha) x, \qquad
        \log |\det| = \sum_i \log(1 - 2 \alpha) - \log p_i - \log(1 - p_i)

    The map is defined for x from ``-alpha / (1 - 2 alpha)`` to ``1 + alpha / (1 - 2 alpha)``, a little more than
    [0, 1], so that everything ``decode`` gives can be encoded. With ``alpha = 0`` the ends 0 and 1 themselves are out.

    Cost: ``encode`` reads one flag back from the device.

    Raises:
        ValueError: if ``alpha`` is not in [0, 1/2); in ``encode``, if a value lies outside the domain.

    Source: Dinh et al., Density estimation using Real NVP, 2016, arXiv:1605.08803, section 4.1 (alpha = 0.05);
    Papamakarios et al., Masked Autoregressive Flow for Density Estimation, 2017, arXiv:1705.07057, section 4.3
    (alpha = 1e-6 for MNIST, 0.05 for CIFAR-10).
    """

    def __init__(self, event_shape: int | Sequence[int], alpha: float = 0.05):
        super().__init__(event_shape)
        if not 0 <= alpha < 0.5:
            raise ValueError(f"Logit(alpha={alpha}): alpha shrinks [0, 1] towards 1/2 and lies in [0, 1/2); pass 0.05.")
        self.alpha = alpha

    def encode(self, x: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        x = self._accept(x, "encode")
        p, q = self.alpha + (1 - 2 * self.alpha) * x, self.alpha + (1 - 2 * self.alpha) * (1 - x)
        # Samples decoded from far out in the tails return as an end of the interval give or take rounding; they are
        # taken as the last number inside. With alpha = 0 an end is in the data itself, where no finite u answers.
        slack = 4 * torch.finfo(x.dtype).eps if self.alpha > 0 else 0.0
        inside = (p > -slack) & (q > -slack) if self.alpha > 0 else (p > 0) & (q > 0)
        if not bool(inside.all()):
            raise ValueError(
                f"Logit(alpha={self.alpha}).encode: {int((~inside).sum())} of {inside.numel()} values are NaN or "
                f"outside [0, 1]{'' if self.alpha > 0 else ' or at its ends'} (from {x.min().item():.4g} to "
                f"{x.max().item():.4g}); scale the data to the unit interval first, for instance with Dequantise"
                f"{'.' if self.alpha > 0 else ', and pass alpha > 0.'}"
            )
        tiny = torch.finfo(x.dtype).tiny
        log_p, log_q = p.clamp(min=tiny).log(), q.clamp(min=tiny).log()
        return log_p - log_q, self._sum(math.log1p(-2 * self.alpha) - log_p - log_q)

    def decode(self, u: Tensor) -> tuple[Tensor, Tensor]:
        u = self._accept(u, "decode")
        # Kept inside the open interval where alpha = 0, so that what is decoded can be encoded.
        bounds = torch.finfo(u.dtype)
        p = torch.sigmoid(u).clamp(bounds.tiny, 1 - bounds.eps)
        x = (p - self.alpha) / (1 - 2 * self.alpha)
        return x, self._sum(logsigmoid(u) + logsigmoid(-u) - math.log1p(-2 * self.alpha))


@register("data.Dequantise")
class Dequantise(DataTransform):
    r"""Spreads integer levels over the unit interval with uniform noise; ``decode`` rounds back down.

    .. math:: u = \frac{x + \epsilon}{L}, \quad \epsilon \sim \mathcal U[0, 1), \qquad
        \log P(x) \ge \mathbb E_\epsilon [\log p(u)] - D \log L

    so the density of a flow behind it, with this ``ladj``, bounds the log-probability of the integers from below.
    The noise is drawn on the finest grid on which ``x + noise`` is exact, so that ``decode(encode(x))`` is x, always.

    Shapes: ``x`` holds whole numbers from 0 to ``levels - 1`` in any dtype; ``u`` is float32, or float64 where ``x``
    or torch's default dtype (for integers) is. ``decode`` returns whole numbers as floats; it has no gradient.

    Cost: ``encode`` reads one flag back from the device.

    Raises:
        ValueError: if ``levels`` is below 2 or above 65,536; in ``encode``, if a value is no whole number in range.

    Source: Theis et al., A note on the evaluation of generative models, 2015, arXiv:1511.01844, section 3.1.

    Example:
        >>> x = torch.tensor([[0, 7], [255, 128]], dtype=torch.uint8)
        >>> dequantise = Dequantise(2, levels=256)
        >>> u, ladj = dequantise.encode(x, generator=torch.Generator().manual_seed(0))
        >>> dequantise.decode(u)[0]
        tensor([[  0.,   7.],
                [255., 128.]])
    """

    likelihood = "bound"
    has_rsample = False

    def __init__(self, event_shape: int | Sequence[int], levels: int = 256):
        super().__init__(event_shape)
        if not 2 <= levels <= 1 << 16:
            raise ValueError(
                f"Dequantise(levels={levels}): the levels are counted from 2 to 65,536; 8-bit images have 256."
            )
        self.levels = levels

    def encode(self, x: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        x = self._accept(x, "encode")
        valid = (x >= 0) & (x < self.levels) & (x == x.floor())
        if not bool(valid.all()):
            raise ValueError(
                f"Dequantise(levels={self.levels}).encode: {int((~valid).sum())} of {valid.numel()} values (from "
                f"{x.min().item():.4g} to {x.max().item():.4g}) are not whole numbers from 0 to {self.levels - 1}; "
                f"pass the data as measured, before any scaling."
            )
        # One bit short of what the mantissa leaves beside the largest level: the division may round, never carry.
        mantissa = -int(math.log2(torch.finfo(x.dtype).eps))
        grid = 1 << (mantissa - math.ceil(math.log2(self.levels)) - 1)
        draws = torch.randint(grid, x.shape, generator=generator, device=x.device)
        u = (x + (draws.to(x.dtype) + 0.5) / grid) / self.levels
        return u, self._constant(-self._size * math.log(self.levels), u)

    def decode(self, u: Tensor) -> tuple[Tensor, Tensor]:
        u = self._accept(u, "decode")
        x = torch.floor(u.detach() * self.levels).clamp(0, self.levels - 1)
        return x, self._constant(self._size * math.log(self.levels), x)


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Says whether a shape broadcasts to exactly the target."""
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(target)))


def _float(dtype: torch.dtype) -> torch.dtype:
    """Gives the dtype in which integers and half precision are computed."""
    return torch.float32 if dtype.is_floating_point else torch.get_default_dtype()
