"""The geodesic path: from base to data along the shortest curve of a manifold."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from cflow.paths.affine import AffinePath
from cflow.paths.path import PathSample, VelocityPath, first_time
from cflow.paths.schedules import Linear
from cflow.registry import register
from cflow.shapes import expand_like

__all__ = ["Geodesic"]


@register("paths.Geodesic")
class Geodesic(VelocityPath):
    r"""Connects base and data by the shortest geodesic between them, on any manifold.

    .. math:: x_t = \exp_{x_0}\big(\kappa_t \log_{x_0} x_1\big),
              \qquad u_t = \frac{d x_t}{d t} = \frac{\dot\kappa_t}{1 - \kappa_t} \log_{x_t} x_1

    with :math:`\kappa` increasing from 0 to 1. The velocity is a tangent vector at :math:`x_t`, not at :math:`x_0`. The
    network predicts one of

    | ``predict``  | target                 | the velocity                                   | well conditioned if     |
    |--------------|------------------------|------------------------------------------------|-------------------------|
    | ``velocity`` | :math:`u_t`            | the prediction                                 | everywhere              |
    | ``x1``       | :math:`\log_{x_t} x_1` | the prediction times ``d_kappa / (1 - kappa)`` | ``1 - kappa >= margin`` |

    With ``x1`` the prediction is the tangent vector u that leads to the data, at :math:`\exp_{x_t} u`. Beyond the
    interval, a geodesic with that velocity covers the rest (:meth:`closed_form_step`).

    A flow binds the path to its manifold, which is that of its base, or its argument ``manifold``.

    Args:
        schedule: an affine path, whose weight of the data is :math:`\kappa`. Default: None, ``paths.Linear()``.
        predict: what the network predicts, see the table.
        margin: the smallest ``1 - kappa`` by which a prediction of ``x1`` is divided.

    Shapes: events are those of the manifold. Cost of a point: one ``geodesic``, in closed form on most manifolds.

    Raises:
        ValueError: for an unknown prediction or an invalid margin; without a manifold, when the path is used.
        TypeError: if the schedule is not an affine path.

    Source: Chen and Lipman, Flow Matching on General Geometries, 2023, arXiv:2302.03660; the prediction of the end:
    Zaghen et al., Towards Variational Flow Matching on General Geometries, 2025, arXiv:2502.12981.

    Example:
        >>> from cflow import manifolds
        >>> path = Geodesic().on(manifolds.Sphere(1))
        >>> sample = path.sample(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0.5]))
        >>> sample.xt, sample.target
        (tensor([[0.7071, 0.7071]]), tensor([[-1.1107,  1.1107]]))
    """

    predictions: ClassVar[tuple[str, ...]] = ("velocity", "x1")

    def __init__(
        self,
        schedule: AffinePath | None = None,
        predict: Literal["velocity", "x1"] = "velocity",
        *,
        margin: float = 1e-3,
    ):
        self.schedule = Linear() if schedule is None else schedule
        if isinstance(schedule, type) or not all(hasattr(self.schedule, name) for name in ("alpha", "d_alpha")):
            raise TypeError(f"Geodesic(schedule={schedule!r}): pass an affine path such as paths.Linear().")
        self._manifold = None
        super().__init__(predict, margin)

    def _interval(self) -> tuple[float, float]:
        low, high = 0.0, 1.0
        one = torch.ones((), dtype=torch.float64)
        if self.predict == "x1" or not bool(torch.isfinite(self.schedule.d_alpha(one))):
            high = first_time(lambda t: 1 - self.schedule.alpha(t) <= self.margin)
        return low, high

    @property
    def manifold(self) -> Any:
        """The manifold on which the path is.

        Raises:
            ValueError: if the path was not bound to one.
        """
        if self._manifold is None:
            raise ValueError(
                "paths.Geodesic(): it needs a manifold, and has none; build the flow with a base on one, such as "
                "manifolds.Uniform(manifolds.Sphere(2)), or pass manifold=..."
            )
        return self._manifold

    def on(self, manifold: Any) -> Geodesic:
        """Returns a copy of the path on a ``manifold``.

        Raises:
            ValueError: for None.
        """
        bound = copy.copy(self)
        bound._manifold = manifold
        bound.manifold  # noqa: B018 (raises for None)
        return bound

    # Training

    def sample(self, x0, x1, t, *, mask=None, noise=None, generator=None) -> PathSample:
        """Computes the points at times ``t [B]`` on the geodesics from ``x0`` to ``x1``, and the targets.

        The path adds no noise: ``noise`` and ``generator`` are not used. Entries outside ``mask`` do not move.
        """
        self._check_ends(x0, x1, t)
        kappa = self.schedule.alpha(t)
        xt, ut = self.manifold.geodesic(x0, x1, kappa, mask=mask)
        scale = self.schedule.d_alpha(t) if self.predict == "velocity" else 1 - kappa
        return PathSample(xt, t, x0, x1, expand_like(scale, ut) * ut, mask)

    def loss(self, prediction: Tensor, sample: PathSample) -> Tensor:
        r"""Computes the Riemannian squared error of ``prediction`` per dimension, :math:`|e|^2_{x_t} / d`, ``[B]``.

        Only entries in ``sample.mask`` count.
        """
        target = sample.target
        error = prediction.to(torch.promote_types(target.dtype, torch.float32)) - target
        square = self.manifold.inner(sample.xt, error, error, mask=sample.mask) / self.manifold.dim
        if sample.mask is None:
            return square
        share = sample.mask.expand_as(target).flatten(1).to(square.dtype).mean(1)
        return square / torch.where(share > 0, share, 1.0)

    # From the prediction to what a solver uses

    def velocity(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Converts the network's ``prediction`` at ``(t, x)`` to the marginal velocity; ``t`` is in ``interval``."""
        if self.predict == "velocity":
            return prediction
        return expand_like(self.schedule.d_alpha(t) / (1 - self.schedule.alpha(t)), prediction) * prediction

    def closed_form_step(self, velocity, point, tau, x, t, s):
        r"""Moves ``x`` from ``t`` to ``s`` along the geodesic with the ``velocity`` at ``(tau, point)``.

        .. math:: x_s = \exp_x\Big(\frac{\kappa_s - \kappa_t}{\dot\kappa_\tau} v\Big)
        """
        ahead = (self.schedule.alpha(s) - self.schedule.alpha(t)) / self.schedule.d_alpha(tau)
        point, x = self.manifold.project(point), self.manifold.project(x)
        velocity = self.manifold.transport(point, x, velocity)  # unchanged where the two are the same
        return self.manifold.exp(x, expand_like(ahead, x) * velocity)
