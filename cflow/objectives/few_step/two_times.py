"""What objectives for fields of two times share: steps from t to s, and flow matching where a step has no length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cflow.fields import as_field
from cflow.objectives.matching.flow_matching import FlowMatching, MatchingBatch
from cflow.paths import Path
from cflow.paths.path import mean_square
from cflow.shapes import expand_like, on_tensors

__all__ = ["StepBatch", "TwoTimes"]


@dataclass
class StepBatch(MatchingBatch):
    """Pairs with the two times of a step, ``t <= s``, both laid on the path's interval by the loss."""

    s: Tensor | None = None


class TwoTimes(FlowMatching):
    r"""Trains a field of two times, :math:`u(t, x, s)`, the average velocity of the flow on its way from t to s.

    .. math:: X_{t,s}(x) = x + (s - t)\, u(t, x, s), \qquad u(t, x, t) = v(t, x)

    A part of every batch has steps of some length, on which a subclass says what the average velocity is to agree
    with (:meth:`_error`); on the rest, ``s = t``, this is flow matching. So a flow trained like this is also an
    ordinary one: ODE solvers and densities ask for ``u(t, x, t)``, and ``solvers.FlowMap`` takes whole steps.

    Args:
        coupling, times, weight, condition_dropout: see :class:`FlowMatching`; both times follow the law ``times``.
        share: the part of a batch whose steps have a length.
        guidance: classifier-free guidance that the network learns, for conditional flows trained with
            ``condition_dropout``: what is matched is ``v + (guidance - 1) (v - u(t, x, t | no condition))``. Sampling
            then takes one call per step and no guidance.
        power: the loss of an item (its mean square, plus 1e-3) is divided by its own size to this power (which has no
            gradient): 0 for none. Items with large errors, as derivatives along the flow make them, then weigh less.
            The weight depends on the draw, so what is learned is no longer the mean of the draws, but nearer to their
            mode: harmless where many dimensions make all errors alike (1 is usual for images), wrong in few.

    ``fit`` records the errors before that division as ``matched`` (where ``s = t``) and ``stepped``.
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
    ):
        super().__init__(coupling, times, weight, condition_dropout)
        name = type(self).__name__
        if not 0 < share <= 1:
            raise ValueError(f"{name}(share={share}): a part of every batch takes steps; pass a share in (0, 1].")
        if guidance != 1 and not condition_dropout:
            raise ValueError(
                f"{name}(guidance={guidance}): what is learned is to differ from the velocity without a condition, "
                f"which is not trained; pass condition_dropout=0.1 as well."
            )
        if not 0 <= power < math.inf:
            raise ValueError(f"{name}(power={power}): the power of the adaptive weight is 0 or more; 1 is usual.")
        self.share, self.guidance, self.power = share, guidance, power

    def prepare(self, base: nn.Module, x: Tensor, context=None, generator=None) -> StepBatch:
        batch = super().prepare(base, x, context, generator)
        t, s = self._steps(batch.t, generator)
        # Spread evenly over the rows, so that any stretch of them holds its part of the steps, and from anywhere on, so
        # that every row has its share, whatever order the rows are in and however few they are.
        begin = torch.rand((), generator=generator, device=t.device, dtype=torch.float64)
        upto = (torch.arange(len(t) + 1, dtype=torch.float64, device=t.device) * self.share + begin + 1e-9).floor()
        far = upto[1:] > upto[:-1]
        return StepBatch(
            batch.x0, batch.x1, torch.where(far, t, batch.t), batch.context, batch.drop, s=torch.where(far, s, batch.t)
        )

    def _steps(self, t: Tensor, generator) -> tuple[Tensor, Tensor]:
        """Draws steps for as many items as there are times ``t``: ``t <= s``."""
        other = self.times(len(t), generator=generator, device=t.device, dtype=t.dtype)
        return torch.minimum(t, other), torch.maximum(t, other)

    def _match(self, flow: Any, path: Path, batch: StepBatch, t: Tensor, context) -> Tensor:
        low, high = flow.interval
        s = low + (high - low) * batch.s
        sample = path.sample(batch.x0, batch.x1, t)
        v = self._guided(flow, t, sample.xt, sample.target, context, batch.drop)
        # Steps first: as many rows as a stretch of so many can hold, so that no size is read from the device. Of a row
        # without a step the error of steps is that of its velocity.
        count = min(len(t), math.floor(self.share * len(t) + 1e-9) + 1)
        order = (s > t).to(torch.uint8).argsort(descending=True, stable=True)
        take = lambda rows: [on_tensors(lambda each: each[rows], part) for part in (t, s, sample.xt, v, context)]
        far = self._error(flow, *take(order[:count]))
        at, _, x, v, context = take(order[count:])
        near = mean_square(flow.predict(at, x, context, s=at) - v, None) if len(at) else far[:0]
        error = torch.cat((far, near))[order.argsort()]
        stepped, size = (s > t).to(error.dtype), len(error)
        self.log(
            matched=(error * (1 - stepped)).sum() / ((1 - self.share) * size) if self.share < 1 else 0.0,
            stepped=(error * stepped).sum() / (self.share * size),
        )
        return error / (error.detach() + 1e-3) ** self.power if self.power else error

    def _error(self, flow: Any, t: Tensor, s: Tensor, x: Tensor, v: Tensor, context) -> Tensor:
        """Computes the error of steps, ``[B]``; ``v`` is a draw of the velocity at ``(t, x)``."""
        raise TypeError(f"{type(self).__qualname__} does not define _error.")

    def _guided(self, flow: Any, t: Tensor, x: Tensor, v: Tensor, context, drop: Tensor | None) -> Tensor:
        """Leads the velocity away from that without a condition, where there is one."""
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
                f"{name}: {type(flow.field).__name__} reads one time, and an average velocity belongs to two; build it "
                f"with two_times=True, or make fields.two_times(flow.field) of a trained one."
            )
        return path
