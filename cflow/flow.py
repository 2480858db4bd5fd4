"""The Flow protocol, and the base class that implements it from the methods of a subclass.

A flow transforms a simple distribution into the distribution of the data. Callers may use any batch shape. The methods
that a subclass writes always get one batch dimension: ``x [B, *event]``, ``context [B, *context_shape]``, log-densities
``[B]``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

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
from cflow.support import support_of

__all__ = ["BaseFlow", "Flow"]


@runtime_checkable
class Flow(Protocol):
    """Lists the members that every kind of flow has: continuous, discrete-time, token and joint flows.

    Shapes: ``x [*batch, *event]`` (a dict of tensors for joint flows), ``context [*batch, *context_shape]``. The batch
    of a call is the broadcast of both. ``sample(shape, context)`` returns ``[*shape, *context_batch, *event]``.
    Log-densities are in nats, ``[*batch]``. ``likelihood`` states the meaning of ``log_prob``: ``"exact"`` up to the
    solver's tolerance, an unbiased ``"estimate"``, a lower ``"bound"``, or ``"none"``.

    Example:
        >>> import cflow, torch
        >>> def mean_log_density(flow: Flow, count: int) -> float:
        ...     return float(flow.log_prob(flow.sample((count,))).detach().mean())
        >>> mean_log_density(cflow.discrete.nsf(2), 10) < 0
        True
    """

    event_shape: Shape
    context_shape: Shape | None

    @property
    def likelihood(self) -> Likelihood:
        """The meaning of ``log_prob``: ``"exact"``, ``"estimate"``, ``"bound"``, ``"approximate"`` or ``"none"``."""
        ...

    @property
    def has_rsample(self) -> bool:
        """Whether gradients flow through samples."""
        ...

    @property
    def trained_by(self) -> tuple[TrainingEntry, ...]:
        """The objectives that trained the flow, oldest first."""
        ...

    def record(self, objective: Any) -> None:
        """Records that ``objective`` trains the flow from now on."""
        ...

    def log_prob(self, x: Value, context: Value | None = None, *, generator=None) -> Tensor:
        """Computes log-densities ``[*batch]`` of data ``x``, given ``context``; ``generator`` is the random source."""
        ...

    def sample(self, shape=(), context: Value | None = None, *, generator=None) -> Value:
        """Draws ``shape`` samples for each ``context``; ``generator`` is the random source."""
        ...

    def sample_and_log_prob(self, shape=(), context: Value | None = None, *, generator=None):
        """Draws as ``sample(shape, context, generator=generator)`` and returns the log-densities as well."""
        ...

    def forward(self, context: Value | None = None) -> Distribution:
        """Returns the distribution of the data, given ``context``."""
        ...


class BaseFlow(Calls):
    """Implements :class:`Flow` from two methods that work on one batch dimension.

    A subclass writes ``_sample(count, context, generator, **options) -> x [count, *event]`` and, unless its
    ``likelihood`` is ``"none"``, ``_log_prob(x, context, generator, **options) -> [B]``. The class attribute
    ``options`` lists the extra keywords of both: ``{"sample": ("solver",), "log_prob": ("solver", "divergence")}``. A
    method that draws takes the keywords of ``sample``. A method that computes a density takes those of ``log_prob``. A
    method that does both takes all of them. Any other keyword raises a TypeError.

    Args:
        model_shape: shape of one modelled event, or a dict of shapes. It differs from the shape of the data only if a
            transform changes the shape.
        context_shape: shape of one context, or a dict of shapes; None for an unconditional flow. In ``model_shape`` and
            ``context_shape`` the part name ``mask`` is reserved: it marks the members of a set that are present (true).
            The other parts start with its shape, and only marked members count in the loss of ``FlowMatching``.
        transform: maps from the data to the modelled space (:mod:`cflow.bijections`), in the order in which data pass
            them; stored as one ``Compose``.

    Raises:
        TypeError: for a transform that is not a ``bijections.Map``.
        ValueError: if the shapes do not fit together, or a transform reads another context than the flow.

    Example:
        >>> import torch
        >>> class Uniform(BaseFlow):
        ...     likelihood = "exact"
        ...     def _sample(self, count, context, generator):
        ...         return torch.rand(count, *self.model_shape, generator=generator)
        ...     def _log_prob(self, x, context, generator):
        ...         return torch.where(((x >= 0) & (x <= 1)).all(-1), 0.0, -torch.inf)
        >>> flow = Uniform(2)
        >>> flow.sample((5,)).shape, flow.log_prob(torch.tensor([0.5, 0.5]))
        (torch.Size([5, 2]), tensor(0.))
    """

    kept: ClassVar[tuple[str, ...]] = ("trained_by",)
    """Attributes that are saved and copied with a flow, in addition to the constructor's arguments."""

    trained_by: tuple[TrainingEntry, ...] = ()
    """The objectives that trained the flow, oldest first; see :meth:`record`."""

    manifold: ClassVar[Any] = None
    """The manifold on which modelled points lie; None for the Euclidean space."""

    def __init__(self, model_shape, context_shape=None, transform: Map | Sequence[Map] = ()):
        super().__init__()
        self.context_shape = as_shape(context_shape)
        self._carry(transform, as_shape(model_shape))
        check_mask(self.event_shape, self.context_shape, type(self).__qualname__)

    def _carry(self, transform: Map | Sequence[Map], model_shape: Shape) -> None:
        """Stores the transforms as one chain and checks its shapes."""
        name = type(self).__name__
        for each in [transform] if isinstance(transform, Map) else transform:
            if not isinstance(each, Map):
                raise TypeError(
                    f"{name}(transform={type(each).__qualname__}): not a bijections.Map; pass one, such as "
                    "bijections.Standardise."
                )
        if not isinstance(transform, Map):
            transform = Compose(*transform, event_shape=None if len(transform) else model_shape)
        elif not isinstance(transform, Compose):
            transform = Compose(transform)
        if transform.latent_shape != model_shape:
            raise ValueError(
                f"{name}(transform=...): the transforms return shape {shown(transform.latent_shape)}, the flow takes "
                f"{shown(model_shape)}; make them equal."
            )
        if transform.context_shape not in (None, self.context_shape):
            own = "no context" if self.context_shape is None else f"contexts of shape {shown(self.context_shape)}"
            raise ValueError(
                f"{name}(transform=...): a transform reads contexts of shape {shown(transform.context_shape)}, the "
                f"flow reads {own}; make them equal."
            )
        self.transform = transform

    @property
    def event_shape(self) -> Shape:
        """The shape of one data point."""
        return self.transform.event_shape

    @property
    def model_shape(self) -> Shape:
        """The shape of one modelled event, which is a data point after the transforms."""
        return self.transform.latent_shape

    # What a subclass defines

    def _sample(self, count: int, context: Value | None, generator, **options) -> Value:
        raise TypeError(f"{type(self).__qualname__} does not define _sample; write it.")

    def _maps(self) -> tuple[Map, ...]:
        """Returns the maps in the order in which data pass them."""
        return (self.transform,)

    def _refusing(self) -> tuple[Map, ...]:
        """Returns the same maps if one of them refuses some data; otherwise none."""
        maps = self._maps()
        members = (each for part in maps for each in part.members())
        return maps if any(each.reads_values and each.domain is not None for each in members) else ()

    def _log_prob(self, x: Value, context: Value | None, generator, **options) -> Tensor:
        raise TypeError(f"{type(self).__qualname__} does not define _log_prob; its likelihood is {self.likelihood!r}.")

    @property
    def likelihood(self) -> Likelihood:
        """The meaning of ``log_prob``, transforms included."""
        raise TypeError(f"{type(self).__qualname__} does not define likelihood; set it.")

    @property
    def has_rsample(self) -> bool:
        """Whether gradients flow through samples."""
        return False

    @property
    def support(self) -> Constraint:
        """The region of the data in which the density is not zero, as far as the flow's maps bound it."""
        return support_of(self._maps(), len(self.event_shape))

    # The protocol

    def log_prob(self, x: Value, context: Value | None = None, *, generator=None, **options) -> Tensor:
        r"""Computes the log-density of data, in nats. The result is differentiable.

        The log-density is minus infinity, with zero gradient, outside the support of the data (``flow().support``), at
        infinity, and where transformed data would overflow (in float32 from 8e28 on). It is NaN for a row with NaN.
        Such rows do not affect the other rows.

        Args:
            x: data ``[*batch, *event]``, or a dict of tensors for a joint flow.
            context: contexts ``[*batch, *context_shape]``; None for an unconditional flow.
            generator: source of random numbers, where the likelihood is an estimate or a bound. Default: torch's.
            **options: keywords of the flow, such as ``solver`` and ``divergence``; see :meth:`options_of`.

        Shapes: returns ``[*batch]``, the broadcast of both batches.

        Raises:
            TypeError: for an unknown option.
            ValueError: if ``likelihood`` is ``"none"``, a shape does not fit, or a context is missing or not read.
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
        """Averages independent evaluations of a random ``log_prob`` and returns the standard error of the average.

        Args:
            draws: number of evaluations, two or more.

        The other arguments are those of :meth:`log_prob`: ``x``, ``context``, ``generator`` and ``options``.

        Shapes: returns ``(value [*batch], standard_error [*batch])``. Cost: ``draws`` evaluations. Where ``likelihood``
        is ``"exact"`` there is one evaluation, and the standard error is zero.

        Raises:
            ValueError: for fewer than two draws, and as :meth:`log_prob`.
        """
        self._check(options, "log_prob_estimate", generator)
        if self.likelihood == "exact" and not options:
            value = self.log_prob(x, context, generator=generator)
            return value, torch.zeros_like(value)
        if draws < 2:
            raise ValueError(
                f"log_prob_estimate(draws={draws}): a standard error needs at least two draws; pass draws=8."
            )
        values = torch.stack([self.log_prob(x, context, generator=generator, **options) for _ in range(draws)])
        if not values.numel():  # torch warns about the standard deviation of an empty tensor
            return values[0], values[0]
        return values.mean(0), values.std(0) / math.sqrt(draws)

    @torch.no_grad()
    def sample(self, shape=(), context: Value | None = None, *, generator=None, **options) -> Value:
        """Draws samples ``[*shape, *context_batch, *event]``. Builds no graph.

        Args:
            shape: the sample shape, an integer or a tuple: as many samples for each context.
            context: contexts ``[*context_batch, *context_shape]``; None for an unconditional flow.
            generator: source of random numbers: a ``torch.Generator``, or a list with one generator per sample (in the
                order of the flattened batch). With a list, a sample is the same, up to rounding, in any batch.
                Default: torch's.
            **options: keywords of the flow, such as ``solver`` and ``guidance``; see :meth:`options_of`.

        Raises:
            TypeError: for an unknown option.
            ValueError: if a context is missing, is not read, or has the wrong shape.
        """
        self._check(options, "sample", generator)
        context, batch = self._count(shape, context, "sample")
        u = self._sample(math.prod(batch), context, generator, **options)
        return unflatten(self.postprocess(u, context, generator=generator)[0], batch)

    @torch.no_grad()
    def sample_and_log_prob(
        self, shape=(), context: Value | None = None, *, generator=None, **options
    ) -> tuple[Value, Tensor]:
        """Draws samples and computes their log-densities.

        The arguments ``shape``, ``context``, ``generator`` and ``options`` are those of :meth:`sample`.

        Shapes: returns ``([*shape, *context_batch, *event], [*shape, *context_batch])``.
        """
        self._check(options, "sample_and_log_prob", generator)
        context, batch = self._count(shape, context, "sample_and_log_prob")
        mine = lambda method: {name: options[name] for name in options if name in self.options_of(method)}
        u = self._sample(math.prod(batch), context, generator, **mine("sample"))
        x, _ = self.postprocess(u, context, generator=generator)
        again, ladj = self.preprocess(x, context, generator=generator)
        logp = self._log_prob(again, context, generator, **mine("log_prob"))
        return unflatten(x, batch), (logp + ladj).reshape(batch)

    def infill(
        self, x: Value, fixed: Value, shape=(), context: Value | None = None, *, generator=None, **options
    ) -> Value:
        """Draws what is not fixed of ``x``, given what is fixed: ``[*shape, *batch, *event]``.

        Flows over tokens have this method; others raise an error.

        Args:
            x: data ``[*batch, *event]``; values that are not fixed are not read.
            fixed: what is given, bool, broadcastable to ``x``.
            shape: as many completions of each row.
            context: the conditions ``[*batch, *context_shape]``.
            generator: source of random numbers.
            **options: those of the kind of flow.

        Raises:
            TypeError: for a flow that cannot do this.
        """
        raise TypeError(
            f"flow.infill: a {type(self).__name__} draws whole samples; for tokens use ctmc.TokenFlow, or draw many "
            f"samples and choose."
        )

    def forward(self, context: Value | None = None) -> FlowDistribution:
        """Returns the distribution of the data, given ``context``, as a ``torch.distributions.Distribution``.

        Raises:
            ValueError: for a joint flow, and for a context that is missing, not read, or of the wrong shape.
        """
        if isinstance(self.event_shape, dict):
            raise ValueError(
                f"flow(): events have the parts {sorted(self.event_shape)}, a torch Distribution has one tensor; call "
                f"flow.sample and flow.log_prob."
            )
        return FlowDistribution(self, self._as_context(context))

    # The condition

    @property
    def classes(self) -> int:
        """The number of class labels, for a flow whose context is a class label; otherwise 0."""
        return 0

    def _null_context(self, context: Value) -> Value:
        """Returns the context that means "no condition" for the flow's network."""
        raise ValueError(
            f"{type(self).__qualname__}.null_context: not available; build the flow with a field that takes "
            f"classes=... or context=...."
        )

    def null_context(self, context: Value) -> Value:
        """Returns a context of the shape of ``context`` that means "no condition", for guidance.

        Raises:
            ValueError: for an unconditional flow, and if training never dropped the condition (``condition_dropout`` of
                the objectives), since the network's output would then be arbitrary.
        """
        if self.context_shape is None:
            raise ValueError("flow.null_context: this flow is unconditional; omit the context.")
        self._check_null("null_context")
        return self._null_context(context)

    def _check_null(self, method: str) -> None:
        """Raises if the record of training shows that the condition was never dropped."""
        if self.trained_by and not any(entry.condition_dropout > 0 for entry in self.trained_by):
            labels = f" (labels go from 0 to {self.classes - 1})" if self.classes else ""
            raise ValueError(
                f'flow.{method}: "no condition" was not trained ({self.trained_by[-1].objective} without '
                f"condition_dropout){labels}; train with condition_dropout=0.1."
            )

    def drop_condition(self, context: Value, drop: Tensor | None = None) -> Value:
        """Returns ``context [B, *context_shape]`` with "no condition" in the rows that ``drop [B]`` marks, or in all.

        Objectives use this to train "no condition". Unlike :meth:`null_context`, it does not look at the record of
        training.
        """
        null = self._null_context(context)
        if drop is None:
            return null
        return on_tensors(lambda old, new: torch.where(expand_like(drop, old), new, old), context, null)

    # The record of training

    def record(self, objective: Any) -> None:
        """Records that ``objective`` trains the flow from now on.

        ``training.fit`` calls this when it starts. Call it in a custom training loop. The record decides what the flow
        can compute: a score, a density, guidance, whole steps. Computing a loss does not change the record. Copies made
        earlier keep their own record.

        Args:
            objective: any :class:`cflow.objectives.Objective`; its ``entry()`` is added to ``trained_by``.

        Raises:
            TypeError: for anything that is not an objective.
        """
        if isinstance(objective, type) or not callable(getattr(objective, "entry", None)):
            raise TypeError(
                f"flow.record({objective!r:.60}): not an objective; pass an object such as objectives.FlowMatching()."
            )
        self.trained_by = (*self.trained_by, objective.entry())

    # Transforms of the data

    def with_transform(self, *transform: Map):
        """Returns a flow over other data: ``transform`` maps these data to the data of this flow.

        The new flow shares its networks with this one. Its log-densities are those of the new data: they include the
        log-determinants of the transforms. A transform may read the flow's context. It may be learned by objectives
        whose loss is a likelihood. It may change the shape: ``event_shape`` is then the shape of the new data.

        Args:
            *transform: maps, in the order in which data pass them. Transforms that the flow already has come after.

        Raises:
            TypeError: for anything that is not a ``bijections.Map``.
            ValueError: if the shapes do not fit together, or a transform reads another context than the flow.

        Example:
            >>> import torch, cflow
            >>> from cflow import bases, fields
            >>> from cflow.bijections import Standardise
            >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2))
            >>> metres = flow.with_transform(Standardise(2, loc=100.0, scale=5.0))
            >>> metres.sample((3,)).shape
            torch.Size([3, 2])
        """
        # A shallow copy: parameters and networks are the same objects; only the chain of transforms is new.
        flow = copy.copy(self)
        flow._modules = dict(self._modules)
        flow._carry((*transform, *self.transform.maps), self.model_shape)
        return flow

    def preprocess(self, x: Value, context: Value | None = None, *, generator=None) -> tuple[Value, Tensor | float]:
        """Applies the transforms to data: returns ``(u [B, *model], contribution [B])``.

        The contribution is the log-determinant. A row outside the domain of the transforms becomes NaN, with a
        contribution of -inf. Modelled events have the dtype of the flow, also where data are integers.

        Args:
            x: data ``[B, *event]``.
            context: contexts ``[B, *context_shape]``, or None.
            generator: source of random numbers, for transforms that draw (``Dequantise``). Default: torch's.
        """
        if not len(self.transform):
            return x, 0.0
        u, contribution = self.transform.encode(x, context, generator=generator)
        return self.cast(fill_outside(u, contribution, math.nan) if self.transform.bounded else u), contribution

    def postprocess(self, u: Value, context: Value | None = None, *, generator=None) -> tuple[Value, Tensor | float]:
        """Applies the inverse transforms: returns data and log-determinant, ``(x [B, *event], contribution [B])``.

        Args:
            u: modelled events ``[B, *model]``.
            context: contexts ``[B, *context_shape]``, or None.
            generator: source of random numbers, for transforms that draw. Default: torch's.
        """
        return self.transform.decode(u, context, generator=generator) if len(self.transform) else (u, 0.0)
