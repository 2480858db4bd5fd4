"""A flow as a ``torch.distributions.Distribution``."""

from __future__ import annotations

from typing import ClassVar

from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from cflow.shapes import Value, broadcast

__all__ = ["FlowDistribution"]


class FlowDistribution(Distribution):
    """Wraps a flow, given a context, as a ``torch.distributions.Distribution``. ``flow(context)`` returns one.

    ``support`` is the region in which the density is not zero, as far as the flow's maps bound it (the logarithm of
    positive data, a logit): ``flow().support.check(x)``. A bounded base may reduce the region further. Outside of it
    ``log_prob`` is -inf.

    Args:
        flow: the flow.
        context: the context ``[*batch, *context_shape]``; None for an unconditional flow.
        batch_shape: the batch shape. Default: the batch of the context.
        validate_args: whether ``log_prob`` checks its values, as in ``torch.distributions``.

    Shapes: ``batch_shape`` is the batch of the context (empty for an unconditional flow). ``event_shape`` is the
    flow's.

    Example:
        >>> import torch, cflow
        >>> from cflow import bases, fields
        >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2))
        >>> flow().expand((5,)).sample((3,)).shape
        torch.Size([3, 5, 2])
    """

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, flow, context: Value | None = None, batch_shape: Size | None = None, validate_args=None):
        self.flow, self.context = flow, context
        own = flow._context(context, "forward") if batch_shape is None else Size(batch_shape)
        super().__init__(own, flow.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        """Whether gradients flow through samples."""
        return self.flow.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        """The region in which the density is not zero, as far as the flow's maps bound it."""
        return self.flow.support

    def expand(self, batch_shape, _instance=None) -> FlowDistribution:
        """Returns the distribution expanded to ``batch_shape``. ``_instance`` is torch's argument and not used."""
        context = self.context
        if isinstance(context, dict):
            context = {
                name: part.expand(*batch_shape, *self.flow.context_shape[name]) for name, part in context.items()
            }
        elif context is not None:
            context = context.expand(*batch_shape, *self.flow.context_shape)
        return type(self)(self.flow, context, Size(batch_shape), validate_args=self._validate_args)

    def _shape(self, sample_shape) -> Size:
        """Adds the batch of an expanded unconditional flow to the sample shape, as such a flow has no batch."""
        return Size((*sample_shape, *self.batch_shape)) if self.context is None else Size(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Computes the log-densities of ``value [..., *event_shape]``, in nats."""
        if self._validate_args and value.numel():  # torch cannot check whether an empty tensor is in the support
            self._validate_sample(value)
        batch = broadcast("log_prob", value.shape[: value.dim() - len(self.event_shape)], self.batch_shape)
        return self.flow.log_prob(value.expand(*batch, *self.event_shape), self.context)

    def sample(self, sample_shape=Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draws samples ``[*sample_shape, *batch_shape, *event_shape]`` without a graph."""
        return self.flow.sample(self._shape(sample_shape), self.context)

    def rsample(self, sample_shape=Size()) -> Tensor:  # noqa: B008
        """Draws samples ``[*sample_shape, *batch_shape, *event_shape]`` with gradients."""
        return self.flow.rsample(self._shape(sample_shape), self.context)

    def rsample_and_log_prob(self, sample_shape=Size()) -> tuple[Tensor, Tensor]:  # noqa: B008
        """Draws as :meth:`rsample` and returns the log-densities ``[*sample_shape, *batch_shape]`` as well."""
        return self.flow.rsample_and_log_prob(self._shape(sample_shape), self.context)

    def sample_and_log_prob(self, sample_shape=Size()) -> tuple[Tensor, Tensor]:  # noqa: B008
        """Draws as :meth:`sample` and returns the log-densities ``[*sample_shape, *batch_shape]`` as well."""
        return self.flow.sample_and_log_prob(self._shape(sample_shape), self.context)

    def __repr__(self) -> str:
        return (
            f"FlowDistribution({type(self.flow).__qualname__}, batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)})"
        )
