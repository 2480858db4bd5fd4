"""Shift and scale, entry by entry, measured on data or given, fixed or learned."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cflow.bijections.map import Bijection, check_table
from cflow.registry import register
from cflow.shapes import as_shape

__all__ = ["Standardise"]


@register("bijections.Standardise")
class Standardise(Bijection):
    r"""Shifts and scales every entry by fixed numbers, usually to mean zero and variance one; with ``learned``, by
    learned ones after them.

    .. math:: z = \frac{x - \text{loc}}{\text{scale}} \, e^{s} + b, \qquad
        \log|\det| = \sum_i s_i - \log \text{scale}_i

    The fixed numbers bring data of any size to the scale on which s and b, which start at zero, are learned. They are
    measured by :meth:`fit` before training; :class:`ActNorm` measures them on the first batch, and
    ``discrete.Elementwise(discrete.Affine(), features)`` has s and b alone, which a context may choose.

    Args:
        event_shape: the shape of an event, of any rank.
        loc, scale: numbers, or tensors that broadcast to the event; kept as buffers (of the default dtype if given as
            numbers).
        learned: whether there are s and b, of the shape to which ``loc`` and ``scale`` broadcast.

    Shapes: ``x [B, *event_shape]``, whole numbers of any dtype included; computed in the dtype of ``loc`` and ``scale``
    where that is the finer one. Cost: two operations.

    Raises:
        ValueError: if ``loc`` or ``scale`` does not broadcast to the event, is not finite, or a scale not positive.

    Example:
        >>> data = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
        >>> Standardise.fit(data).encode(data)
        (tensor([[-1., -1.],
                [ 1.,  1.]]), tensor([-2.3026, -2.3026]))
    """

    takes_integers = True
    # Measured on data or given: nothing for a moving average to follow.
    fixed_buffers = True

    def __init__(
        self,
        event_shape: int | Sequence[int],
        loc: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
        *,
        learned: bool = False,
    ):
        shape = as_shape(event_shape)
        super().__init__(shape)
        self.learned = learned
        for name, value in (("loc", loc), ("scale", scale)):
            value = _floating(value)
            small = [*(1,) * (len(shape) - value.dim()), *value.shape]
            if len(small) != len(shape) or any(a not in (1, b) for a, b in zip(small, shape)):
                raise ValueError(
                    f"Standardise({name} of shape {list(value.shape)}, event_shape={tuple(shape)}): the former does "
                    "not broadcast to the latter; pass one number per entry, or a shape with ones."
                )
            if not value.is_meta and not bool((value.isfinite() & ((value > 0) | (name == "loc"))).all()):
                raise ValueError(
                    f"Standardise({name}): values must be finite{' and positive' if name == 'scale' else ''}, got a "
                    f"smallest of {value.min().item():.4g}; Standardise.fit finds them from data."
                )
            self.register_buffer(name, value)
        if learned:
            shape = torch.broadcast_shapes(self.loc.shape, self.scale.shape)
            self.log_scale, self.shift = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))

    @classmethod
    def fit(
        cls,
        data: Tensor,
        *,
        pooled: Sequence[int] = (),
        minimum_scale: float | None = None,
        dtype: torch.dtype | None = None,
        learned: bool = False,
        robust: bool = False,
    ) -> Standardise:
        """Standardises data ``[N, *event]``: mean zero, variance one, measured in float64.

        A ``UserWarning`` says where a few rows decide the scale: where the standard deviation is more than
        five times that of the middle of the data, on account of less than a hundredth of the rows.

        Args:
            data: the training data.
            pooled: event dimensions, as negative numbers, that share one mean and scale: ``()`` measures every entry by
                itself, ``(-2, -1)`` every channel of images ``[N, C, H, W]``, ``(-3, -2, -1)`` all alike.
            minimum_scale: the scale of entries that vary less than it; ``None`` refuses constant ones.
            dtype: of the buffers; default: the data's, or torch's default for whole numbers.
            learned: as for the constructor.
            robust: by the median and half the distance between the quantiles of 16 and 84 %, which of a normal are mean
                and standard deviation. What a few rows hold changes neither, and they may come to lie far out:
                :class:`Arcsinh` behind it draws them in. Cost: one sort of the data.

        Raises:
            TypeError: for data that are not a tensor.
            ValueError: if there are fewer than two items, a value is not finite, an entry is constant (the message
                names some) while ``minimum_scale`` is ``None``, or ``pooled`` names no event dimension.
        """
        check_table("Standardise", data)
        loc, scale = _measure(data, tuple(pooled), minimum_scale, robust)
        dtype = dtype or (data.dtype if data.is_floating_point() else torch.get_default_dtype())
        return Standardise(tuple(data.shape[1:]), loc.to(dtype), scale.to(dtype), learned=learned)

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        x, scale = x - self.loc.to(x.dtype), self.scale.to(x.dtype)
        if not self.learned:
            return x / scale, self._ladj(-scale.log(), x)
        s = self.log_scale.to(x.dtype)
        return torch.addcmul(self.shift.to(x.dtype), x, s.exp() / scale), self._ladj(s - scale.log(), x)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        loc, scale = self.loc.to(z.dtype), self.scale.to(z.dtype)
        if not self.learned:
            return torch.addcmul(loc, z, scale), self._ladj(scale.log(), z)
        s = self.log_scale.to(z.dtype)
        gain = (-s).exp() * scale
        return torch.addcmul(loc - self.shift.to(z.dtype) * gain, z, gain), self._ladj(scale.log() - s, z)

    def accept(self, value: Tensor, context: Tensor | None, method: str) -> tuple[Tensor, Tensor | None]:
        value, context = super().accept(value, context, method)
        # Data with large offsets are measured in float64, and lose their digits in anything less.
        kind = torch.promote_types(self.loc.dtype, self.scale.dtype)
        return value.to(torch.promote_types(value.dtype, kind)), context

    def _ladj(self, logs: Tensor, value: Tensor) -> Tensor:
        return logs.expand(self.event_shape).sum().expand(value.shape[0])

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}" + (", learned=True" if self.learned else "")


def _measure(data: Tensor, pooled: tuple[int, ...], minimum_scale: float | None, robust: bool) -> tuple[Tensor, Tensor]:
    """Measures mean and standard deviation in float64, or what is robust in their place; refuses data without."""
    if data.ndim < 1 or len(data) < 2:
        raise ValueError(
            f"Standardise.fit(data of shape {list(data.shape)}): a standard deviation takes at least two items; "
            f"pass [N, *event]."
        )
    rank = data.ndim - 1
    if any(not -rank <= dim <= -1 for dim in pooled):
        raise ValueError(
            f"Standardise.fit(pooled={pooled}): the event of data of shape {list(data.shape)} has dimensions "
            f"{list(range(-rank, 0))}; pass some of these."
        )
    chunks = data.split(4096)  # float64 copies of a whole image set would be large
    dims, count = (0, *pooled), len(data) * math.prod(data.shape[dim] for dim in pooled)
    mean = sum(chunk.to(torch.float64).sum(dims, keepdim=True) for chunk in chunks) / count
    if not mean.isfinite().all():
        raise ValueError(
            f"Standardise.fit: {int((~data.isfinite()).sum())} values of the data are not finite; remove or fill "
            f"them first."
        )
    variance = sum((chunk - mean).square().sum(dims, keepdim=True) for chunk in chunks) / count
    fourth = sum(((chunk - mean).square() / variance).square().sum(dims, keepdim=True) for chunk in chunks) / count
    loc, scale = mean[0], variance[0].sqrt()
    if robust:
        loc, scale = middle_of(data, pooled, scale)
    elif (few := few_decide(fourth[0], count)).any():
        _warn_of_few(data, pooled, scale, few, float(count / fourth.max()))
    # A constant entry may show a variance of rounding errors, relative to its size.
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
    return loc, scale


FEW = 1 / 100  # the share of the data below which they are a few


def few_decide(fourth: Tensor, count: int) -> Tensor:
    """Says where fewer than ``FEW`` of the data, or five, hold the variance.

    That shows in the mean fourth power of standardised data, which is N / n where n of N numbers hold all of it, and 3
    of a normal.
    """
    return (fourth > min(1 / FEW, count / 5)) & (count >= 20)


def middle_of(data: Tensor, pooled: tuple[int, ...], scale: Tensor) -> tuple[Tensor, Tensor]:
    """Measures the median and half the distance between two quantiles of an event's entries, as ``scale`` is shaped.

    Entries of which two thirds are equal have a wider pair of quantiles, and in the end the standard deviation.
    """
    kept = [dim for dim in range(1, data.ndim) if dim - data.ndim not in pooled]
    values = data.to(torch.float64).permute(*kept, 0, *(dim + data.ndim for dim in pooled)).flatten(len(kept))
    ordered = values.sort(-1).values

    def at(share: float) -> Tensor:
        place = share * (values.shape[-1] - 1)
        return torch.lerp(ordered[..., math.floor(place)], ordered[..., math.ceil(place)], place % 1)

    middle, width = at(0.5), torch.zeros_like(ordered[..., 0])
    for deviations in (1.0, 2.0, 3.0):
        share = 0.5 * math.erfc(deviations / math.sqrt(2))
        width = torch.where(width > 0, width, (at(1 - share) - at(share)) / (2 * deviations))
    return middle.view(scale.shape), torch.where(width.view(scale.shape) > 0, width.view(scale.shape), scale)


def _warn_of_few(data: Tensor, pooled: tuple[int, ...], scale: Tensor, few: Tensor, rows: float) -> None:
    width = middle_of(data, pooled, torch.zeros_like(scale))[1]
    wrong = few & (width > 0) & (scale > 5 * width)
    if wrong.any():
        where = [tuple(each) for each in wrong.nonzero()[:5].tolist()]
        worst = float((scale / width)[wrong].max())
        warnings.warn(
            f"Standardise.fit(data of shape {list(data.shape)}): some {max(1, round(rows))} of the data decide the "
            f"scale of {int(wrong.sum())} features (at {', '.join(map(str, where))}), up to {worst:.3g} times that of "
            f"the others; look at these rows, or pass robust=True (median and quantiles).",
            stacklevel=4,
        )


def _floating(value: Tensor | float) -> Tensor:
    value = torch.as_tensor(value).detach().clone()
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())
