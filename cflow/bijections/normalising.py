"""Layers that scale each feature to mean zero and variance one: once, from the first batch, or from every batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from cflow.bijections.map import Bijection
from cflow.bijections.standardise import Standardise
from cflow.registry import register
from cflow.shapes import as_shape

__all__ = ["ActNorm", "BatchNorm"]


@register("bijections.ActNorm")
class ActNorm(Standardise):
    r"""Shifts and scales every feature, or every channel of images; the first batch sets the initial values.

    .. math:: z = \frac{x - \mu}{\sigma} \, e^{s} + b, \qquad \log|\det| = \sum_i s_i - \log \sigma_i

    It is a :class:`Standardise` whose mean and deviation are measured on the first batch passed to ``encode`` in
    training mode, and kept as buffers; s and b are learned, starting at zero. So the measured numbers are not part of
    the optimizer, of a moving average of the weights or of sharded parameters, and the learned ones are of order one.
    Inside an :class:`Inverse`, where data pass through ``decode``, it measures there.

    Before the measurement the layer is the identity. Evaluation mode never measures, nor does ``decode``. A batch with
    fewer than two values per feature has no deviation; the layer then measures the next one. A feature that is constant
    (or not finite) in the first batch keeps the scale one.

    With several processes, the first batches of all processes are measured together, and all must make that call.

    Args:
        event_shape: shape of an event; images ``(C, H, W)`` have one mean and deviation per channel, other events one
            per entry.

    Shapes: ``x [B, *event_shape]``. Cost: two operations; the first call reads one flag and measures. Once
    ``initialised``, the layer reads no values from the device and does not break a compiled graph.

    Attributes:
        initialised: whether a batch has been measured; a buffer, saved with the flow.

    Source: Kingma and Dhariwal, Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv:1807.03039,
    section 3.1.

    Example:
        >>> layer = ActNorm(2)
        >>> z, ladj = layer.encode(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))
        >>> z.detach(), bool(layer.initialised)
        (tensor([[-1., -1.],
                [ 1.,  1.]]), True)
    """

    measures = True

    def __init__(self, event_shape: int | Sequence[int]):
        shape = as_shape(event_shape)
        kept = (shape[0], 1, 1) if len(shape) == 3 else shape
        super().__init__(shape, torch.zeros(kept), torch.ones(kept), learned=True)
        self.register_buffer("initialised", torch.tensor(False))
        self._ready = False  # the value of the buffer, on the host

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        if self.training and not self._ready and not self.turned:
            self._measure(self.accept(x, context, "encode")[0].detach())
        return super().encode(x, context)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        if self.training and not self._ready and self.turned:
            self._measure(self.accept(z, context, "decode")[0].detach())
        return super().decode(z, context)

    def accept(self, value: Tensor, context: Tensor | None, method: str) -> tuple[Tensor, Tensor | None]:
        """Checks a call and returns ``value``, in its own dtype or float32, and ``context``, as :meth:`Map.accept`.

        ``method`` is ``"encode"`` or ``"decode"``. The measured numbers are not more precise than the batch, so its
        dtype is kept.
        """
        return Bijection.accept(self, value, context, method)

    @torch.no_grad()
    def _measure(self, x: Tensor) -> None:
        # The buffer may have been set outside: by another process, or by a copied state.
        if bool(self.initialised):
            self._ready = True
            return
        pooled = (0, 2, 3) if x.dim() == 4 else (0,)
        count = x.new_tensor(len(x) * self.event_shape.numel() / max(self.loc.numel(), 1))
        total, count = _over_processes(x.sum(pooled).view(self.loc.shape), count)
        if not bool(count >= 2):
            return
        mean = total / count
        (square,) = _over_processes((x - mean).square().sum(pooled).view(self.loc.shape))
        scale = (square / count).sqrt()
        # Rounding gives a constant feature a small deviation, relative to its size.
        varies = scale.isfinite() & (scale > 16 * torch.finfo(x.dtype).eps * mean.abs())
        scale, mean = torch.where(varies, scale, 1.0), torch.where(mean.isfinite(), mean, 0.0)
        # Inside an Inverse, x = loc + scale z has mean zero and variance one.
        self.scale.copy_(1 / scale if self.turned else scale)
        self.loc.copy_(-mean / scale if self.turned else mean)
        self.initialised.fill_(True)
        self._ready = True

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._ready = not self.initialised.is_meta and bool(self.initialised)

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}"


@register("bijections.BatchNorm")
class BatchNorm(Bijection):
    r"""Scales every feature to mean zero and variance one over the batch, then shifts and scales by learned numbers.

    .. math:: z = \frac{x - m}{\sqrt{v + \epsilon}} \, e^{s} + b, \qquad
        \log|\det| = \sum_i s_i - \tfrac{1}{2} \log(v_i + \epsilon)

    In training mode ``encode`` uses the mean m and variance v of the batch, and moves the running ones towards them; in
    evaluation mode it uses the running ones. ``decode`` always uses the running ones, so it undoes ``encode`` in
    evaluation mode only.

    In training mode **the density of a sample depends on the others of its batch**: the log-determinant is that of the
    map with fixed m and v, and the loss is not a likelihood. In evaluation mode the density is a likelihood. To
    evaluate with the statistics of the whole training set, as the paper does, set ``momentum`` to 1 and encode the set
    once in training mode.

    With several processes, each uses the statistics of its own part of the batch.

    Args:
        features: length of an event.
        momentum: how far the running statistics move towards those of a batch, in (0, 1].
        eps: added to every variance.

    Shapes: ``x [B, features]``; in training mode B is not 1. Cost: some six operations.

    Raises:
        ValueError: if an argument is out of range, or a batch in training mode has one sample, and so no variance.

    Source: Dinh et al., Density estimation using Real NVP, 2016, arXiv:1605.08803, section 3.7; Papamakarios et al.,
    Masked Autoregressive Flow for Density Estimation, 2017, arXiv:1705.07057.

    Example:
        >>> layer = BatchNorm(1, eps=0.0)
        >>> layer.encode(torch.tensor([[0.0], [4.0]]))[0].detach()
        tensor([[-1.],
                [ 1.]])
    """

    changes = True
    measures = True

    def __init__(self, features: int, momentum: float = 0.1, eps: float = 1e-5):
        if features < 1 or not 0 < momentum <= 1 or not eps >= 0:
            raise ValueError(
                f"BatchNorm(features={features}, momentum={momentum}, eps={eps}): out of range; pass features >= 1, "
                "momentum in (0, 1] and eps >= 0."
            )
        super().__init__(features)
        self.features, self.momentum, self.eps = features, momentum, eps
        self.log_scale, self.shift = nn.Parameter(torch.zeros(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, _ = self.accept(x, context, "encode")
        if self.training and len(x) == 1:
            raise ValueError(
                "BatchNorm.encode in training mode: one sample has no variance; pass two or more, or call .eval()."
            )
        mean, variance = self._statistics(x) if self.training and len(x) else self._running(x.dtype)
        s, log_deviation = self.log_scale.to(x.dtype), 0.5 * (variance + self.eps).log()
        gain = s - log_deviation
        return torch.addcmul(self.shift.to(x.dtype), x - mean, gain.exp()), gain.sum().expand(x.shape[0])

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        mean, variance = self._running(z.dtype)
        gain = 0.5 * (variance + self.eps).log() - self.log_scale.to(z.dtype)
        return torch.addcmul(mean, z - self.shift.to(z.dtype), gain.exp()), gain.sum().expand(z.shape[0])

    def _running(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.mean.to(dtype), self.variance.to(dtype)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, 0, correction=0)
        with torch.no_grad():
            self.mean.lerp_(mean.to(self.mean.dtype), self.momentum)
            self.variance.lerp_(variance.to(self.variance.dtype), self.momentum)
        return mean, variance

    def extra_repr(self) -> str:
        return f"features={self.features}, momentum={self.momentum}, eps={self.eps}"


def _over_processes(*values: Tensor) -> tuple[Tensor, ...]:
    """Sums each value over all processes."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        for value in values:
            distributed.all_reduce(value)
    return values
