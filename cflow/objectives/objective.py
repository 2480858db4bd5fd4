"""What an objective is: a part that can run ahead of the step, and a loss per item."""

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
    """Raises where an option is a class, a string or anything else that cannot be called."""
    for name, value in options.items():
        if value is not None and (isinstance(value, type) or not callable(value)):
            raise TypeError(f"{owner}({name}={value!r}): options are objects, such as {example}.")


def check_dropout(owner: str, condition_dropout: float) -> None:
    """Raises unless the share of items without their condition lies in [0, 1)."""
    if not 0 <= condition_dropout < 1:
        raise ValueError(
            f"{owner}(condition_dropout={condition_dropout}): the share of dropped contexts lies in [0, 1); 0.1 to 0.2 "
            f"is usual for classifier-free guidance."
        )


class Objective(nn.Module):
    """Trains a flow: ``objective(flow, x, context) -> [B]``.

    A subclass writes :meth:`prepare`, which draws and couples (no network, safe in a worker thread), and :meth:`loss`,
    which evaluates the flow's network. A trainer calls :meth:`make_batch`, perhaps in a thread, and then :meth:`loss`.
    An objective with parameters of its own (a teacher) holds them as a module does.

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
    """What a flow has learned of it, for the flow's record of training; see :class:`cflow.TrainingEntry`."""

    condition_dropout: float = 0.0
    """The share of items that are trained without their condition."""

    draws: ClassVar[bool] = True
    """Whether the loss of an item is random (times, noise, probes), so that one evaluation of it says little."""

    samples_per_item: int | None = None
    """How many samples an item of the data holds: ``None`` for one, ``[B, *event]``; 2 for given pairs of a base and a
    data sample, ``[B, 2, *event]``; and so on. 0 for none: the flow's own draws do, ``x`` is ``[B, 0]``, and the data
    are the contexts alone, or nothing where the flow reads none."""

    trains_transform: bool = False
    """Whether the loss holds the contributions of the flow's transforms, so that what is learned in them can be trained
    by it. Where it does not, the transform would shrink the data to a point, and a learned one is refused."""

    in_model_space: bool = False
    """Whether the data are given as what the flow models, to which transforms are not applied again."""

    metric_names: tuple[str, ...] = ()
    """Names of the numbers that are logged beside the loss, the same throughout a run."""

    metrics: Mapping[str, Tensor | float] = MappingProxyType({})
    """The numbers logged with the last loss."""

    def __init__(self):
        super().__init__()
        self.coupling = None
        """Which base sample goes with which data sample, where the objective pairs them."""

    @property
    def prepares_ahead(self) -> bool:
        """Whether preparation takes long enough to run ahead of the step: what its coupling says, if it has one.

        Threads share the interpreter: where preparation is a few draws, a thread for it slows the step down.
        """
        return True if self.coupling is None else self.coupling.prepares_ahead

    def entry(self) -> TrainingEntry:
        """Says what a flow trained by this objective has learned; the flow keeps it (``flow.record(objective)``)."""
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
        """Carries data to what the flow models, by the flow's transforms; of given pairs, the data half."""
        if self.samples_per_item == 0 or self.in_model_space:
            return x
        if self.samples_per_item is None:
            return flow.preprocess(x, context, generator=generator)[0]
        x0, x1 = x.unbind(1)
        x1, _ = flow.preprocess(x1, context, generator=generator)
        return torch.stack((x0.to(x1.dtype), x1), 1)

    def prepare(self, base: nn.Module, x: Tensor, context: Tensor | None = None, generator=None):
        """Draws what the loss needs for data ``x [B, *event]`` (transforms applied): anything with tensors in it."""
        raise TypeError(f"{type(self).__qualname__} does not define prepare.")

    def loss(self, flow: Any, batch) -> Tensor:
        """Computes the loss per item, ``[B]``, of a prepared batch."""
        raise TypeError(f"{type(self).__qualname__} does not define loss.")

    def log(self, **numbers: Tensor | float) -> None:
        """Logs numbers beside the loss being computed, means over its batch: exactly those of :attr:`metric_names`.

        ``fit`` averages them over the steps between two rows of its history and writes them beside the loss, and those
        of validation as ``validation_...``. Tensors stay on their device until then: nothing waits for it.

        Raises:
            ValueError: where the names are others.
        """
        if set(numbers) != set(self.metric_names):
            raise ValueError(
                f"{type(self).__name__}.log({', '.join(numbers)}): the columns of a history are fixed before its "
                f"first row, and this objective's metric_names are {', '.join(self.metric_names) or 'none'}; log "
                f"exactly these."
            )
        self.metrics = {name: each.detach() if isinstance(each, Tensor) else each for name, each in numbers.items()}

    def review(self, history: Sequence[dict[str, Any]]) -> None:
        """Looks at the history of a run after each new row, on the main process, and may warn of what it sees."""

    def check_transform(self, flow: Any) -> None:
        """Raises where the flow's transforms have something to learn that this objective cannot train."""
        if self.trains_transform:
            return
        learned = [name for name, each in flow.transform.named_parameters() if each.requires_grad]
        if learned:
            raise ValueError(
                f"{type(self).__name__}: the flow's transform has parameters to train (transform.{learned[0]}), and a "
                f"loss without their log-determinant would shrink the data to a point; freeze it by "
                f"flow.transform.requires_grad_(False), or train by MaximumLikelihood."
            )

    def draw_dropped(self, count: int, generator, device) -> Tensor | None:
        """Draws which items lose their condition, ``[count]`` of bool; None where none do."""
        if self.condition_dropout == 0:
            return None
        return torch.rand(count, generator=generator, device=device) < self.condition_dropout

    def dropped(self, flow: Any, context: Any, drop: Tensor | None) -> Any:
        """Gives the contexts, "no condition" in place of those that ``drop [B]`` marks."""
        if drop is None:
            return context
        if context is None:
            raise ValueError(
                f"{type(self).__name__}(condition_dropout={self.condition_dropout}): there is no context to drop; "
                "train with data=(x, context), or leave condition_dropout at 0."
            )
        return flow.drop_condition(context, drop)

    def make_batch(self, flow: Any, x: Tensor, context: Tensor | None = None, generator=None):
        """Does all that can be done ahead of the step: transforms, draws, couplings; the network is not called.

        Raises:
            ValueError: where the flow's transforms have something to learn that this objective cannot train.
        """
        check_generator(type(self).__name__, generator)
        self.check_transform(flow)
        context = flow.cast(context)
        u = self.preprocess(flow, flow.cast(x), context, generator)
        return self.prepare(flow.base, u, context, generator)

    def forward(self, flow: Any, x: Tensor, context: Tensor | None = None, *, generator=None) -> Tensor:
        return self.loss(flow, self.make_batch(flow, x, context, generator))
