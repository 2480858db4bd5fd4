"""A flow as a ``torch.distributions.Distribution``."""

from __future__ import annotations

from typing import ClassVar

from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from cflow.shapes import Value, broadcast
from cflow.support import support_of

__all__ = ["FlowDistribution"]


class FlowDistribution(Distribution):
    """The distribution of a flow's data given a context, as ``torch.distributions`` knows it.

    ``support`` says where there is a density, as far as the flow's maps bound it (the logarithm of positive data, a
    logit): ``flow().support.check(x)``. A bounded base bounds it further; ``log_prob`` is -inf there.

    Shapes: ``batch_shape`` is the context's batch (empty for an unconditional flow), ``event_shape`` the flow's.

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
        return self.flow.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        return support_of(self.flow._maps(), len(self.event_shape))

    def expand(self, batch_shape, _instance=None) -> FlowDistribution:
        context = self.context
        if isinstance(context, dict):
            context = {
                name: part.expand(*batch_shape, *self.flow.context_shape[name]) for name, part in context.items()
            }
        elif context is not None:
            context = context.expand(*batch_shape, *self.flow.context_shape)
        return type(self)(self.flow, context, Size(batch_shape), validate_args=self._validate_args)

    def _shape(self, sample_shape) -> Size:
        """An unconditional flow carries no batch of its own: the expanded batch joins the sample shape."""
        return Size((*sample_shape, *self.batch_shape)) if self.context is None else Size(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args and value.numel():  # torch cannot say of nothing whether it is in the support
            self._validate_sample(value)
        batch = broadcast("log_prob", value.shape[: value.dim() - len(self.event_shape)], self.batch_shape)
        return self.flow.log_prob(value.expand(*batch, *self.event_shape), self.context)

    def sample(self, sample_shape=Size()) -> Tensor:  # noqa: B008 - torch's own signature
        return self.flow.sample(self._shape(sample_shape), self.context)

    def rsample(self, sample_shape=Size()) -> Tensor:  # noqa: B008
        return self.flow.rsample(self._shape(sample_shape), self.context)

    def rsample_and_log_prob(self, sample_shape=Size()) -> tuple[Tensor, Tensor]:  # noqa: B008
        return self.flow.rsample_and_log_prob(self._shape(sample_shape), self.context)

    def sample_and_log_prob(self, sample_shape=Size()) -> tuple[Tensor, Tensor]:  # noqa: B008
        return self.flow.sample_and_log_prob(self._shape(sample_shape), self.context)

    def __repr__(self) -> str:
        return (
            f"FlowDistribution({type(self.flow).__qualname__}, batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)})"
        )
