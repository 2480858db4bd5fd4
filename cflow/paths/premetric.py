"""Premetric paths: from base to data along curves on which a distance decreases, on manifolds without geodesics."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from cflow.arguments import check_integer
from cflow.paths.affine import AffinePath
from cflow.paths.geodesic import Geodesic
from cflow.paths.path import PathSample
from cflow.registry import register
from cflow.shapes import expand_like

__all__ = ["Premetric"]


@register("paths.Premetric")
class Premetric(Geodesic):
    r"""Connects base and data along curves on which the distance to the data decreases.

    .. math:: u_t = -\frac{\dot\kappa_t}{1 - \kappa_t} \, d(x_t, x_1) \, \frac{\nabla d(x_t, x_1)}{|\nabla d|^2},
              \qquad d(x_t, x_1) = (1 - \kappa_t) \, d(x_0, x_1)

    The distance is the manifold's (``manifold.premetric``): a spectral one on a mesh, where shortest geodesics are
    expensive. Elsewhere it is that of geodesics, and the path is :class:`Geodesic`, at more cost.

    The points are simulated, by Euler steps along geodesics, and do not depend on the network. So objectives simulate
    ahead of the step, and use several points of each curve: ``objectives.FlowMatching(points_per_pair=8)``.

    Near a point that is farthest from the data the gradient vanishes, and the velocity is cut at ``limit``. The curve
    makes up for the delay later, so the marginals are still those of the data.

    Args:
        schedule: an affine path, whose weight of the data is :math:`\kappa`. Default: None, ``paths.Linear()``.
        steps: the number of Euler steps from base to data.
        limit: the largest speed against :math:`\kappa`, in units of the size of the manifold: the d-th root of its
            volume, d being its dimension.
        predict: what the network predicts: the velocity.
        margin: the path ends at ``1 - kappa = margin``; an Euler step covers the rest.

    Shapes: events are those of the manifold. Cost: ``steps`` gradients of the distance and steps of ``exp``.

    Raises:
        ValueError: for an invalid number of steps, limit or margin; without a manifold, when the path is used.
        TypeError: if the schedule is not an affine path.

    Source: Chen and Lipman, Flow Matching on General Geometries, 2023, arXiv:2302.03660, section 3.2; there d at the
    start replaces d at the present point, which is equal on the exact curve, but does not correct errors of the steps.

    Example:
        >>> import torch
        >>> from cflow import manifolds
        >>> path = Premetric().on(manifolds.Sphere(1))
        >>> sample = path.sample(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0.5]))
        >>> sample.xt, sample.target
        (tensor([[0.7071, 0.7071]]), tensor([[-1.1107,  1.1107]]))
    """

    predictions = ("velocity",)
    simulates = True

    def __init__(
        self,
        schedule: AffinePath | None = None,
        steps: int = 100,
        limit: float = 4.0,
        predict: Literal["velocity"] = "velocity",
        *,
        margin: float = 1e-3,
    ):
        check_integer("Premetric", "steps", steps, 1, "steps is an integer of at least 1; pass 100.")
        if not limit > 0:
            raise ValueError(f"Premetric(limit={limit}): the largest speed is positive; pass 4.0.")
        self.steps, self.limit = steps, limit
        super().__init__(schedule, predict, margin=margin)

    def _interval(self) -> tuple[float, float]:
        # The distance at the data's end is zero, and has no gradient there.
        return 0.0, Geodesic(self.schedule, "x1", margin=self.margin).interval[1]

    def sample(self, x0, x1, t, *, mask=None, noise=None, generator=None) -> PathSample:
        """Simulates the curves from ``x0`` to ``x1`` and returns their points at times ``t``, with the velocities.

        The path adds no noise: ``noise`` and ``generator`` are not used. A ``mask`` is refused.
        """
        self._check_ends(x0, x1, t)
        return self.simulate(x0, x1, t.expand(len(x1)).unsqueeze(0), mask=mask)

    def simulate(self, x0: Tensor, x1: Tensor, t: Tensor, *, mask: Tensor | None = None) -> PathSample:
        if mask is not None:
            raise ValueError(f"{self!r}: this path does not support a mask; use paths.Geodesic().")
        manifold, kappa = self.manifold, self.schedule.alpha(t)
        limit = self.limit * math.exp(manifold.log_volume / manifold.dim)
        xt, ut = (each.flatten(0, 1) for each in manifold.descent(x0, x1, kappa, steps=self.steps, limit=limit))
        count, t = len(t), t.flatten()
        scale = self.schedule.d_alpha(t)
        repeat = lambda x: x.repeat(count, *[1] * (x.dim() - 1))
        return PathSample(xt, t, repeat(x0), repeat(x1), expand_like(scale, ut) * ut)

    def __repr__(self) -> str:
        return f"Premetric(steps={self.steps})"
