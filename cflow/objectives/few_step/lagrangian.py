"""Lagrangian self-distillation: flow maps that follow their own velocity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cflow.divergence.forward_mode import jvp
from cflow.objectives.few_step.steps import Steps
from cflow.objectives.few_step.two_times import TwoTimes
from cflow.registry import register
from cflow.shapes import expand_like

__all__ = ["LagrangianSelfDistillation"]


@register("objectives.LagrangianSelfDistillation")
class LagrangianSelfDistillation(TwoTimes):
    r"""Trains average velocities so that the end of a step moves with the velocity there.

    .. math:: \partial_s X_{t,s}(x) = \operatorname{sg}\bigl( u(s, X_{t,s}(x), s) \bigr),
        \qquad X_{t,s}(x) = \exp_x\bigl( (s - t)\, u(t, x, s) \bigr)

    In a flat space, :math:`\exp_x w = x + w`. On a manifold the error is measured at the end of the step.

    The derivative is with respect to ``s`` alone and does not contain the velocity of a single pair. So, in contrast to
    :class:`MeanFlow`, the noise of single pairs does not enter the derivative.

    Args:
        coupling, times, weight, condition_dropout, share, guidance, power, both_ways: see :class:`TwoTimes`.

    Cost: one evaluation of the network with gradients; on the part ``share`` of the batch also the derivative, with
    gradients, and one evaluation without.

    Raises:
        ValueError: for a field with one time, or a flow whose path does not predict the velocity.

    Source: Boffi et al., How to build a consistency model: Learning flow maps via self-distillation, 2025,
    arXiv:2505.18825; on manifolds: Davis et al., Generalised Flow Maps for Few-Step Generative Modelling on Riemannian
    Manifolds, 2025, arXiv:2510.21608.

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, paths
        >>> field = fields.MLP(2, hidden=(16,), two_times=True)
        >>> flow = cflow.ContinuousFlow(field, bases.Normal(2), path=paths.Linear())
        >>> LagrangianSelfDistillation()(flow, torch.randn(16, 2)).shape
        torch.Size([16])
    """

    def _error(self, flow: Any, t: Tensor, s: Tensor, x: Tensor, v: Tensor, context) -> Tensor:
        steps = Steps(flow.manifold)
        step = lambda s: steps.end(x, expand_like(s - t, x) * flow.predict(t, x, context, s=s))
        end, moves = jvp(step, (s,), (torch.ones_like(s),))
        with torch.no_grad():
            end = end.detach()
            there = flow.predict(s, end, context, s=s)
            target = torch.where(expand_like(s != t, x), there, v)
        return steps.square(end, moves - target)
