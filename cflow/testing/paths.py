"""Conformance of affine paths, tested with Gaussian data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cflow import bases
from cflow.continuous.flow import ContinuousFlow
from cflow.fields import Field
from cflow.paths import AffinePath
from cflow.registry import register
from cflow.shapes import expand_like, rows
from cflow.solvers import Dopri5
from cflow.testing.checks import close, demand

__all__ = ["GaussianField", "check_path"]


@register("testing.GaussianField")
class GaussianField(Field):
    r"""Computes what a perfect network predicts, for data :math:`\mathcal N(m, s^2)` and a standard normal base.

    .. math:: \mathbb E[x_1 | x_t] = m + \frac{\alpha s^2 (x_t - \alpha m)}{\alpha^2 s^2 + \sigma^2}, \qquad
              \mathbb E[x_0 | x_t] = \frac{\sigma (x_t - \alpha m)}{\alpha^2 s^2 + \sigma^2}

    Use this field to test paths, solvers and guidance: :meth:`carry` computes the flow map and its ``log|det|`` in
    closed form.

    Args:
        path: the path.
        event_shape: the shape of one event.
        mean: the mean of the data.
        std: the standard deviation of the data.

    Example:
        >>> from cflow import paths
        >>> field = GaussianField(paths.Linear(), 1, mean=1.0, std=0.5)
        >>> field(torch.tensor(0.0), torch.zeros(1, 1)).item()
        1.0
    """

    def __init__(self, path: AffinePath, event_shape=1, mean: float = 0.0, std: float = 1.0):
        super().__init__(event_shape)
        self.path, self.mean, self.std = path, mean, std
        self.scale = nn.Parameter(torch.ones(()))  # a parameter, so that dtype and gradients are as in a network

    def ends(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the expected data and base samples, given ``x`` at ``t``."""
        alpha, sigma = expand_like(self.path.alpha(t), x), expand_like(self.path.sigma(t), x)
        ratio = (x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + alpha * self.std**2 * ratio, sigma * ratio

    def forward(self, t: Tensor, x: Tensor, context=None, *, s=None) -> Tensor:
        t = self.check(t, x, context, s)
        return self.scale * self.path.express(*self.ends(t, x), t)

    def _spread(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.path.alpha(t) ** 2 * self.std**2 + self.path.sigma(t) ** 2)

    def carry(self, x: Tensor, t0: float, t1: float) -> tuple[Tensor, Tensor]:
        """Moves ``x [B, *event]`` from ``t0`` to ``t1`` exactly; returns ``(x, ladj [B])``."""
        start, end = (torch.tensor(t, dtype=x.dtype) for t in (t0, t1))
        ratio = self._spread(end) / self._spread(start)
        moved = self.path.alpha(end) * self.mean + ratio * (x - self.path.alpha(start) * self.mean)
        return moved, rows(x).shape[1] * torch.log(ratio).expand(x.shape[0])


def check_path(path: AffinePath) -> None:
    """Checks an affine path: schedule, derivatives, conversions, targets, and a Gaussian flow against its closed form.

    Args:
        path: the path.

    Raises:
        AssertionError: if a property fails; the message states which.
        ValueError: for a path that predicts logits, since Gaussian data are not one-hot.

    Example:
        >>> from cflow import paths
        >>> check_path(paths.Linear())
    """
    if path.predict == "logits":
        raise ValueError(
            f"check_path({path!r}): the suite uses Gaussian data, which are not one-hot; check the same schedule with "
            f"predict='x1'."
        )
    double = {"dtype": torch.float64}
    ends = torch.tensor([0.0, 1.0], **double)
    alpha, sigma = path.alpha(ends), path.sigma(ends)
    demand(float(alpha[0]) < 0.02 and abs(float(alpha[1]) - 1) < 1e-12, f"alpha runs from 0 to 1, not {alpha.tolist()}")
    demand(abs(float(sigma[0]) - 1) < 1e-4 and float(sigma[1]) < 0.5, f"sigma falls from 1, not {sigma.tolist()}")

    t = torch.linspace(0.02, 0.98, 33, **double)
    demand((path.alpha(t).diff() > 0).all() and (path.sigma(t).diff() < 0).all(), "alpha rises and sigma falls")
    close(path.time_at(path.alpha(t), path.sigma(t)), t, 1e-9, "time_at inverts the schedule")
    inside = t.clone().requires_grad_()
    for name in ("alpha", "sigma"):
        slope = torch.autograd.grad(getattr(path, name)(inside).sum(), inside)[0]
        close(getattr(path, f"d_{name}")(t), slope, 1e-9, f"d_{name} is the derivative of {name}")

    _check_path_training(path)
    _check_path_flow(path)


def _check_path_training(path: AffinePath) -> None:
    generator = torch.Generator().manual_seed(0)
    low, high = path.interval
    x0, x1 = torch.randn(2, 64, 3, generator=generator, dtype=torch.float64)
    for where in (low, high, (low + high) / 2):
        at = torch.full((64,), where, dtype=torch.float64)
        sample = path.sample(x0, x1, at)
        demand(sample.target.isfinite().all(), f"the target is finite at t = {where}")
        demand(
            (path.loss(sample.target, sample) < 1e-20).all(), f"the loss of the target itself is zero at t = {where}"
        )
        demand(path.loss(sample.target + 1, sample).shape == (64,), "the loss is per item")
    mask = torch.tensor([True, True, False])
    sample = path.sample(x0, x1, at, mask=mask)
    error = torch.tensor([1.0, 1.0, 100.0], dtype=torch.float64)
    close(
        path.loss(sample.target + error, sample),
        path.loss(sample.target + 1, sample),
        1e-9,
        "a masked entry has no loss",
    )

    # The conversions assume the optimum, which is the least-squares predictor of the target from x_t.
    count, mean, std = 400_000, 0.7, 0.5
    x0, x1 = torch.randn(2, count, 1, generator=generator, dtype=torch.float64)
    x1 = mean + std * x1
    oracle = GaussianField(path, 1, mean, std).double().requires_grad_(False)
    for where in (0.2, 0.6):
        sample = path.sample(x0, x1, torch.full((count,), where, dtype=torch.float64))
        design = torch.cat([torch.ones_like(sample.xt), sample.xt], 1)
        fitted = design @ torch.linalg.lstsq(design, sample.target).solution
        gap = (fitted - oracle(sample.t, sample.xt)).square().mean().sqrt() / sample.target.std()
        # Two coefficients from 400,000 draws: the gap is about 0.002; random errors never reach five times as much.
        demand(float(gap) < 0.01, f"the regression target at t = {where} has another optimum: gap {float(gap):.3g}")


def _check_path_flow(path: AffinePath) -> None:
    mean, std = 0.7, 0.5
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(32, 2, generator=generator, dtype=torch.float64)
    low, high = path.interval
    for where in (low, 0.3, 0.9, high):
        at = torch.tensor(where, dtype=torch.float64)
        field = GaussianField(path, 2, mean, std).double()
        c = path.coefficients(at, x0)
        x1_mean, x0_mean = field.ends(at, x0)
        exact = c.d_alpha * x1_mean + c.d_sigma * x0_mean
        scale = 1 + float(exact.abs().max())
        close(path.velocity(field(at, x0), x0, at), exact, 1e-8 * scale, f"the velocity at t = {where}")
        if path.ends_interval[0] <= where:
            for found, true in zip(path.ends(field(at, x0), x0, at), (x1_mean, x0_mean)):
                close(found, true, 1e-7 * scale, f"the expected ends at t = {where}")

    tight = Dopri5(rtol=1e-9, atol=1e-9)
    flow = ContinuousFlow(field, bases.Normal(2), path=path, solver=tight).double()
    whole, margin = path.interval == (0.0, 1.0), path.margin
    exact, ladj = field.carry(x0, 0.0, 1.0)
    # The error of the closed-form steps at the ends is of second order in the margin.
    second = 1e-7 if whole else 10 * margin**2 + 1e-7
    with torch.no_grad():
        close(flow.transport(x0, 0.0, 1.0).y, exact, second, "samples agree with the closed-form flow map")
        close(flow.transport(exact, 1.0, 0.0).y, x0, 10 * second, "latents agree with the closed-form flow map")
        # For a density, the steps at the ends change the scale, which is accurate to first order in the margin.
        first = 1e-6 if whole else 5 * margin
        normal = torch.distributions.Normal(0.0, 1.0)
        logp = normal.log_prob(x0).sum(1) - ladj
        close(flow.log_prob(exact), logp, 10 * first, "the log-density agrees with the closed form")
        # Also for an imperfect network, samples must have the density that log_prob computes.
        field.scale.mul_(0.8)
        x, logp = flow.sample_and_log_prob((32,), generator=generator)
        close(flow.log_prob(x), logp, 1e-5, "log_prob agrees with sample_and_log_prob for an imperfect network")
        z, ladj = flow.encode(x)
        back, inverse = flow.decode(z)
        close(back, x, 1e-5 * (1 + float(x.abs().max())), "decode inverts encode for an imperfect network")
        close(ladj, -inverse, 1e-5, "the two log-determinants are opposite for an imperfect network")
