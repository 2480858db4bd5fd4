"""Shift and scale of every entry: measured on data or passed, fixed or learned."""

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
    r"""Shifts and scales every entry by fixed numbers, usually to mean zero and variance one, then by learned ones.

    .. math:: z = \frac{x - \text{loc}}{\text{scale}} \, e^{s} + b, \qquad
        \log|\det| = \sum_i s_i - \log \text{scale}_i

    The fixed numbers scale data of any size to order one, where s and b are learned, starting at zero. :meth:`fit`
    measures them before training; :class:`ActNorm` measures them on the first batch.
    ``discrete.Elementwise(discrete.Affine(), features)`` has only s and b, which may depend on a context.

    Args:
        event_shape: shape of an event, of any rank.
        loc, scale: numbers, or tensors that broadcast to the event; kept as buffers (numbers in the default dtype).
        learned: whether the map has s and b, in the shape to which ``loc`` and ``scale`` broadcast. Without them they
            are zero.

    Shapes: ``x [B, *event_shape]``, also whole numbers of any dtype. It computes in the dtype of ``loc`` and ``scale``
    if that is wider. Cost: two operations.

    Raises:
        ValueError: if ``loc`` or ``scale`` does not broadcast to the event or is not finite, or a scale is not
            positive.

    Example:
        >>> data = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
        >>> Standardise.fit(data).encode(data)
        (tensor([[-1., -1.],
                [ 1.,  1.]]), tensor([-2.3026, -2.3026]))
    """

    takes_integers = True
    # Measured on data or passed, so a moving average of the weights skips them.
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
                    f"Standardise({name} of shape {list(value.shape)}, event_shape={tuple(shape)}): it does not "
                    "broadcast to the event; pass one number per entry."
                )
            if not value.is_meta and not bool((value.isfinite() & ((value > 0) | (name == "loc"))).all()):
                raise ValueError(
                    f"Standardise({name}): values must be finite{' and positive' if name == 'scale' else ''}, the "
                    f"smallest is {value.min().item():.4g}; see Standardise.fit."
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
        """Returns the map that scales data to mean zero and variance one, both measured in float64.

        It warns (``UserWarning``) where a few rows decide the scale: where the standard deviation is more than five
        times that of the middle of the data because of less than a hundredth of the rows.

        Args:
            data: training data ``[N, *event]``.
            pooled: event dimensions, as negative numbers, that share one mean and scale: ``()`` measures every entry
                separately, ``(-2, -1)`` every channel of images ``[N, C, H, W]``, ``(-3, -2, -1)`` all entries
                together.
            minimum_scale: scale of entries that vary less than this. Default: constant entries raise an error.
            dtype: dtype of the buffers. Default: that of the data, or torch's default for whole numbers.
            learned: as for the constructor.
            robust: uses the median, and half the distance between the 16 % and 84 % quantiles, in place of mean and
                standard deviation; for a normal distribution they are equal. A few extreme rows do not change them,
                and may then be far out: add :class:`Arcsinh` after this map to move them in. Cost: one sort of the
                data.

        Raises:
            TypeError: if ``data`` is not a tensor.
            ValueError: if there are fewer than two rows, a value is not finite, an entry is constant while
                ``minimum_scale`` is ``None``, or ``pooled`` has a number that is not an event dimension.
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
        """Checks a call and returns ``value``, in the dtype of ``loc`` and ``scale`` if that is wider, and ``context``.

        The arguments, ``method`` included, are those of :meth:`Map.accept`.
        """
        value, context = super().accept(value, context, method)
        # Data with large offsets may be measured in float64; a narrower dtype would lose their digits.
        kind = torch.promote_types(self.loc.dtype, self.scale.dtype)
        return value.to(torch.promote_types(value.dtype, kind)), context

    def _ladj(self, logs: Tensor, value: Tensor) -> Tensor:
        return logs.expand(self.event_shape).sum().expand(value.shape[0])

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}" + (", learned=True" if self.learned else "")


def _measure(data: Tensor, pooled: tuple[int, ...], minimum_scale: float | None, robust: bool) -> tuple[Tensor, Tensor]:
    """Measures mean and standard deviation, or the robust pair, in float64; raises for data without them."""
    if data.ndim < 1 or len(data) < 2:
        raise ValueError(
            f"Standardise.fit(data of shape {list(data.shape)}): pass [N, *event] with at least two items."
        )
    rank = data.ndim - 1
    if any(not -rank <= dim <= -1 for dim in pooled):
        raise ValueError(
            f"Standardise.fit(pooled={pooled}): event dimensions are {list(range(-rank, 0))} for data of shape "
            f"{list(data.shape)}; pass some of these."
        )
    chunks = data.split(4096)  # float64 copies of a whole image set would be large
    dims, count = (0, *pooled), len(data) * math.prod(data.shape[dim] for dim in pooled)
    mean = sum(chunk.to(torch.float64).sum(dims, keepdim=True) for chunk in chunks) / count
    if not mean.isfinite().all():
        raise ValueError(
            f"Standardise.fit: {int((~data.isfinite()).sum())} values are not finite; remove or fill them first."
        )
    variance = sum((chunk - mean).square().sum(dims, keepdim=True) for chunk in chunks) / count
    fourth = sum(((chunk - mean).square() / variance).square().sum(dims, keepdim=True) for chunk in chunks) / count
    loc, scale = mean[0], variance[0].sqrt()
    if robust:
        loc, scale = middle_of(data, pooled, scale)
    elif (few := few_decide(fourth[0], count)).any():
        _warn_of_few(data, pooled, scale, few, float(count / fourth.max()))
    # Rounding gives a constant entry a small variance, relative to its size.
    constant = scale <= loc.abs() * 1e-12
    if minimum_scale is not None:
        scale = torch.where(constant | (scale < minimum_scale), torch.as_tensor(minimum_scale).to(scale), scale)
    elif constant.any():
        some = [tuple(index) for index in constant.nonzero()[:5].tolist()]
        raise ValueError(
            f"Standardise.fit: {int(constant.sum())} of {constant.numel()} features are constant (at "
            f"{', '.join(str(index) for index in some)}{', ...' if constant.sum() > 5 else ''}); drop them, or pass "
            f"pooled=... or minimum_scale=1.0."
        )
    return loc, scale


FEW = 1 / 100  # the share of the data below which they are a few


def few_decide(fourth: Tensor, count: int) -> Tensor:
    """Returns where less than a share ``FEW`` of the data, or fewer than five rows, make up the variance.

    The test is the mean fourth power of standardised data: it is N / n where n of N numbers make up all of the
    variance, and 3 for a normal distribution.
    """
    return (fourth > min(1 / FEW, count / 5)) & (count >= 20)


def middle_of(data: Tensor, pooled: tuple[int, ...], scale: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the median and half the distance between two quantiles of each entry, in the shape of ``scale``.

    Entries of which two thirds are equal use a wider pair of quantiles, and as a last resort the standard deviation.
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
            f"Standardise.fit(data of shape {list(data.shape)}): about {max(1, round(rows))} rows decide the scale of "
            f"{int(wrong.sum())} features (at {', '.join(map(str, where))}), up to {worst:.3g} times that of the "
            f"others; check these rows, or pass robust=True.",
            stacklevel=4,
        )


def _floating(value: Tensor | float) -> Tensor:
    value = torch.as_tensor(value).detach().clone()
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())
