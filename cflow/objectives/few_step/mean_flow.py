"""MeanFlow: average velocities from a derivative along the flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cflow.divergence.forward_mode import jvp
from cflow.objectives.few_step.steps import Steps
from cflow.objectives.few_step.two_times import TwoTimes
from cflow.registry import register
from cflow.shapes import expand_like

__all__ = ["MeanFlow"]


@register("objectives.MeanFlow")
class MeanFlow(TwoTimes):
    r"""Trains average velocities by the differential equation that they satisfy along the flow.

    .. math:: u(t, x, s) = v(t, x) + (s - t) \Bigl( \partial_t u + v \cdot \nabla_x u \Bigr),
        \qquad L = \bigl\| u_\theta - \operatorname{sg}(\cdot) \bigr\|^2 / D

    On a manifold the equation is that the end of a step stays where it is while its start moves along the flow,

    .. math:: \frac{d}{dt} \exp_{x_t}\bigl( (s - t)\, u(t, x_t, s) \bigr) = 0

    and the error is this derivative. It contains the factors of curvature, such as :math:`\theta \cot \theta` on a
    sphere, without computing them.

    The derivative is one product in forward mode, computed together with the network's value and without gradients. It
    works with attention: the networks of this package then use plain attention, which has a forward mode.

    Args:
        coupling, times, weight, condition_dropout, share, guidance, power, both_ways: see :class:`TwoTimes`. The
            paper draws both times from ``times.LogitNormal(0.4)`` (there -0.4, since t = 1 is noise), and uses
            ``power=1`` for images.

    Cost: one evaluation of the network with gradients, and one for the derivative on the part ``share`` of the batch.

    Raises:
        ValueError: for a field with one time, or a flow whose path does not predict the velocity.

    Source: Geng et al., Mean Flows for One-step Generative Modeling, 2025, arXiv:2505.13447 (there steps go from data
    to noise, which changes the sign of the derivative).

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, paths
        >>> field = fields.MLP(2, hidden=(16,), two_times=True)
        >>> flow = cflow.ContinuousFlow(field, bases.Normal(2), path=paths.Linear())
        >>> MeanFlow()(flow, torch.randn(16, 2)).shape
        torch.Size([16])
    """

    def _error(self, flow: Any, t: Tensor, s: Tensor, x: Tensor, v: Tensor, context) -> Tensor:
        steps = Steps(flow.manifold)
        ask, long = lambda t, x: flow.predict(t, x, context, s=s), lambda t: expand_like(s - t, x)
        if steps.flat:
            u, change = jvp(ask, (t, x), (torch.ones_like(t), v))
            return steps.square(x, u - (v + long(t) * change.detach()))
        with torch.no_grad():
            arrive = lambda t, x: steps.end(x, long(t) * ask(t, x))
            end, residual = jvp(arrive, (t, x), (torch.ones_like(t), v))
        u = ask(t, x)
        return steps.square(end, steps.follow(residual, x, long(t) * u.detach(), u))
