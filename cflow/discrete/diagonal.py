"""Shift and scale, entry by entry, fixed or learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cflow.data import Standardise
from cflow.discrete.bijection import Bijection
from cflow.registry import register
from cflow.shapes import as_shape

__all__ = ["Diagonal"]


@register("discrete.Diagonal")
class Diagonal(Bijection):
    r"""Shifts and scales every entry by fixed numbers and, if asked to, by learned ones after them.

    .. math:: z = \frac{x - \text{loc}}{\text{scale}} \, e^{s} + b, \qquad
        \log|\det| = \sum_i s_i - \log \text{scale}_i

    The fixed numbers bring data of any size to the scale on which s and b, which start at zero, are learned.

    Args:
        event_shape: the shape of an event, of any rank.
        loc, scale: numbers, or tensors that broadcast to the event; kept as buffers.
        learned: whether there are s and b, of the shape to which ``loc`` and ``scale`` broadcast.

    Shapes: ``x [B, *event_shape]``. Cost: two operations.

    Raises:
        ValueError: if ``loc`` or ``scale`` does not broadcast to the event, is not finite, or a scale not positive.

    Example:
        >>> data = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
        >>> Diagonal.fit(data).encode(data)
        (tensor([[-1., -1.],
                [ 1.,  1.]]), tensor([-2.3026, -2.3026]))
    """

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
                    f"Diagonal({name} of shape {list(value.shape)}, event_shape={tuple(shape)}): the former does not "
                    "broadcast to the latter; pass one number per entry, or a shape with ones."
                )
            if not value.is_meta and not bool((value.isfinite() & ((value > 0) | (name == "loc"))).all()):
                raise ValueError(
                    f"Diagonal({name}): values must be finite{' and positive' if name == 'scale' else ''}; "
                    "Diagonal.fit finds them from data."
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
        learned: bool = False,
    ) -> Diagonal:
        """Standardises data ``[N, *event]``: mean zero, variance one, measured in float64.

        Args:
            data: the training data.
            pooled: event dimensions, as negative numbers, that share one mean and scale: ``(-2, -1)`` for channels.
            minimum_scale: the scale of entries that vary less than it; ``None`` refuses constant ones.
            learned: as for the constructor.

        Raises:
            ValueError: as :meth:`cflow.data.Standardise.fit`, which measures.
        """
        found = Standardise.fit(data, pooled=pooled, minimum_scale=minimum_scale)
        return cls(found.event_shape, found.loc, found.scale, learned=learned)

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        x, scale = x - self.loc.to(x.dtype), self.scale.to(x.dtype)
        if not self.learned:
            return x / scale, self._ladj(-scale.log(), x)
        s = self.log_scale.to(x.dtype)
        return torch.addcmul(self.shift.to(x.dtype), x, s.exp() / scale), self._ladj(s - scale.log(), x)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        loc, scale = self.loc.to(z.dtype), self.scale.to(z.dtype)
        if not self.learned:
            return torch.addcmul(loc, z, scale), self._ladj(scale.log(), z)
        s = self.log_scale.to(z.dtype)
        gain = (-s).exp() * scale
        return torch.addcmul(loc - self.shift.to(z.dtype) * gain, z, gain), self._ladj(scale.log() - s, z)

    def _ladj(self, logs: Tensor, value: Tensor) -> Tensor:
        return logs.expand(self.event_shape).sum().expand(len(value))

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}" + (", learned=True" if self.learned else "")


def _floating(value: Tensor | float) -> Tensor:
    value = torch.as_tensor(value).detach().clone()
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())
