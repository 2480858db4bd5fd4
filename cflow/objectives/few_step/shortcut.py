"""Shortcut models: one step equals two half steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cflow.arguments import is_integer
from cflow.objectives.few_step.steps import Steps
from cflow.objectives.few_step.two_times import TwoTimes
from cflow.registry import register
from cflow.shapes import expand_like

__all__ = ["Shortcut"]


@register("objectives.Shortcut")
class Shortcut(TwoTimes):
    r"""Trains average velocities so that every step equals two steps of half its length.

    .. math:: u(t, x, t + d) = \tfrac12 \operatorname{sg}\bigl(u(t, x, t + \tfrac d2)
        + u(t + \tfrac d2, x', t + d)\bigr), \qquad x' = x + \tfrac d2 u(t, x, t + \tfrac d2)

    On a manifold this is the semigroup property of whole steps,

    .. math:: X_{t,t+d}(x) = \operatorname{sg}\bigl( X_{t + d/2,\, t+d}(x') \bigr),
        \quad x' = X_{t,\, t + d/2}(x), \qquad X_{t,s}(x) = \exp_x\bigl( (s - t)\, u(t, x, s) \bigr)

    and its error is the distance between the two sides, divided by ``d``. No derivative is needed.

    Step lengths are ``1, 1/2, 1/4, ... 2/steps``, on grids that start at 0. Half steps of length ``1/steps`` use the
    velocity itself, ``u(t, x, t)``. The terms with sg use the present weights, without gradients. Sample with
    ``solvers.FlowMap(steps=...)``, a power of two.

    Args:
        coupling, times, weight, condition_dropout, share, guidance, power, both_ways: see :class:`TwoTimes`; ``times``
            is for the items without a step.
        steps: the number of shortest half steps in the interval, a power of two.

    Cost: one evaluation of the network with gradients; on the part ``share`` of the batch also two without.

    Raises:
        ValueError: if ``steps`` is not a power of two; for a field with one time, or a flow whose path does not predict
            the velocity.

    Source: Frans et al., One Step Diffusion via Shortcut Models, 2024, arXiv:2410.12557; on manifolds: Davis et al.,
    Generalised Flow Maps for Few-Step Generative Modelling on Riemannian Manifolds, 2025, arXiv:2510.21608.

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, paths
        >>> field = fields.MLP(2, hidden=(16,), two_times=True)
        >>> flow = cflow.ContinuousFlow(field, bases.Normal(2), path=paths.Linear())
        >>> Shortcut()(flow, torch.randn(16, 2)).shape
        torch.Size([16])
    """

    def __init__(
        self, coupling=None, times=None, weight=None, condition_dropout: float = 0.0, *, steps: int = 128,
        share: float = 0.25, guidance: float = 1.0, power: float = 0.0, both_ways: bool = False,
    ):  # fmt: skip
        super().__init__(
            coupling, times, weight, condition_dropout, share=share, guidance=guidance, power=power,
            both_ways=both_ways,
        )  # fmt: skip
        if not is_integer(steps, 2) or steps & (steps - 1):
            raise ValueError(f"Shortcut(steps={steps}): steps are halved; pass a power of two such as 128.")
        self.steps = steps

    def _steps(self, t: Tensor, generator) -> tuple[Tensor, Tensor]:
        levels = int(math.log2(self.steps))
        draw = lambda: torch.rand(t.shape, generator=generator, device=t.device, dtype=t.dtype)
        count = 2 ** (draw() * levels).floor()  # number of steps of this length in the interval
        number = (draw() * count).floor()
        return number / count, (number + 1) / count

    def _error(self, flow: Any, t: Tensor, s: Tensor, x: Tensor, v: Tensor, context) -> Tensor:
        steps, far = Steps(flow.manifold), expand_like(s != t, x)
        u = flow.predict(t, x, context, s=s)
        with torch.no_grad():
            middle = (t + s) / 2
            low, high = flow.interval
            # The shortest step, 2/steps, is below; the next is above.
            short = (s - t).abs() < 2.5 * (high - low) / self.steps
            half, span = expand_like(middle - t, x), expand_like(s - t, x)
            first = flow.predict(t, x, context, s=torch.where(short, t, middle))
            there = steps.end(x, half * first)
            second = flow.predict(middle, there, context, s=torch.where(short, middle, s))
            if steps.flat:
                end, error = x, torch.where(far, (first + second) / 2, v) - u
            else:
                end = steps.end(x, span * u)
                apart = steps.between(end, steps.end(there, half * second))
                error = torch.where(far, apart / torch.where(far, span, 1.0), v - u)
        return steps.square(end, steps.follow(error, x, span * u.detach(), u))
