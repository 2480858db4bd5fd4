"""Paths against closed forms: the conformance suite on every member, a ring, a change of schedule."""

import math

import pytest
import torch
from torch import nn

import cflow
from cflow import bases, paths, solvers
from cflow.testing import GaussianField, check_path

SCHEDULES = {
    "linear": paths.Linear,
    "sigma_min": lambda predict: paths.Linear(predict, sigma_min=1e-2),
    "square": lambda predict: paths.Polynomial(2.0, predict),
    "cube": lambda predict: paths.Polynomial(3.0, predict),
    "cosine": paths.Cosine,
    "vp": paths.VariancePreserving,
}
GAUSSIAN = ("velocity", "x1", "noise", "score")  # logits are for one-hot data
every_prediction = pytest.mark.parametrize("predict", GAUSSIAN)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@every_prediction
@every_schedule
def test_every_path_conforms(schedule, predict):
    check_path(schedule(predict))


@pytest.mark.parametrize("fault", ["alpha", "d_sigma", "time_at"])
def test_the_suite_finds_a_wrong_schedule(fault):
    class Wrong(paths.Linear):
        pass

    wrong = {"alpha": lambda self, t: t**2, "d_sigma": lambda self, t: -2 * t, "time_at": lambda self, a, s: 1 - s}
    setattr(Wrong, fault, wrong[fault])
    with pytest.raises(AssertionError):
        check_path(Wrong("velocity", sigma_min=0.1))


class RingField(nn.Module):
    """The exact answer for data spread evenly over points on a ring."""

    def __init__(self, path, radius=2.0, count=400):
        super().__init__()
        angle = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count
        self.path, self.points = path, radius * torch.stack([angle.cos(), angle.sin()], 1)

    def forward(self, t, x, context=None):
        alpha, sigma = self.path.alpha(t)[:, None], self.path.sigma(t)[:, None]
        distance = (x[:, None] - alpha[..., None] * self.points).square().sum(-1)
        x1 = torch.softmax(-distance / (2 * sigma**2), 1) @ self.points
        return self.path.express(x1, (x - alpha * x1) / sigma, t)


@every_prediction
@pytest.mark.parametrize("steps", [solvers.Euler(100), solvers.Heun(50), solvers.Dopri5(rtol=1e-5, atol=1e-5)])
def test_a_ring_is_sampled_at_its_radius(predict, steps, generator):
    """Data without width: the score explodes at the end, and a clamp short of it leaves a halo."""
    path = paths.Linear(predict)
    if predict in ("velocity", "noise"):
        # The network's exact velocity has no limit at t = 1 on points; a margin there is the data's, not the path's.
        path.interval = (path.interval[0], 0.999)
    flow = cflow.ContinuousFlow(RingField(path), bases.Normal(2), path=path).double()
    radius = flow.sample((200,), solver=steps, generator=generator).norm(dim=1)
    assert (radius - 2).abs().max() < 2e-3


@every_prediction
@every_schedule
def test_the_schedule_can_be_changed_after_training(schedule, predict):
    """Every pair of schedule and prediction is read on a linear velocity path, and back, with the same distribution."""
    mean, std = 0.7, 0.5
    trained = schedule(predict)
    tight = solvers.Dopri5(rtol=1e-9, atol=1e-9)
    flow = cflow.ContinuousFlow(GaussianField(trained, 1, mean, std), bases.Normal(1), path=trained, solver=tight)
    flow = flow.double()
    x0 = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for target in (paths.Linear(), paths.Cosine("x1"), paths.VariancePreserving("noise")):
        other = flow.with_path(target)
        x = other.transport(x0, 0.0, 1.0).y
        exact, _ = GaussianField(target, 1, mean, std).carry(x0, 0.0, 1.0)
        # Lipman's path and the variance-preserving one start or stop a little short of the pair's ends.
        short = 0.01 if any(isinstance(p, paths.VariancePreserving) for p in (trained, target)) else 2e-5
        short = max(short, 0.02 if getattr(trained, "sigma_min", 0) else 0)
        assert (x - exact).abs().max() < short
        assert x.isfinite().all()


def test_a_changed_schedule_is_finite_at_both_ends():
    """Peers return NaN or -6e7 at the ends for these pairs."""
    for trained, target in [
        (paths.Linear(), paths.Cosine()),
        (paths.VariancePreserving("noise"), paths.Linear()),
        (paths.Polynomial(3.0), paths.Linear()),
        (paths.Linear("x1"), paths.Cosine("score")),
    ]:
        field = paths.Rescheduled(GaussianField(trained, 1), trained, target)
        low, high = target.interval
        for t in (low, high):
            assert field(torch.tensor(t), torch.randn(4, 1)).isfinite().all()


@every_schedule
def test_the_score_counts_in_the_units_of_the_base(schedule, generator):
    """Normal data and a base of any mean and deviation, one per feature: x_t is normal, and so is its score."""
    path = schedule("velocity")
    loc, scale = torch.tensor([1.5, -3.0, 0.0]).double(), torch.tensor([2.0, 0.3, 1.0]).double()
    mean, std = torch.tensor([0.5, 4.0, -1.0]).double(), torch.tensor([0.4, 1.0, 2.5]).double()
    for at in (0.2, 0.7):
        t = torch.tensor(at, dtype=torch.float64)
        alpha, sigma = path.alpha(t), path.sigma(t)
        middle, variance = alpha * mean + sigma * loc, (alpha * std) ** 2 + (sigma * scale) ** 2
        x = middle + variance.sqrt() * torch.randn(6, 3, generator=generator, dtype=torch.float64)
        x0 = loc + sigma * scale**2 * (x - middle) / variance
        assert torch.allclose(path.score(x0, t.expand(6), loc, scale), (middle - x) / variance, rtol=1e-10)


def test_a_time_per_row_agrees_with_one_time(generator):
    path = paths.Cosine("x1")
    x = torch.randn(4, 4, generator=generator)  # as many rows as entries: a wrong broadcast would not raise
    prediction = torch.randn(4, 4, generator=generator)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    rows = torch.cat([path.velocity(prediction[i : i + 1], x[i : i + 1], t[i]) for i in range(4)])
    assert torch.allclose(path.velocity(prediction, x, t), rows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paths.Linear("epsilon"), "velocity, x1, noise, score, logits"),
        (lambda: paths.Linear(sigma_min=1.0), r"\[0, 1\)"),
        (lambda: paths.Linear(margin=0.7), r"the margin is in \(0, 0.5\)"),
        (lambda: paths.Polynomial(0.5), "pass 1 or more"),
        (lambda: paths.VariancePreserving(beta_min=3.0, beta_max=1.0), "beta_min < beta_max"),
        (lambda: paths.Linear().sample(torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(4)), "differ in shape"),
        (lambda: paths.Linear().sample(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(3)), "one time per row"),
        (lambda: paths.AffinePath(), "paths.Linear"),
    ],
)
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_schedule_without_a_closed_inverse_is_inverted_by_bisection():
    class Bent(paths.AffinePath):
        alpha = lambda self, t: (t + t**2) / 2
        sigma = lambda self, t: 1 - (t + t**2) / 2
        d_alpha = lambda self, t: 0.5 + t
        d_sigma = lambda self, t: -0.5 - t

    check_path(Bent())
    for dtype in (torch.float32, torch.float64):
        t = torch.tensor([0.01, 0.3, 0.999], dtype=dtype)
        found = Bent().time_at(Bent().alpha(t), Bent().sigma(t))
        assert found.dtype == dtype
        torch.testing.assert_close(found, t, rtol=1e3 * torch.finfo(dtype).eps, atol=0)
