"""A flow that is given its context as measured."""

from __future__ import annotations

from typing import Any

from torch import Size, Tensor, nn

from cflow.bijections.map import Likelihood, Map, weakest
from cflow.invertible_flow import BaseInvertibleFlow
from cflow.registry import register
from cflow.shapes import shown

__all__ = ["StandardisedContext"]


@register("standardised_context.StandardisedContext")
class StandardisedContext(BaseInvertibleFlow):
    r"""Standardises the context of a flow before the flow reads it.

    .. math:: p(x \mid c) = p_\mathrm{inner}\bigl(x \mid (c - \text{loc}) / \text{scale}\bigr)

    A context is no argument of the density, so there is no log-determinant. Everything else is the inner flow's:
    options, likelihood, transforms already on it; transforms of the data go on either.

    Args:
        flow: the conditional flow inside.
        context_transform: a transform of one context, such as ``bijections.Standardise.fit(contexts)``. It warns where
            a few of them decide the scale; ``Compose(Standardise.fit(contexts, robust=True), Arcsinh(width))`` of
            :mod:`cflow.bijections` leaves the others theirs and draws the few in.
        transform: data transforms; see :meth:`with_transform`.

    Shapes: as the inner flow's.

    Raises:
        ValueError: if the flow is unconditional, or the transform is of another shape than its context.

    Example:
        >>> import torch
        >>> from cflow import bijections, discrete
        >>> kelvin = bijections.Standardise(1, loc=290.0, scale=8.0)
        >>> flow = StandardisedContext(discrete.maf(2, context=1), kelvin)
        >>> flow.log_prob(torch.zeros(2), torch.tensor([290.0])).shape
        torch.Size([])
    """

    def __init__(self, flow: BaseInvertibleFlow, context_transform: Map, transform=()):
        if flow.context_shape is None or tuple(flow.context_shape) != tuple(context_transform.event_shape):
            raise ValueError(
                f"StandardisedContext(flow with context_shape={shown(flow.context_shape)}, context_transform of shape "
                f"{tuple(context_transform.event_shape)}): the transform is of one context of the flow; give both the "
                f"same shape."
            )
        if flow.classes:
            raise ValueError(
                f"StandardisedContext(flow with {flow.classes} classes): a class label is an index and has no scale; "
                f"use the flow itself."
            )
        super().__init__(flow.event_shape, flow.context_shape, transform)
        self.flow, self.context_transform = flow, context_transform
        self.options, self.trained_by = flow.options, flow.trained_by

    def record(self, objective: Any) -> None:
        """Notes the training for this flow and for the one inside, whose weights it changes."""
        super().record(objective)
        self.flow.record(objective)

    def _maps(self) -> tuple[Map, ...]:
        return self.transform, *self.flow._maps()

    def _null_context(self, context: Tensor) -> Tensor:
        raise ValueError(
            'StandardisedContext.null_context: a context is standardised before the flow inside reads it, and "no '
            'condition" has no units; ask the flow inside (.flow).'
        )

    @property
    def base(self) -> nn.Module:
        """The inner flow's base."""
        return self.flow.base

    @property
    def solver(self):
        """The inner flow's solver, where it has one."""
        return self.flow.solver

    @property
    def latent_shape(self) -> Size:
        return self.flow.latent_shape

    @property
    def likelihood(self) -> Likelihood:
        return weakest(self.flow.likelihood, self.transform.likelihood)

    @property
    def has_rsample(self) -> bool:
        return super().has_rsample and self.flow.has_rsample

    def _inner(self, context: Tensor) -> Tensor:
        return self.context_transform.encode(context)[0]

    def _log_prob(self, x: Tensor, context: Tensor, generator, **options) -> Tensor:
        return self.flow.log_prob(x, self._inner(context), generator=generator, **options)

    def _sample(self, count: int, context: Tensor, generator, **options) -> Tensor:
        draw = self.flow.rsample if self.flow.has_rsample else self.flow.sample
        return draw((), self._inner(context), generator=generator, **options)

    def _encode(self, x: Tensor, context: Tensor, generator, **options) -> tuple[Tensor, Tensor]:
        return self.flow.encode(x, self._inner(context), generator=generator, **options)

    def _decode(self, z: Tensor, context: Tensor, generator, *, ladj: bool = True, **options):
        context = self._inner(context)
        u, inner = self.flow._decode(z, context, generator, ladj=ladj, **options)
        x, outer = self.flow.postprocess(u, context, generator=generator)
        return x, inner + outer if ladj else None
