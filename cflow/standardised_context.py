"""A flow that standardises its context."""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor, nn

from cflow.bijections.map import Likelihood, Map, weakest
from cflow.invertible_flow import BaseInvertibleFlow
from cflow.registry import register
from cflow.shapes import flatten, shown, unflatten

__all__ = ["StandardisedContext"]


@register("standardised_context.StandardisedContext")
class StandardisedContext(BaseInvertibleFlow):
    r"""Standardises the context of a flow before the flow reads it.

    .. math:: p(x \mid c) = p_\mathrm{inner}\bigl(x \mid (c - \text{loc}) / \text{scale}\bigr)

    The density is one of x, not of c, so there is no log-determinant. Options, likelihood and existing transforms are
    those of the inner flow. Transforms of the data may be added to either flow.
    Flow matching trains the inner flow, on contexts that are standardised beforehand.

    Args:
        flow: the conditional flow inside.
        context_transform: a transform of one context, such as ``bijections.Standardise.fit(contexts)``, which warns if
            a few outliers determine the scale. For outliers use ``Compose(Standardise.fit(contexts, robust=True),
            Arcsinh(width))`` of :mod:`cflow.bijections`, which compresses them and hardly changes the other contexts.
        transform: transforms of the data; see :meth:`with_transform`.

    Shapes: those of the inner flow.

    Raises:
        ValueError: if the flow is unconditional, or the transform and the context have different shapes.

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
                f"{tuple(context_transform.event_shape)}): the shapes differ; make them equal."
            )
        if flow.classes:
            raise ValueError(
                f"StandardisedContext(flow with {flow.classes} classes): a class label has no scale; use the flow "
                f"itself."
            )
        super().__init__(flow.event_shape, flow.context_shape, transform)
        self.flow, self.context_transform = flow, context_transform
        self.options, self.trained_by = flow.options, flow.trained_by

    def record(self, objective: Any) -> None:
        """Records the training by ``objective`` for this flow and for the inner flow, which has the weights."""
        super().record(objective)
        self.flow.record(objective)

    def _maps(self) -> tuple[Map, ...]:
        return self.transform, *self.flow._maps()

    def _null_context(self, context: Tensor) -> Tensor:
        raise ValueError(
            'StandardisedContext.null_context: "no condition" cannot be standardised; call .flow.null_context.'
        )

    @property
    def base(self) -> nn.Module:
        """The inner flow's base."""
        return self.flow.base

    @property
    def manifold(self) -> Any:
        """The inner flow's manifold, if it is on one."""
        return self.flow.manifold

    @property
    def solver(self):
        """The inner flow's solver, if it has one."""
        return self.flow.solver

    @property
    def sampler(self):
        """The inner flow's sampler, if it has one."""
        return self.flow.sampler

    @property
    def source(self) -> nn.Module:
        """The inner flow's source of tokens, if it has one."""
        return self.flow.source

    @property
    def alphabet(self):
        """The inner flow's alphabet, if it has one."""
        return self.flow.alphabet

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

    @torch.no_grad()
    def infill(self, x: Tensor, fixed: Tensor, shape=(), context: Tensor | None = None, *, generator=None, **options):
        """Draws what is not fixed of ``x``, as the inner flow does: ``[*shape, *batch, *event]``.

        Args:
            x: data ``[*batch, *event]``; values that are not fixed are not read.
            fixed: what is given, bool, broadcastable to ``x``.
            shape: as many completions of each row.
            context: the conditions ``[*batch, *context_shape]``, not standardised.
            generator: source of random numbers.
            **options: those of the inner flow.
        """
        if len(self.transform):
            raise ValueError("flow.infill: this flow has transforms of its data; infill with the flow inside.")
        context = self.cast(self._as_context(context))
        batch = self._context(context, "infill")
        inner = unflatten(self._inner(flatten(context, self.context_shape, batch)), batch)
        return self.flow.infill(x, fixed, shape, inner, generator=generator, **options)

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
