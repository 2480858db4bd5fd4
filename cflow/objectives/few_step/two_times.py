"""The base class of objectives for fields with two times: steps from t to s, and flow matching for s = t."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cflow.fields import as_field
from cflow.objectives.few_step.steps import Steps
from cflow.objectives.matching.flow_matching import FlowMatching, MatchingBatch
from cflow.paths import Path, PathSample  # noqa: F401 (the reference resolves annotations of the base class here)
from cflow.record import TrainingEntry
from cflow.shapes import expand_like, on_tensors

__all__ = ["StepBatch", "TwoTimes"]


@dataclass
class StepBatch(MatchingBatch):
    """A :class:`MatchingBatch` with the second time of each step.

    Attributes:
        s: the end of the step ``[B]``, in [0, 1]; the loss maps it to the path's interval.

    The other arguments are those of :class:`MatchingBatch`.
    """

    s: Tensor | None = None


class TwoTimes(FlowMatching):
    r"""Trains a field with two times, :math:`u(t, x, s)`, the average velocity of the flow from t to s.

    .. math:: X_{t,s}(x) = \exp_x\bigl( (s - t)\, u(t, x, s) \bigr), \qquad u(t, x, t) = v(t, x)

    In a flat space, :math:`\exp_x w = x + w`. On a manifold u is a tangent vector at x.

    On the part of every batch with ``s != t``, a subclass defines the target of the average velocity (:meth:`_error`).
    On the rest, with ``s = t``, this is flow matching. The trained flow is therefore an ordinary flow too: ODE solvers
    and densities use ``u(t, x, t)``, and ``solvers.FlowMap`` takes whole steps.

    Args:
        coupling, times, weight, condition_dropout: see :class:`FlowMatching`; both times are drawn from ``times``.
        share: the part of a batch with ``s != t``, in (0, 1].
        guidance: classifier-free guidance that the network learns, for conditional flows trained with
            ``condition_dropout``. The target velocity is ``v + (guidance - 1) (v - u(t, x, t | no condition))``.
            Sampling then needs one evaluation per step and no guidance. Default: 1, no guidance.
        power: the error of an item is divided by itself (plus 1e-3, without gradient) to this power, so that items with
            large errors, which derivatives along the flow can have, count less. The weight depends on the draw, so the
            field learns a value between the mean and the mode of the draws. In many dimensions, where all errors are
            similar, this is harmless (1 is usual for images); in few dimensions it is wrong. Default: 0, no division.
        both_ways: whether half of the steps, chosen at random, go from the data to the base. ``solvers.FlowMap`` then
            computes densities of data too: ``flow.log_prob(x, solver=solvers.FlowMap(steps=1))``.

    ``fit`` records the errors before that division as ``matched`` (``s = t``) and ``stepped`` (``s != t``).

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, paths
        >>> class Constant(TwoTimes):  # the average velocity is the velocity at the start
        ...     def _error(self, flow, t, s, x, v, context):
        ...         return Steps(flow.manifold).square(x, flow.predict(t, x, context, s=s) - v)
        >>> flow = cflow.ContinuousFlow(fields.MLP(2, two_times=True), bases.Normal(2), path=paths.Linear())
        >>> Constant()(flow, torch.randn(16, 2)).shape
        torch.Size([16])
    """

    teaches = "average velocity"
    metric_names = ("matched", "stepped")

    masks = False

    def __init__(
        self,
        coupling=None,
        times=None,
        weight=None,
        condition_dropout: float = 0.0,
        *,
        share: float = 0.25,
        guidance: float = 1.0,
        power: float = 0.0,
        both_ways: bool = False,
    ):
        super().__init__(coupling, times, weight, condition_dropout)
        name = type(self).__name__
        if not 0 < share <= 1:
            raise ValueError(f"{name}(share={share}): the share is in (0, 1]; pass 0.25.")
        if guidance != 1 and not condition_dropout:
            raise ValueError(
                f"{name}(guidance={guidance}): guidance needs a velocity without condition; pass condition_dropout=0.1 "
                f"too."
            )
        if not 0 <= power < math.inf:
            raise ValueError(f"{name}(power={power}): the power is 0 or more; pass 0 or 1.")
        self.share, self.guidance, self.power, self.both_ways = share, guidance, power, both_ways

    def entry(self) -> TrainingEntry:
        return replace(super().entry(), both_ways=self.both_ways)

    def prepare(self, base: nn.Module, x: Tensor, context=None, generator=None) -> StepBatch:
        batch = super().prepare(base, x, context, generator)
        t, s = self._steps(batch.t, generator)
        if self.both_ways:
            turned = torch.rand(t.shape, generator=generator, device=t.device) < 0.5
            t, s = torch.where(turned, s, t), torch.where(turned, t, s)
        # Steps are spread evenly over the rows, so that any range of rows contains its share of them. The start is
        # random, so that every row has the same probability, for any order and number of rows.
        begin = torch.rand((), generator=generator, device=t.device, dtype=torch.float64)
        upto = (torch.arange(len(t) + 1, dtype=torch.float64, device=t.device) * self.share + begin + 1e-9).floor()
        far = upto[1:] > upto[:-1]
        return StepBatch(
            batch.x0, batch.x1, torch.where(far, t, batch.t), batch.context, batch.drop, s=torch.where(far, s, batch.t)
        )

    def _steps(self, t: Tensor, generator) -> tuple[Tensor, Tensor]:
        """Draws steps, ``t <= s``, as many as there are times ``t``."""
        other = self.law(len(t), generator=generator, device=t.device, dtype=t.dtype)
        return torch.minimum(t, other), torch.maximum(t, other)

    def _match(self, flow: Any, path: Path, batch: StepBatch, t: Tensor, context) -> tuple[Tensor, Tensor]:
        low, high = flow.interval
        s = low + (high - low) * batch.s
        at_start, sample = t, path.sample(batch.x0, batch.x1, t)
        v = self._guided(flow, t, sample.xt, sample.target, context, batch.drop)
        # Steps first, as many rows as a range of this length can contain, so that no size is read from the device. For
        # a row without a step, the error of steps is the error of its velocity.
        count = min(len(t), math.floor(self.share * len(t) + 1e-9) + 1)
        order = (s != t).to(torch.uint8).argsort(descending=True, stable=True)
        take = lambda rows: [on_tensors(lambda each: each[rows], part) for part in (t, s, sample.xt, v, context)]
        far = self._error(flow, *take(order[:count]))
        at, _, x, v, context = take(order[count:])
        square = Steps(flow.manifold).square
        near = square(x, flow.predict(at, x, context, s=at) - v) if len(at) else far[:0]
        error = torch.cat((far, near))[order.argsort()]
        stepped, size = (s != t).to(error.dtype), len(error)
        self.log(
            matched=(error * (1 - stepped)).sum() / ((1 - self.share) * size) if self.share < 1 else 0.0,
            stepped=(error * stepped).sum() / (self.share * size),
        )
        return (error / (error.detach() + 1e-3) ** self.power if self.power else error), at_start

    def _error(self, flow: Any, t: Tensor, s: Tensor, x: Tensor, v: Tensor, context) -> Tensor:
        """Computes the error of steps, ``[B]``; ``v`` is a draw of the velocity at ``(t, x)``."""
        raise TypeError(f"{type(self).__qualname__} does not define _error.")

    def _guided(self, flow: Any, t: Tensor, x: Tensor, v: Tensor, context, drop: Tensor | None) -> Tensor:
        """Extrapolates from the velocity without condition to ``v``, in rows with a condition."""
        if self.guidance == 1:
            return v
        with torch.no_grad():
            without = flow.predict(t, x, flow.drop_condition(context), s=t)
        return torch.where(expand_like(drop, v), v, torch.lerp(without, v, self.guidance))

    def _path(self, flow: Any) -> Path:
        path, name = super()._path(flow), type(self).__name__
        self._check_velocity(path)
        if not as_field(flow.field).two_times:
            raise ValueError(
                f"{name}: {type(flow.field).__name__} has one time; build it with two_times=True, or use "
                f"fields.two_times(flow.field)."
            )
        return path
