"""Conformance of stochastic interpolants, tested with Gaussian ends."""

from __future__ import annotations

import torch
from torch import Tensor

from cflow import bases
from cflow.continuous.flow import ContinuousFlow
from cflow.fields import Field
from cflow.paths import Interpolant
from cflow.paths.interpolant import SCORED
from cflow.registry import register
from cflow.shapes import expand_like
from cflow.solvers import Dopri5
from cflow.testing.checks import close, demand

__all__ = ["GaussianBridgeField", "check_interpolant"]


@register("testing.GaussianBridgeField")
class GaussianBridgeField(Field):
    r"""Computes what the optimal network predicts on an interpolant between two independent normals.

    .. math:: x_t \sim \mathcal N(\mu_t, v_t), \quad \mu_t = \alpha m_1 + \sigma m_0,
              \quad v_t = \alpha^2 s_1^2 + \sigma^2 s_0^2 + \gamma^2

    All entries of an event have the same distribution. Use this field to test bridges and stochastic solvers.

    Args:
        path: the interpolant.
        event_shape: the shape of one event.
        source: mean and standard deviation at ``t = 0``.
        target: mean and standard deviation at ``t = 1``.

    Shapes: those of a field; two outputs ``[B, 2, *event]`` if the path has two.

    Example:
        >>> from cflow import paths
        >>> field = GaussianBridgeField(paths.BrownianBridge(1.0), source=(-1.0, 1.0), target=(1.0, 1.0))
        >>> field(torch.tensor(0.5), torch.ones(1, 1))  # the drift is 2; the score points to the mean 0, variance 0.75
        tensor([[[ 2.0000],
                 [-1.3333]]])
    """

    def __init__(self, path: Interpolant, event_shape=1, source=(-1.0, 0.8), target=(0.7, 0.5)):
        super().__init__(event_shape)
        self.path, self.source, self.target, self.outputs = path, source, target, path.outputs
        self.register_buffer("scale", torch.ones(()))

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and variance of the marginal at ``t``."""
        (m0, s0), (m1, s1) = self.source, self.target
        a, s, g = self.path.schedule.alpha(t), self.path.schedule.sigma(t), self.path.gamma(t)
        return a * m1 + s * m0, (a * s1) ** 2 + (s * s0) ** 2 + g**2

    def parts(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the expected drift, the expected noise and the score at ``t`` and ``x``."""
        (m0, s0), (m1, s1) = self.source, self.target
        mean, variance = (expand_like(each, x) for each in self.moments(t))
        c, gamma = self.path.schedule.coefficients(t, x), expand_like(self.path.gamma(t), x)
        gap = (x - mean) / variance
        drift = c.d_alpha * (m1 + c.alpha * s1**2 * gap) + c.d_sigma * (m0 + c.sigma * s0**2 * gap)
        return drift, gamma * gap, -gap

    def forward(self, t: Tensor, x: Tensor, context=None, *, s=None) -> Tensor:
        t = self.check(t, x, context, s)
        drift, noise, score = self.parts(t, x)
        velocity = drift + expand_like(self.path.gamma.slope(t), x) * noise
        match self.path.predict:
            case "velocity":
                return velocity
            case "velocity+score":
                return torch.stack((velocity, score), 1)
            case "noise":
                return torch.stack((drift, noise), 1)
            case "score":
                return torch.stack((drift, score), 1)


