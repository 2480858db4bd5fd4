"""The Flow protocol, and the base class that derives what follows from the required methods.

A flow carries a simple distribution to the data's. Callers may use any batch shape; a subclass only ever sees one batch
dimension: ``x [B, *event]``, ``context [B, *context_shape]``, log-densities ``[B]``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution

from cflow.bijections.compose import Compose
from cflow.bijections.map import Likelihood, Map
from cflow.calls import Calls
from cflow.distribution import FlowDistribution
from cflow.lost_rows import fill_outside, restore, set_aside, set_far_aside
from cflow.record import TrainingEntry
from cflow.shapes import (
    Shape,
    Value,
    as_shape,
    check_mask,
    expand_like,
    on_tensors,
    shown,
    unflatten,
)

__all__ = ["BaseFlow", "Flow"]


@runtime_checkable
class Flow(Protocol):
    """What every kind of flow offers: continuous, discrete-time, token and joint.

    Shapes: ``x [*batch, *event]`` (a dict of such for joint flows), ``context [*batch, *context_shape]``; the batch of
    a call is the broadcast of both. ``sample(shape, context)`` gives ``[*shape, *context_batch, *event]``.
    Log-densities are in nats, ``[*batch]``. ``likelihood`` says what ``log_prob`` means: ``"exact"`` up to the solver's
    tolerance, an unbiased ``"estimate"``, a lower ``"bound"``, or ``"none"``.
    """

    event_shape: Shape
    context_shape: Shape | None

    @property
    def likelihood(self) -> Likelihood: ...

    @property
    def has_rsample(self) -> bool: ...

    @property
    def trained_by(self) -> tuple[TrainingEntry, ...]: ...

    def record(self, objective: Any) -> None: ...

    def log_prob(self, x: Value, context: Value | None = None, *, generator=None) -> Tensor: ...

    def sample(self, shape=(), context: Value | None = None, *, generator=None) -> Value: ...

    def sample_and_log_prob(self, shape=(), context: Value | None = None, *, generator=None): ...

    def forward(self, context: Value | None = None) -> Distribution: ...


class BaseFlow(Calls):
    """Derives the protocol from two methods on one batch dimension.

    A subclass writes ``_sample(count, context, generator, **options) -> x [count, *event]`` and, unless its
    ``likelihood`` is ``"none"``, ``_log_prob(x, context, generator, **options) -> [B]``. ``options`` names the keywords
    that they take beside the protocol's: ``{"sample": ("solver",), "log_prob": ("solver", "divergence")}``. A method
    that draws takes those of ``sample``, one that computes a density those of ``log_prob``, one that does both all of
    them; any other keyword is refused by name.

    Args:
        model_shape: shape of what is modelled inside, or a dict of shapes: one event's, unless a transform changes it.
        context_shape: shape of what the flow is conditioned on, or a dict of shapes; ``None`` for an unconditional
            flow. In both, a part named ``mask`` is reserved: it marks which members of a set there are (true), its
            shape leads that of what has members, and only what it marks counts in the loss of ``FlowMatching``.
        transform: maps from the data to what is modelled (:mod:`cflow.bijections`), from the data inwards; kept as a
            ``Compose``.

    Raises:
        TypeError: for a transform that is not a ``bijections.Map``.
        ValueError: where shapes do not follow one another, or a transform reads another context than the flow.
    """

    kept: ClassVar[tuple[str, ...]] = ("trained_by",)
    """What is saved and copied with a flow beside its constructor's arguments."""

    trained_by: tuple[TrainingEntry, ...] = ()
    """What the flow was trained with, oldest first; see :meth:`record`."""

    def __init__(self, model_shape, context_shape=None, transform: Map | Sequence[Map] = ()):
        super().__init__()
        self.context_shape = as_shape(context_shape)
        self._carry(transform, as_shape(model_shape))
        check_mask(self.event_shape, self.context_shape, type(self).__qualname__)

    def _carry(self, transform: Map | Sequence[Map], model_shape: Shape) -> None:
        """Keeps the transforms as one chain, after a look at whether it leads to what is modelled."""
        name = type(self).__name__
        for each in [transform] if isinstance(transform, Map) else transform:
            if not isinstance(each, Map):
                raise TypeError(
                    f"{name}(transform={type(each).__qualname__}): a transform is a bijections.Map, with encode and "
                    "decode that return (value, contribution); see bijections.Standardise, Logit and Dequantise."
                )
        if not isinstance(transform, Map):
            transform = Compose(*transform, event_shape=None if len(transform) else model_shape)
        elif not isinstance(transform, Compose):
            transform = Compose(transform)
        if transform.latent_shape != model_shape:
            raise ValueError(
                f"{name}(transform=...): the transforms give events of shape {shown(transform.latent_shape)}, and the "
                f"flow takes {shown(model_shape)}; build both for the same shape."
            )
        if transform.context_shape not in (None, self.context_shape):
            own = "no context" if self.context_shape is None else f"contexts of shape {shown(self.context_shape)}"
            raise ValueError(
                f"{name}(transform=...): a transform reads a context of shape {shown(transform.context_shape)}, and "
                f"the flow reads {own}; build both for the same context."
            )
        self.transform = transform

    @property
    def event_shape(self) -> Shape:
        """The shape of one data point."""
        return self.transform.event_shape

    @property
    def model_shape(self) -> Shape:
        """The shape of what is modelled: of the data after the transforms, and of the base's samples."""
        return self.transform.latent_shape

    # What a subclass says

    def _sample(self, count: int, context: Value | None, generator, **options) -> Value:
        raise TypeError(f"{type(self).__qualname__} does not define _sample; a flow must be able to sample.")

    def _maps(self) -> tuple[Map, ...]:
        """Gives the maps that data meet, the first one first."""
        return (self.transform,)

    def _refusing(self) -> tuple[Map, ...]:
        """Gives the maps that data meet where some of them refuses data."""
        maps = self._maps()
        members = (each for part in maps for each in part.members())
        return maps if any(each.reads_values and each.domain is not None for each in members) else ()

    def _log_prob(self, x: Value, context: Value | None, generator, **options) -> Tensor:
        raise TypeError(f"{type(self).__qualname__} does not define _log_prob; its likelihood is {self.likelihood!r}.")

    @property
    def likelihood(self) -> Likelihood:
        """What ``log_prob`` means, transforms included."""
        raise TypeError(f"{type(self).__qualname__} does not say what its likelihood means.")

    @property
    def has_rsample(self) -> bool:
        """Whether gradients flow through samples."""
        return False

    # The protocol

    def log_prob(self, x: Value, context: Value | None = None, *, generator=None, **options) -> Tensor:
        r"""Computes the log-density of data, in nats.

        Shapes: ``x [*batch, *event]``, ``context [*batch, *context_shape]``; returns ``[*batch]``. Differentiable.

        Outside the support of the data (``flow().support``) and at infinity the log-density is minus infinity, and
        sends no gradient; so it is where what the transforms give would overflow on the way (in float32 from 8e28 on).
        Of a row with NaN it is NaN, and no other row is affected.

        Raises:
            TypeError: for an option that ``options`` does not name.
            ValueError: where ``likelihood`` is ``"none"``, a shape does not fit, or a context is missing or not read.
        """
        self._check(options, "log_prob", generator)
        x, context, batch = self._enter(x, context, "log_prob")
        x, size = set_aside(x, self.event_shape, self._refusing())
        u, ladj = self.preprocess(x, context, generator=generator)
        if self.transform.bounded:
            u = fill_outside(u, ladj, 0.0)
        u, far = set_far_aside(u, self.model_shape)
        logp = self._log_prob(u, context, generator, **options) + ladj
        return restore(restore(logp, far), size).reshape(batch)

    def log_prob_estimate(
        self, x: Value, context: Value | None = None, *, draws: int = 8, generator=None, **options
    ) -> tuple[Tensor, Tensor]:
        """Averages independent evaluations of a random ``log_prob`` and gives the standard error of the average.

        Shapes: as ``log_prob``; returns ``(value [*batch], standard_error [*batch])``. Cost: ``draws`` evaluations.
        Where ``likelihood`` is ``"exact"``, one evaluation and a standard error of zero.

        Raises:
            ValueError: for fewer than two draws, and as ``log_prob``.
        """
        self._check(options, "log_prob_estimate", generator)
        if self.likelihood == "exact" and not options:
            value = self.log_prob(x, context, generator=generator)
            return value, torch.zeros_like(value)
        if draws < 2:
            raise ValueError(
                f"log_prob_estimate(draws={draws}): a standard error needs two draws or more; pass draws=8."
            )
        values = torch.stack([self.log_prob(x, context, generator=generator, **options) for _ in range(draws)])
        if not values.numel():  # of nothing torch computes a deviation with a warning
            return values[0], values[0]
        return values.mean(0), values.std(0) / math.sqrt(draws)

    @torch.no_grad()
    def sample(self, shape=(), context: Value | None = None, *, generator=None, **options) -> Value:
        """Draws samples, ``[*shape, *context_batch, *event]``. Builds no graph.

        ``generator`` is one, or a list of one for each sample (in the order of the batch, flattened): a sample then is
        the same to rounding whatever else is drawn with it.
        """
        self._check(options, "sample", generator)
        context, batch = self._count(shape, context, "sample")
        u = self._sample(math.prod(batch), context, generator, **options)
        return unflatten(self.postprocess(u, context, generator=generator)[0], batch)

    @torch.no_grad()
    def sample_and_log_prob(
        self, shape=(), context: Value | None = None, *, generator=None, **options
    ) -> tuple[Value, Tensor]:
        """Draws samples with their log-density: ``([*shape, *context_batch, *event], [*shape, *context_batch])``."""
        self._check(options, "sample_and_log_prob", generator)
        context, batch = self._count(shape, context, "sample_and_log_prob")
        mine = lambda method: {name: options[name] for name in options if name in self.options_of(method)}
        u = self._sample(math.prod(batch), context, generator, **mine("sample"))
        x, _ = self.postprocess(u, context, generator=generator)
        again, ladj = self.preprocess(x, context, generator=generator)
        logp = self._log_prob(again, context, generator, **mine("log_prob"))
        return unflatten(x, batch), (logp + ladj).reshape(batch)

    def forward(self, context: Value | None = None) -> FlowDistribution:
        """Gives the distribution of the data (given a context) as a ``torch.distributions.Distribution``."""
        if isinstance(self.event_shape, dict):
            raise ValueError(
                f"flow(): the event of this {type(self).__qualname__} has the parts {sorted(self.event_shape)}, and a "
                f"torch Distribution holds one tensor; call flow.sample and flow.log_prob instead."
            )
        return FlowDistribution(self, self._as_context(context))

    # The condition

    @property
    def classes(self) -> int:
        """The number of class labels, of which the context is one; 0 where the context is not a label."""
        return 0

    def _null_context(self, context: Value) -> Value:
        """Gives the context of "no condition", as the flow's network defines it."""
        raise ValueError(
            f'{type(self).__qualname__}.null_context: this flow has no network that knows "no condition"; build it '
            f"with one that does, such as a field with classes=... or context=...."
        )

    def null_context(self, context: Value) -> Value:
        """Gives a context like ``context`` that means "no condition", for an unconditional pass of a conditional flow.

        Raises:
            ValueError: for an unconditional flow, and where training never dropped the condition (``condition_dropout``
                of the objectives), so that the network's output would mean nothing.
        """
        if self.context_shape is None:
            raise ValueError("flow.null_context: this flow is unconditional; omit the context.")
        self._check_null("null_context")
        return self._null_context(context)

    def _check_null(self, method: str) -> None:
        """Raises where it is known that training never dropped the condition."""
        if self.trained_by and not any(entry.condition_dropout > 0 for entry in self.trained_by):
            labels = f" (labels go from 0 to {self.classes - 1})" if self.classes else ""
            raise ValueError(
                f'flow.{method}: "no condition" was never trained ({self.trained_by[-1].objective} without '
                f"condition_dropout), and guidance and null_context need it{labels}; train with "
                f"condition_dropout=0.1."
            )

    def drop_condition(self, context: Value, drop: Tensor | None = None) -> Value:
        """Gives ``context [B, *context_shape]`` with "no condition" in the rows that ``drop [B]`` marks, or in all.

        For objectives, which train "no condition": unlike in :meth:`null_context`, nothing is refused.
        """
        null = self._null_context(context)
        if drop is None:
            return null
        return on_tensors(lambda old, new: torch.where(expand_like(drop, old), new, old), context, null)

    # The record of training

    def record(self, objective: Any) -> None:
        """Notes that the flow is trained by ``objective`` from now on: ``training.fit`` does it when it begins.

        For a training loop of your own. What was learned decides what the flow offers: a score, a density, guidance,
        whole steps. Computing a loss notes nothing. Copies made before keep their own record.

        Args:
            objective: any :class:`cflow.objectives.Objective`; its ``entry()`` is added to ``trained_by``.

        Raises:
            TypeError: for anything that is not an objective.
        """
        if isinstance(objective, type) or not callable(getattr(objective, "entry", None)):
            raise TypeError(
                f"flow.record({objective!r:.60}): what a flow was trained by is an objective; pass an object such as "
                f"objectives.FlowMatching()."
            )
        self.trained_by = (*self.trained_by, objective.entry())

    # Transforms of the data

    def with_transform(self, *transform: Map):
        """Gives a flow over transformed data: ``transform`` maps data to what the flow models, first one first.

        The new flow shares its networks with this one; transforms it already had stay innermost. Log-densities are
        those of the original data: the transforms' contributions are added. A transform may read the flow's context,
        may be learned (by objectives whose loss is a likelihood), and may change the shape: ``event_shape`` is then the
        data's, and ``model_shape`` what is modelled inside.

        Raises:
            TypeError: for anything that is not a ``bijections.Map``.
            ValueError: where shapes do not follow one another, or a transform reads another context than the flow.

        Example:
            >>> import torch, cflow
            >>> from cflow import bases, fields
            >>> from cflow.bijections import Standardise
            >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2))
            >>> metres = flow.with_transform(Standardise(2, loc=100.0, scale=5.0))
            >>> metres.sample((3,)).shape
            torch.Size([3, 2])
        """
        # A shallow copy: parameters and networks are the same objects, only the chain of transforms is new.
        flow = copy.copy(self)
        flow._modules = dict(self._modules)
        flow._carry((*transform, *self.transform.maps), self.model_shape)
        return flow

    def preprocess(self, x: Value, context: Value | None = None, *, generator=None) -> tuple[Value, Tensor | float]:
        """Carries data ``[B, *event]`` to what the flow models: ``(u [B, *model], contribution [B])``.

        Of a row outside the domain of the transforms there is nothing to model: NaN, with a contribution of -inf.
        """
        if not len(self.transform):
            return x, 0.0
        u, contribution = self.transform.encode(x, context, generator=generator)
        return (fill_outside(u, contribution, math.nan) if self.transform.bounded else u), contribution

    def postprocess(self, u: Value, context: Value | None = None, *, generator=None) -> tuple[Value, Tensor | float]:
        """Carries what the flow models back to data: ``(x [B, *event], contribution [B])``."""
        return self.transform.decode(u, context, generator=generator) if len(self.transform) else (u, 0.0)
