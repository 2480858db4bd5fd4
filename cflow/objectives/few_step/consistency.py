"""Consistency flow matching: velocities that lead to the same end from every point of a path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cflow.arguments import is_integer
from cflow.objectives.matching.flow_matching import FlowMatching, MatchingBatch
from cflow.paths import Path
from cflow.paths.path import mean_square
from cflow.registry import register
from cflow.shapes import expand_like

__all__ = ["ConsistencyFlowMatching"]


@register("objectives.ConsistencyFlowMatching")
class ConsistencyFlowMatching(FlowMatching):
    r"""Trains a velocity that is constant along a path, so that one step from any point ends at the same place.

    .. math:: L = \frac1D \bigl\| f(t, x_t) - \operatorname{sg} f(r, x_r) \bigr\|^2 +
        \frac{\alpha}{D} \bigl\| v(t, x_t) - \operatorname{sg} v(r, x_r) \bigr\|^2,
        \qquad f(t, x) = x + (e - t)\, v(t, x), \quad r = t + \delta

    where e is the end of the segment that contains t; at the end of the last segment, f is replaced by the data. Both
    points are on the path of one pair. The terms with sg use the present weights, without gradients.

    Start from a trained flow. Near a segment's end the first term hardly depends on the velocity; ``weight`` may divide
    by ``(e - t)^2``, as ``lambda path, t: (1.01 - t) ** -2`` for one segment.

    Args:
        coupling, times, weight, condition_dropout: see :class:`FlowMatching`.
        segments: the number of segments of equal length. Sample with the same number of Euler steps. More steps would
            leave the paths on which the velocity was learned, and for the same reason the flow has no density, until it
            is trained as a flow again.
        delta: the distance between the two times.
        alpha: the weight of the second term.

    Cost: one evaluation of the network with gradients, and one without. The field needs one time only.

    Raises:
        ValueError: if an argument is out of range, or the path does not predict the velocity.

    Source: Yang et al., Consistency Flow Matching: Defining Straight Flows with Velocity Consistency, 2024,
    arXiv:2407.02398 (there the terms with sg use averaged weights).

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, paths
        >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
        >>> ConsistencyFlowMatching(segments=2)(flow, torch.randn(16, 2)).shape
        torch.Size([16])
    """

    teaches = "steps"

    masks = False
    curved = False

    def __init__(
        self, coupling=None, times=None, weight=None, condition_dropout: float = 0.0, *, segments: int = 1,
        delta: float = 1e-2, alpha: float = 1e-5,
    ):  # fmt: skip
        super().__init__(coupling, times, weight, condition_dropout)
        if not is_integer(segments, 1) or not 0 < delta < 1 / max(segments, 1) or not alpha >= 0:
            raise ValueError(
                f"ConsistencyFlowMatching(segments={segments}, delta={delta}, alpha={alpha}): segments >= 1, "
                f"0 < delta < 1 / segments and alpha >= 0 are needed; pass 1, 0.01 and 1e-5."
            )
        self.segments, self.delta, self.alpha = segments, delta, alpha

    def _match(self, flow: Any, path: Path, batch: MatchingBatch, t: Tensor, context) -> tuple[Tensor, Tensor]:
        low, high = flow.interval
        length = (high - low) / self.segments
        index = ((t - low) / length).floor().clamp(max=self.segments - 1)
        end = low + (index + 1) * length
        r = torch.minimum(t + self.delta, end)
        here, there = path.sample(batch.x0, batch.x1, t), path.sample(batch.x0, batch.x1, r)
        v = flow.predict(t, here.xt, context)
        with torch.no_grad():
            v_there = flow.predict(r, there.xt, context)
            # If r is the end of its segment, this is the point on the path itself.
            aim = there.xt + expand_like(end - r, v) * v_there
        error = mean_square(here.xt + expand_like(end - t, v) * v - aim, None)
        return error + self.alpha * mean_square(v - v_there, None), t

    def _path(self, flow: Any) -> Path:
        path = super()._path(flow)
        self._check_velocity(path)
        return path
