"""Affine paths: a point on the path is a weighted sum of a base and a data sample."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from cflow.paths.path import PathSample, VelocityPath, cross_entropy, first_time, mean_square
from cflow.shapes import expand_like
from cflow.times import ArgmaxClock

__all__ = ["AffinePath"]

Prediction = Literal["velocity", "x1", "noise", "score", "logits"]


class Coefficients(NamedTuple):
    """A schedule at one time, shaped to multiply ``x``."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


class AffinePath(VelocityPath):
    r"""Connects base and data by a schedule.

    .. math:: x_t = \alpha_t x_1 + \sigma_t x_0,
              \qquad v_t = \dot\alpha_t \, \mathbb E[x_1 | x_t] + \dot\sigma_t \, \mathbb E[x_0 | x_t]

    with :math:`\alpha` increasing to 1 and :math:`\sigma` decreasing from 1. A subclass implements ``alpha``,
    ``sigma``, ``d_alpha`` and ``d_sigma``, and may implement ``time_at``. The network predicts one of

    | ``predict``  | target                      | the optimum                           | well conditioned if    |
    |--------------|-----------------------------|---------------------------------------|------------------------|
    | ``velocity`` | ``d_alpha x1 + d_sigma x0`` | the marginal velocity                 | derivatives are finite |
    | ``x1``       | ``x1``                      | the posterior mean of the data        | ``sigma >= margin``    |
    | ``noise``    | ``x0``                      | the posterior mean of the base        | ``alpha >= margin``    |
    | ``score``    | ``-x0 / sigma``             | the score, for a standard normal base | both                   |
    | ``logits``   | ``x1``, one-hot             | logits of the posterior mean          | ``sigma >= margin``    |

    With ``logits``, data are one-hot tokens ``[*positions, K]`` (``bijections.OneHot``). The softmax of the prediction
    over the last dimension is the posterior mean of the data, which here is the probability of every token. The loss is
    the cross-entropy per position, with the same optimum as the squared error of ``x1``.

    ``interval`` is the range of times in the last column: training draws times in it, and solvers stay in it. One
    closed-form step (:meth:`closed_form_step`), which is exact for a constant posterior mean, covers the rest of
    [0, 1].

    Args:
        predict: what the network predicts, see the table.
        margin: the smallest ``alpha`` or ``sigma`` by which a conversion divides.

    Source: Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants: A Unifying Framework for Flows and Diffusions,
    2023, arXiv:2303.08797; Lipman et al., Flow Matching Guide and Code, 2024, arXiv:2412.06264, section 4; for logits,
    One-step Language Modeling via Continuous Denoising, 2026, arXiv:2602.16813.

    Example:
        >>> class Squared(AffinePath):
        ...     def alpha(self, t):
        ...         return t**2
        ...
        ...     def sigma(self, t):
        ...         return 1 - t
        ...
        ...     def d_alpha(self, t):
        ...         return 2 * t
        ...
        ...     def d_sigma(self, t):
        ...         return -torch.ones_like(t)
        >>> Squared().sample(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.5])).xt
        tensor([[0.2500, 0.2500]])
    """

    predictions: ClassVar[tuple[str, ...]] = ("velocity", "x1", "noise", "score", "logits")
    affine: ClassVar[bool] = True

    def __init__(self, predict: Prediction = "velocity", *, margin: float = 1e-3):
        super().__init__(predict, margin)

    @property
    def linear(self) -> bool:
        """Whether the velocity is a weighted sum of the prediction and ``x``: not through the softmax of logits."""
        return self.predict != "logits"

    # The schedule: a subclass computes it for t of any shape

    def alpha(self, t: Tensor) -> Tensor:
        """Computes the weight of the data at times ``t`` of any shape."""
        raise self._incomplete()

    def sigma(self, t: Tensor) -> Tensor:
        """Computes the weight of the base at times ``t``."""
        raise self._incomplete()

    def d_alpha(self, t: Tensor) -> Tensor:
        """Computes the derivative of ``alpha`` at times ``t``."""
        raise self._incomplete()

    def d_sigma(self, t: Tensor) -> Tensor:
        """Computes the derivative of ``sigma`` at times ``t``."""
        raise self._incomplete()

    def _incomplete(self) -> TypeError:
        return TypeError(f"{type(self).__name__} has no schedule; use paths.Linear or another subclass.")

    def time_at(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Computes the time at which the schedule has the ratio ``alpha / sigma``, which increases with time.

        This method uses bisection to the last bit: 24 evaluations of the schedule in float32. A subclass that knows the
        inverse of its schedule overrides it.
        """
        low, high = torch.zeros_like(alpha), torch.ones_like(alpha)
        for _ in range(1 - int(math.log2(torch.finfo(alpha.dtype).eps))):
            middle = (low + high) / 2
            before = self.alpha(middle) * sigma < self.sigma(middle) * alpha
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
        return (low + high) / 2

    def coefficients(self, t: Tensor, x: Tensor) -> Coefficients:
        """Computes the schedule and its derivatives at ``t`` ([] or [B]), shaped to multiply ``x [B, *event]``."""
        return Coefficients(*(expand_like(f(t), x) for f in (self.alpha, self.sigma, self.d_alpha, self.d_sigma)))

    def norm(self, t: Tensor) -> Tensor:
        """Computes the standard deviation of the points at times ``t`` if base and data have unit variance."""
        return torch.hypot(self.alpha(t), self.sigma(t))

    def _interval(self) -> tuple[float, float]:
        """Computes the times at which conversions of the prediction divide by the margin or more."""
        one, m = torch.ones((), dtype=torch.float64), torch.tensor(self.margin, dtype=torch.float64)
        low, high = 0.0, 1.0
        if self.predict in ("noise", "score") and float(self.alpha(0 * one)) < self.margin:
            low = first_time(lambda t: self.alpha(t) >= m)
        steep = not bool(torch.isfinite(self.d_sigma(one)))
        if (self.predict in ("x1", "score", "logits") or steep) and float(self.sigma(one)) < self.margin:
            high = first_time(lambda t: self.sigma(t) <= m)
        return low, high

    @property
    def ends_interval(self) -> tuple[float, float]:
        """The times at which :meth:`ends` divides by the margin or more."""
        return self.interval

    @property
    def score_interval(self) -> tuple[float, float]:
        """The times at which the score divides by the margin or more.

        A score is the expected base sample divided by ``sigma``; if the network predicts ``x1`` or its logits, that
        base sample was divided by ``sigma`` before.
        """
        low, high = self.ends_interval
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        small = self.margin**0.5 if self.predict in ("x1", "logits") else self.margin
        if float(self.sigma(ends)[1]) < small:
            high = min(high, first_time(lambda t: self.sigma(t) <= small))
        if float(self._determinant(ends)[0].abs()) < self.margin:  # guided velocities are solved for the ends
            low = max(low, first_time(lambda t: self._determinant(t).abs() >= self.margin))
        return low, high

    def _determinant(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self.d_sigma(t) - self.sigma(t) * self.d_alpha(t)

    def check_base(self, base) -> None:
        """Raises if the network predicts a score and ``base`` is not a standard normal, or logits without tokens."""
        if self.predict == "score" and not getattr(base, "is_standard", False):
            raise ValueError(
                f"ContinuousFlow(path={self!r}): a score needs a standard normal base, not {type(base).__name__}; use "
                f"bases.Normal(event_shape), or predict='velocity'."
            )
        if self.predict == "logits" and (not base.event_shape or base.event_shape[-1] < 2):
            raise ValueError(
                f"ContinuousFlow(path={self!r}): logits are over the last dimension, and events have shape "
                f"{tuple(base.event_shape)}; use a base with events [*positions, vocabulary]."
            )

    # Training

    def sample(self, x0, x1, t, *, mask=None, noise=None, generator=None) -> PathSample:
        """Computes the points at times ``t [B]`` between ``x0`` and ``x1`` ``[B, *event]``.

        Affine paths add no noise: ``noise`` and ``generator`` are not used, and ``mask`` is passed on.
        """
        self._check_ends(x0, x1, t)
        c = self.coefficients(t, x1)
        xt = c.alpha * x1 + c.sigma * x0
        match self.predict:
            case "velocity":
                target = c.d_alpha * x1 + c.d_sigma * x0
            case "x1" | "logits":
                target = x1
            case "noise":
                target = x0
            case "score":
                target = -x0 / c.sigma
        return PathSample(xt, t, x0, x1, target, mask)

    def loss(self, prediction: Tensor, sample: PathSample) -> Tensor:
        r"""Computes the mean squared error of ``prediction`` per item of ``sample``, ``[B]``, in float32 or better.

        Errors of scores are weighted by :math:`\sigma_t^2`: the loss is then the error of the noise, which is finite at
        the data's end. The mean is over the entries in ``sample.mask``. Logits have the cross-entropy instead, a mean
        over the positions in the mask.
        """
        if self.predict == "logits":
            return cross_entropy(prediction, sample.target, sample.mask)
        target = sample.target
        error = prediction.to(torch.promote_types(target.dtype, torch.float32)) - target
        if self.predict == "score":
            error = expand_like(self.sigma(sample.t), error) * prediction.to(error.dtype) + sample.x0
        return mean_square(error, sample.mask)

    def token_time(self, vocabulary: int) -> float:
        """Returns the time at which the largest entry of a one-hot vector in standard normal noise is its token.

        In 99.5 % of all cases, see :class:`cflow.times.ArgmaxClock`; ``vocabulary`` is the number of entries.
        """
        t = ArgmaxClock(vocabulary).icdf(torch.tensor(0.995, dtype=torch.float64))
        return min(float(self.time_at(t, 1 - t)), self.interval[1])

    def log_given(self, sample: PathSample, base) -> Tensor:
        r"""Computes the log-density of the points of ``sample`` given their data, ``[B]``; ``base`` is that of ``x0``.

        .. math:: \log q_t(x_t | x_1) = \log p_0(x_0) - D \log \sigma_t
        """
        return base.log_prob(sample.x0) - math.prod(sample.xt.shape[1:]) * self.sigma(sample.t).log()

    # From the prediction to what a solver uses

    def ends(self, prediction: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the expected ends ``(x1, x0)`` from the network's ``prediction`` at ``(t, x)``."""
        c = self.coefficients(t, x)
        match self.predict:
            case "velocity":
                return self.velocity_ends(prediction, x, t)
            case "x1":
                return prediction, (x - c.alpha * prediction) / c.sigma
            case "logits":
                x1 = prediction.softmax(-1)
                return x1, (x - c.alpha * x1) / c.sigma
            case "noise":
                return (x - c.sigma * prediction) / c.alpha, prediction
            case "score":
                x0 = -c.sigma * prediction
                return (x - c.sigma * x0) / c.alpha, x0

    def velocity_ends(self, velocity: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the expected ends ``(x1, x0)`` from the ``velocity`` at ``(t, x)``."""
        c = self.coefficients(t, x)
        determinant = c.alpha * c.d_sigma - c.sigma * c.d_alpha
        return (c.d_sigma * x - c.sigma * velocity) / determinant, (c.alpha * velocity - c.d_alpha * x) / determinant

    def velocity(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Converts the network's ``prediction`` at ``(t, x)`` to the marginal velocity; ``t`` is in ``interval``."""
        if self.predict == "velocity":
            return prediction
        return self.combine(*self.ends(prediction, x, t), t)

    def velocity_trace(self, trace: Tensor, size: int, t: Tensor) -> Tensor:
        """Converts the trace of the prediction's Jacobian to the trace of the velocity's, ``[B]``.

        Where the path is ``linear``, the velocity is a weighted sum of the prediction and ``x``, so its trace is the
        same sum of their traces.

        Args:
            trace: the trace of the Jacobian of the prediction ``[B]``.
            size: the number of entries of an event, which is the trace for ``x``.
            t: the times, ``[]`` or ``[B]``.
        """
        return self.velocity(trace, torch.full_like(trace, size), t)

    def score(self, x0: Tensor, t: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
        r"""Computes the score from the expected base sample, for a normal base and independent pairs.

        .. math:: \nabla \log p_t(x) = -(\mathbb E[x_0 | x_t = x] - \mu_0) / (\sigma_t s_0^2)

        Args:
            x0: the expected base sample ``[B, *event]``, from :meth:`ends`.
            t: the times, ``[]`` or ``[B]``.
            loc: the mean of the base.
            scale: the standard deviation of the base.
        """
        return (loc - x0) / (expand_like(self.sigma(t), x0) * scale**2)

    def express(self, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Converts expected ends ``x1`` and ``x0`` at time ``t`` to this path's prediction; inverts :meth:`ends`."""
        match self.predict:
            case "velocity":
                return self.combine(x1, x0, t)
            case "x1":
                return x1
            case "noise":
                return x0
            case "score":
                return -x0 / expand_like(self.sigma(t), x0)
            case "logits":
                return x1.clamp(min=torch.finfo(x1.dtype).tiny).log()

    def combine(self, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Computes the velocity at time ``t`` from the expected ends ``x1`` and ``x0``."""
        return expand_like(self.d_alpha(t), x1) * x1 + expand_like(self.d_sigma(t), x0) * x0

    def step(self, prediction, x, t, s, *, mask=None, generator=None) -> Tensor:
        r"""Moves ``x`` from ``t`` to ``s`` with fixed expected ends; only entries in ``mask`` move.

        .. math:: x_s = x_t + (\alpha_s - \alpha_t) \hat x_1 + (\sigma_s - \sigma_t) \hat x_0

        The time ``t`` is inside ``interval``. Cost: no function evaluation and no draws; ``generator`` is not used.

        Source: Song, Meng and Ermon, Denoising Diffusion Implicit Models, 2020, arXiv:2010.02502.
        """
        x1, x0 = self.ends(prediction, x, t)
        moved = x + self.increment(x1, x0, t, s)
        return moved if mask is None else torch.where(mask, moved, x)

    def increment(self, x1: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Computes the change from time ``t`` to ``s`` for fixed ends ``x1`` and ``x0``."""
        change = expand_like(self.alpha(s) - self.alpha(t), x1) * x1
        return change + expand_like(self.sigma(s) - self.sigma(t), x0) * x0

    def closed_form_step(self, velocity, point, tau, x, t, s):
        """Moves ``x`` from ``t`` to ``s``, with the expected ends of ``velocity`` at ``(tau, point)`` fixed."""
        return x + self.increment(*self.velocity_ends(velocity, point, tau), t, s)

    def scale_change(self, t: Tensor, s: Tensor, *, at_data: bool) -> Tensor:
        """Computes the ratio of the data's weights at ``s`` and ``t`` at the data's end, else the ratio of the norms.

        At the data's end (``at_data``) the noise of the margin remains; at the base's end, ``margin`` times the data's
        mean is neglected.
        """
        size = self.alpha if at_data else self.norm
        return size(s) / size(t)
