"""Affine paths: a point on the way is a weighted sum of a base and a data sample."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from cflow.paths.path import PathSample, VelocityPath, first_time, mean_square
from cflow.shapes import expand_like

__all__ = ["AffinePath"]

Prediction = Literal["velocity", "x1", "noise", "score"]


class Coefficients(NamedTuple):
    """A schedule at one time, shaped to multiply ``x``."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


class AffinePath(VelocityPath):
    r"""Joins base and data by a schedule.

    .. math:: x_t = \alpha_t x_1 + \sigma_t x_0, \qquad
              v_t = \dot\alpha_t \, \mathbb E[x_1 | x_t] + \dot\sigma_t \, \mathbb E[x_0 | x_t]

    with :math:`\alpha` rising to 1 and :math:`\sigma` falling from 1. A subclass gives ``alpha``, ``sigma``,
    ``d_alpha``, ``d_sigma`` and ``time_at``. The network predicts one of

    ============ ============================= ====================================== =======================
    ``predict``  target                        what the optimum is                    well conditioned where
    ============ ============================= ====================================== =======================
    velocity     ``d_alpha x1 + d_sigma x0``   the marginal velocity                  derivatives are finite
    x1           ``x1``                        the posterior mean of the data         ``sigma >= margin``
    noise        ``x0``                        the posterior mean of the base         ``alpha >= margin``
    score        ``-x0 / sigma``               the score, for a standard normal base  both
    ============ ============================= ====================================== =======================

    ``interval`` is that range of times: training draws times in it, solvers stay in it, and the rest of [0, 1] is
    crossed by one closed-form step (:meth:`closed_form_step`), which is exact for a constant posterior mean.

    Args:
        predict: what the network predicts.
        margin: the smallest ``alpha`` or ``sigma`` by which a conversion divides.

    Source: Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants: A Unifying Framework for Flows and Diffusions,
    2023, arXiv:2303.08797; Lipman et al., Flow Matching Guide and Code, 2024, arXiv:2412.06264, section 4.
    """

    predictions: ClassVar[tuple[str, ...]] = ("velocity", "x1", "noise", "score")
    affine: ClassVar[bool] = True

    def __init__(self, predict: Prediction = "velocity", *, margin: float = 1e-3):
        super().__init__(predict, margin)

    # The schedule, which a subclass gives for t of any shape

    def alpha(self, t: Tensor) -> Tensor:
        """Gives the weight of the data."""
        raise TypeError(f"{type(self).__name__} gives no schedule; use paths.Linear or another member.")

    sigma = d_alpha = d_sigma = alpha

    def time_at(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Finds the time at which the schedule has the ratio ``alpha / sigma``, which grows with time.

        By bisection to the last bit, some 24 evaluations of the schedule in float32; a subclass that knows the inverse
        of its schedule gives it in closed form.
        """
        low, high = torch.zeros_like(alpha), torch.ones_like(alpha)
        for _ in range(1 - int(math.log2(torch.finfo(alpha.dtype).eps))):
            middle = (low + high) / 2
            before = self.alpha(middle) * sigma < self.sigma(middle) * alpha
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
        return (low + high) / 2

    def coefficients(self, t: Tensor, x: Tensor) -> Coefficients:
        """Gives the schedule and its derivatives at ``t`` ([] or [B]), shaped to multiply ``x [B, *event]``."""
        return Coefficients(*(expand_like(f(t), x) for f in (self.alpha, self.sigma, self.d_alpha, self.d_sigma)))

    def norm(self, t: Tensor) -> Tensor:
        """Gives the standard deviation of ``x_t`` where base and data have unit variance."""
        return torch.hypot(self.alpha(t), self.sigma(t))

    def _interval(self) -> tuple[float, float]:
        """Finds where the prediction's conversion divides by nothing smaller than the margin."""
        one, m = torch.ones((), dtype=torch.float64), torch.tensor(self.margin, dtype=torch.float64)
        low, high = 0.0, 1.0
        if self.predict in ("noise", "score") and float(self.alpha(0 * one)) < self.margin:
            low = first_time(lambda t: self.alpha(t) >= m)
        steep = not bool(torch.isfinite(self.d_sigma(one)))
        if (self.predict in ("x1", "score") or steep) and float(self.sigma(one)) < self.margin:
            high = first_time(lambda t: self.sigma(t) <= m)
        return low, high

    @property
    def ends_interval(self) -> tuple[float, float]:
        """The times at which :meth:`ends` divides by nothing smaller than the margin."""
        return self.interval

    @property
    def score_interval(self) -> tuple[float, float]:
        """The times at which the score divides by nothing smaller than the margin.

        A score is the expected base sample over ``sigma``, and that of a network that predicts ``x1`` is divided by it
        already.
        """
        low, high = self.ends_interval
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        small = self.margin**0.5 if self.predict == "x1" else self.margin
        if float(self.sigma(ends)[1]) < small:
            high = min(high, first_time(lambda t: self.sigma(t) <= small))
        if float(self._determinant(ends)[0].abs()) < self.margin:  # guided velocities are solved for the ends
            low = max(low, first_time(lambda t: self._determinant(t).abs() >= self.margin))
        return low, high

    def _determinant(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self.d_sigma(t) - self.sigma(t) * self.d_alpha(t)

    # Training

    def sample(self, x0, x1, t, *, mask=None, noise=None, generator=None) -> PathSample:
        """Computes the point at time ``t [B]`` between ``x0`` and ``x1`` ``[B, *event]``; affine paths add no noise."""
        self._check_ends(x0, x1, t)
        c = self.coefficients(t, x1)
        xt = c.alpha * x1 + c.sigma * x0
        match self.predict:
            case "velocity":
                target = c.d_alpha * x1 + c.d_sigma * x0
            case "x1":
                target = x1
            case "noise":
                target = x0
            case "score":
                target = -x0 / c.sigma
        return PathSample(xt, t, x0, x1, target, mask)

    def loss(self, prediction: Tensor, sample: PathSample) -> Tensor:
        r"""Computes the mean squared error of the prediction per item, ``[B]``, in float32 or better.

        Scores are weighted by :math:`\sigma_t^2`, so that the loss is finite at the data's end (it is then the error of
        the noise). Where a mask is given, only what it marks counts, and the mean is over the marked entries.
        """
        target = sample.target
        error = prediction.to(torch.promote_types(target.dtype, torch.float32)) - target
        if self.predict == "score":
            error = expand_like(self.sigma(sample.t), error) * prediction.to(error.dtype) + sample.x0
        return mean_square(error, sample.mask)

    # From the prediction to what a solver uses

    def ends(self, prediction: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Solves the prediction and ``x`` at time ``t`` for the expected ends ``(x1, x0)``."""
        c = self.coefficients(t, x)
        match self.predict:
            case "velocity":
                return self.velocity_ends(prediction, x, t)
            case "x1":
                return prediction, (x - c.alpha * prediction) / c.sigma
            case "noise":
                return (x - c.sigma * prediction) / c.alpha, prediction
            case "score":
                x0 = -c.sigma * prediction
                return (x - c.sigma * x0) / c.alpha, x0

    def velocity_ends(self, velocity: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Solves a velocity and ``x`` at time ``t`` for the expected ends ``(x1, x0)``."""
        c = self.coefficients(t, x)
        determinant = c.alpha * c.d_sigma - c.sigma * c.d_alpha
        return (c.d_sigma * x - c.sigma * velocity) / determinant, (c.alpha * velocity - c.d_alpha * x) / determinant

    def velocity(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Converts the network's prediction to the marginal velocity at ``(t, x)``; ``t`` inside ``interval``."""
        if self.predict == "velocity":
            return prediction
        return self.combine(*self.ends(prediction, x, t), t)

    def velocity_trace(self, trace: Tensor, size: int, t: Tensor) -> Tensor:
        """Converts the trace of the prediction's Jacobian, ``[B]``, to that of the velocity's.

        A velocity is a weighted sum of prediction and ``x``, entry by entry, so its trace is the same sum of their
        traces; that of ``x`` is ``size``, how many numbers an event has.
        """
        return self.velocity(trace, torch.full_like(trace, size), t)

    def score(self, x0: Tensor, t: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
        r"""Gives the score from the expected base sample, for a normal base of that mean and deviation.

        .. math:: \nabla \log p_t(x) = -(\mathbb E[x_0 | x_t = x] - \mu_0) / (\sigma_t s_0^2)

        Pairs must be independent.
        """
        return (loc - x0) / (expand_like(self.sigma(t), x0) * scale**2)

    def express(self, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Writes expected ends as this path's prediction: the inverse of :meth:`ends`."""
        match self.predict:
            case "velocity":
                return self.combine(x1, x0, t)
            case "x1":
                return x1
            case "noise":
                return x0
            case "score":
                return -x0 / expand_like(self.sigma(t), x0)

    def combine(self, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Gives the velocity from the expected ends."""
        return expand_like(self.d_alpha(t), x1) * x1 + expand_like(self.d_sigma(t), x0) * x0

    def step(self, prediction, x, t, s, *, mask=None, generator=None) -> Tensor:
        r"""Moves ``x`` from ``t`` to ``s`` with the expected ends held fixed; what ``mask`` does not mark stays.

        .. math:: x_s = x_t + (\alpha_s - \alpha_t) \hat x_1 + (\sigma_s - \sigma_t) \hat x_0

        Cost: no call of the network, no draws; ``t`` lies inside the interval.

        Source: Song, Meng and Ermon, Denoising Diffusion Implicit Models, 2020, arXiv:2010.02502.
        """
        x1, x0 = self.ends(prediction, x, t)
        moved = x + self.increment(x1, x0, t, s)
        return moved if mask is None else torch.where(mask, moved, x)

    def increment(self, x1: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Gives the change from time ``t`` to ``s`` for fixed ends."""
        change = expand_like(self.alpha(s) - self.alpha(t), x1) * x1
        return change + expand_like(self.sigma(s) - self.sigma(t), x0) * x0

    def closed_form_step(self, velocity: Tensor, x: Tensor, tau: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Computes the change from ``t`` to ``s`` with the expected ends at ``tau`` held fixed."""
        return self.increment(*self.velocity_ends(velocity, x, tau), t, s)

    def scale_change(self, t: Tensor, s: Tensor, *, at_data: bool) -> Tensor:
        """Computes the ratio of the data's weights at the data's end, of the norms at the base's.

        At the data's end the noise of the margin stays in; at the base's, ``margin`` times the data's mean is
        neglected.
        """
        size = self.alpha if at_data else self.norm
        return size(s) / size(t)