def check_interpolant(path: Interpolant) -> None:
    """Checks an interpolant: ends, derivatives of the noise, targets, conversions, and the flow between Gaussian ends.

    Args:
        path: the interpolant.

    Raises:
        AssertionError: if a property fails; the message states which.

    Example:
        >>> from cflow import paths
        >>> check_interpolant(paths.BrownianBridge(0.5))
    """
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    demand(not path.gamma(t[[0, -1]]).any(), "there is no noise at the ends")
    inside = t[1:-1].clone().requires_grad_()
    for name, value, slope in (
        ("slope", path.gamma(inside), path.gamma.slope(inside)),
        ("d_square", path.gamma(inside) ** 2, path.gamma.d_square(inside)),
    ):
        close(slope, torch.autograd.grad(value.sum(), inside)[0], 1e-9, f"gamma.{name} is the derivative")
    demand(path.gamma.d_square(t).isfinite().all(), "the derivative of the variance is finite at the ends")

    low, high = path.interval
    x0, x1, noise = torch.randn(3, 64, 3, generator=generator, dtype=torch.float64)
    for where in (low, (low + high) / 2, high):
        at = torch.full((64,), where, dtype=torch.float64)
        sample = path.sample(x0, x1, at, noise=noise)
        demand(sample.target.isfinite().all(), f"the target is finite at t = {where}")
        demand(path.loss(sample.target, sample).shape == (64,), "the loss is per item")
    first, second = (path.sample(x0, x1, at, generator=torch.Generator().manual_seed(1)).xt for _ in range(2))
    demand(torch.equal(first, second), "the noise is the same for the same generator")
    ends = torch.cat((torch.zeros(32), torch.ones(32))).double()
    close(path.sample(x0, x1, ends, noise=noise).xt, torch.cat((x0[:32], x1[32:])), 1e-12, "the ends are the pair's")

    # The conversions assume the optimum, which is the least-squares predictor of the target from x_t.
    count, field = 400_000, GaussianBridgeField(path).double()
    x0, x1 = (mean + std * torch.randn(count, 1, generator=generator, dtype=torch.float64)
              for mean, std in (field.source, field.target))  # fmt: skip
    for where in (0.2, 0.6):
        at = torch.full((count,), where, dtype=torch.float64)
        sample = path.sample(x0, x1, at, generator=generator)
        optimum = field(at, sample.xt)
        design = torch.cat((torch.ones_like(sample.xt), sample.xt), 1)
        target = sample.target.reshape(count, -1)
        fitted = design @ torch.linalg.lstsq(design, target).solution
        scaled = optimum.clone()
        if path.predict in SCORED:
            scaled[:, 1] *= expand_like(path.gamma(at), scaled[:, 1])
        gap = (fitted - scaled.reshape(count, -1)).square().mean().sqrt() / target.std()
        # Two coefficients from 400,000 draws: the gap is about 0.002; random errors never reach five times as much.
        demand(float(gap) < 0.01, f"the target at t = {where} has another optimum: gap {float(gap):.3g}")
        error = path.loss(optimum, sample).mean() - path.loss(optimum * 1.05, sample).mean()
        demand(float(error) < 0, "the loss is smaller at the optimum")

    _check_flow(path)


def _check_flow(path: Interpolant) -> None:
    field = GaussianBridgeField(path, 2).double()
    tight = Dopri5(rtol=1e-9, atol=1e-9)
    flow = ContinuousFlow(field, bases.Normal(2, *field.source), path=path, solver=tight).double()
    x0 = flow.base.sample((32,), generator=torch.Generator().manual_seed(1))
    low, high = path.interval
    for where in (0.1, 0.5, 0.9):
        at = torch.full((32,), where, dtype=torch.float64)
        drift, noise, score = field.parts(at, x0)
        velocity = drift + expand_like(path.gamma.slope(at), x0) * noise
        close(flow.velocity(where, x0), velocity, 1e-9, f"the velocity at t = {where}")
        if path.outputs == 2:
            close(flow.score(where, x0), score, 1e-9, f"the score at t = {where}")
    (m0, s0), (m1, s1) = field.source, field.target
    exact = m1 + s1 / s0 * (x0 - m0)
    # Outside the interval, Euler's step has an error of about the margin times the slope of the noise there.
    rest = 1e-7 if (low, high) == (0.0, 1.0) else 4 * float(path.gamma(torch.tensor(path.margin))) ** 2
    with torch.no_grad():
        close(flow.transport(x0, 0.0, 1.0).y, exact, rest, "samples agree with the closed-form flow map")
        logp = torch.distributions.Normal(m1, s1).log_prob(exact).sum(1)
        close(flow.log_prob(exact), logp, 100 * rest, "the log-density agrees with the closed form")
        x, logp = flow.sample_and_log_prob((32,), generator=torch.Generator().manual_seed(2))
        close(flow.log_prob(x), logp, 1e-6, "log_prob agrees with sample_and_log_prob")
