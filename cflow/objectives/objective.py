"""The contract of objectives: a preparation that can run ahead of the step, and a loss per item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cflow import registry
from cflow.draws import check_generator
from cflow.record import Teaches, TrainingEntry

__all__ = ["Objective"]


def check_objects(owner: str, example: str, **options) -> None:
    """Raises if an option is a class, a string or anything else that cannot be called."""
    for name, value in options.items():
        if value is not None and (isinstance(value, type) or not callable(value)):
            raise TypeError(f"{owner}({name}={value!r}): options are objects, such as {example}.")


def check_dropout(owner: str, condition_dropout: float) -> None:
    """Raises unless the share of items without their condition is in [0, 1)."""
    if not 0 <= condition_dropout < 1:
        raise ValueError(
            f"{owner}(condition_dropout={condition_dropout}): the share is in [0, 1); pass 0.1 for classifier-free "
            f"guidance."
        )


class Objective(nn.Module):
    """Computes the loss of a flow per item, ``objective(flow, x, context) -> [B]``: the base class of objectives.

    A subclass implements :meth:`prepare`, which draws and couples (no network, safe in a worker thread), and
    :meth:`loss`, which evaluates the flow's network. A trainer calls :meth:`make_batch`, perhaps in a thread, and then
    :meth:`loss`. An objective may have parameters (a teacher), like any module.

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, paths
        >>> class AtHalf(Objective):  # learns the velocity at time 1/2 alone
        ...     def prepare(self, base, x, context=None, generator=None):
        ...         return base.sample((len(x),), generator=generator), x
        ...     def loss(self, flow, batch):
        ...         sample = flow.path.sample(*batch, torch.full((len(batch[1]),), 0.5))
        ...         return flow.path.loss(flow.predict(sample.t, sample.xt), sample)
        >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
        >>> AtHalf()(flow, torch.randn(8, 2)).shape
        torch.Size([8])
    """

    teaches: ClassVar[Teaches] = "velocity"
    """What the objective teaches a flow, for its record of training; see :class:`cflow.TrainingEntry`."""

    condition_dropout: float = 0.0
    """The share of items that are trained without their condition."""

    draws: ClassVar[bool] = True
    """Whether the loss of an item is random (times, noise, probes), so that a single evaluation is noisy."""

    samples_per_item: int | None = None
    """The number of samples in an item of the data: ``None`` for one, ``[B, *event]``; 2 for given pairs of a base and
    a data sample, ``[B, 2, *event]``; and so on. With 0 the flow draws its own samples: ``x`` is ``[B, 0]``, and the
    data are the contexts alone, or None for an unconditional flow."""

    trains_transform: bool = False
    """Whether the loss contains the log-determinants of the flow's transforms, so that it can train them. Other losses
    would let a learned transform shrink the data to a point, so they raise an error for one."""

    curved: ClassVar[bool] = True
    """Whether the loss is right on manifolds that are not flat. One that adds vectors to points is not."""

    in_model_space: bool = False
    """Whether the data are in model space, so that transforms are not applied again."""

    metric_names: tuple[str, ...] = ()
    """The names of the numbers that are logged with the loss, the same throughout a run."""

    metrics: Mapping[str, Tensor | float] = MappingProxyType({})
    """The numbers logged with the last loss."""

    def __init__(self):
        super().__init__()
        self.coupling = None
        """The coupling of base and data samples, if the objective pairs them."""

    @property
    def prepares_ahead(self) -> bool:
        """Whether preparation is slow enough to run in a thread ahead of the step; that of the coupling, if any.

        Threads share the interpreter: if preparation is only a few draws, a thread makes the step slower.
        """
        return True if self.coupling is None else self.coupling.prepares_ahead

    def entry(self) -> TrainingEntry:
        """Returns the entry of this objective in a flow's record of training (``flow.record(objective)``)."""
        name = lambda obj: registry.name_of(type(obj)) if registry.is_known(type(obj)) else type(obj).__qualname__
        coupling = self.coupling
        return TrainingEntry(
            objective=name(self),
            teaches=self.teaches,
            coupling=None if coupling is None else name(coupling),
            independent=coupling is None or coupling.independent,
            condition_dropout=self.condition_dropout,
        )

    def preprocess(self, flow: Any, x: Tensor, context: Tensor | None = None, generator=None) -> Tensor:
        """Applies the transforms of ``flow`` to data ``x`` given ``context``; for pairs, to the data half.

        Transforms that draw (dequantisation) use ``generator``.
        """
        if self.samples_per_item == 0 or self.in_model_space:
            return x
        if self.samples_per_item is None:
            return flow.preprocess(x, context, generator=generator)[0]
        x0, x1 = x.unbind(1)
        x1, _ = flow.preprocess(x1, context, generator=generator)
        return torch.stack((x0.to(x1.dtype), x1), 1)

    def prepare(self, base: nn.Module, x: Tensor, context: Tensor | None = None, generator=None):
        """Draws what the loss needs; returns a batch of any structure with tensors in it.

        ``base`` is the base of the flow, ``x [B, *event]`` are the data after the transforms,
        ``context [B, *context_shape]`` their conditions or None, and ``generator`` is the source of random numbers.
        """
        raise TypeError(f"{type(self).__qualname__} does not define prepare.")

    def loss(self, flow: Any, batch) -> Tensor:
        """Computes the loss of ``flow`` per item, ``[B]``, for a ``batch`` from :meth:`prepare`."""
        raise TypeError(f"{type(self).__qualname__} does not define loss.")

    def log(self, **numbers: Tensor | float) -> None:
        """Logs ``numbers``, means over the batch, with the present loss: exactly those of :attr:`metric_names`.

        ``fit`` averages them over the steps between two rows of its history and writes them next to the loss, those of
        validation as ``validation_...``. Tensors stay on their device until then, so the step does not wait for it.

        Raises:
            ValueError: if the names differ from :attr:`metric_names`.
        """
        if set(numbers) != set(self.metric_names):
            raise ValueError(
                f"{type(self).__name__}.log({', '.join(numbers)}): this objective's metric_names are "
                f"{', '.join(self.metric_names) or 'none'}; log exactly these."
            )
        self.metrics = {name: each.detach() if isinstance(each, Tensor) else each for name, each in numbers.items()}

    def review(self, history: Sequence[dict[str, Any]]) -> None:
        """Checks the ``history`` of a run after each new row, on the main process; a subclass may warn here."""

    def check_transform(self, flow: Any) -> None:
        """Raises if the transforms of ``flow`` have trainable parameters and this objective cannot train them."""
        if self.trains_transform:
            return
        learned = [name for name, each in flow.transform.named_parameters() if each.requires_grad]
        if learned:
            raise ValueError(
                f"{type(self).__name__}: this loss cannot train transform.{learned[0]} of the flow; freeze "
                f"it by flow.transform.requires_grad_(False), or use MaximumLikelihood."
            )

    def draw_dropped(self, count: int, generator, device) -> Tensor | None:
        """Draws which of ``count`` items lose their condition, by ``generator``, as a bool tensor on ``device``.

        Returns None if :attr:`condition_dropout` is 0.
        """
        if self.condition_dropout == 0:
            return None
        return torch.rand(count, generator=generator, device=device) < self.condition_dropout

    def dropped(self, flow: Any, context: Any, drop: Tensor | None) -> Any:
        """Returns ``context`` with the "no condition" of ``flow`` in the rows that are True in ``drop [B]``."""
        if drop is None:
            return context
        if context is None:
            raise ValueError(
                f"{type(self).__name__}(condition_dropout={self.condition_dropout}): there is no context to drop; "
                "train with data=(x, context), or pass condition_dropout=0."
            )
        return flow.drop_condition(context, drop)

    def make_batch(self, flow: Any, x: Tensor, context: Tensor | None = None, generator=None):
        """Applies the transforms of ``flow`` to ``x``, draws and couples: all that needs no evaluation of the network.

        The arguments ``x [B, *event]``, ``context`` and ``generator`` are those of the call.

        Raises:
            ValueError: if the flow's transforms have trainable parameters and this objective cannot train them, or the
                flow is on a curved manifold and the loss is for flat spaces.
        """
        check_generator(type(self).__name__, generator)
        self.check_transform(flow)
        manifold = flow.manifold
        if not self.curved and manifold is not None and not manifold.flat:
            raise ValueError(
                f"{type(self).__name__}: this loss adds vectors to points, and the flow is on {manifold!r}, which is "
                f"not flat; use objectives.FlowMatching()."
            )
        context = flow.cast(context)
        u = self.preprocess(flow, flow.cast(x), context, generator)
        return self.prepare(getattr(flow, "base", None), u, context, generator)  # a density needs no base

    def forward(self, flow: Any, x: Tensor, context: Tensor | None = None, *, generator=None) -> Tensor:
        """Computes the loss of ``flow``, ``[B]``, for data ``x`` given ``context``; draws use ``generator``."""
        return self.loss(flow, self.make_batch(flow, x, context, generator))
