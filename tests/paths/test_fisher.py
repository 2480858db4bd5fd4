"""The Fisher path: great circles, tangent velocities, densities on the sphere, samples of exact flows."""

import math

import pytest
import torch
from scipy import stats

import cflow
from cflow import bases, fields, objectives, paths, solvers
from cflow.paths.fisher import angle_over_sine
from cflow.testing import RelaxedTokenField, check_base

PATH = paths.Fisher()


def corners(count, size, token=0):
    return torch.nn.functional.one_hot(torch.full((count,), token), size).double()


def evidence(t, x):
    """log q_t(x | e_k): points near enough to a corner, in the density of the shrunken cap."""
    angle, rest, size = x.clamp(-1, 1).arccos(), 1 - t[:, None, None], x.shape[-1]
    before = angle / rest
    inside = before <= math.pi / 2
    wide = torch.where(inside, before, 1.0).sin().log() - angle.sin().clamp(min=1e-300).log()
    return torch.where(inside, (size - 2) * wide, -1e4)


def test_an_angle_over_its_sine_is_smooth_at_zero():
    angle = torch.tensor([1e-9, 1e-4, 0.03, 0.0448, 0.05, 1.0, math.pi / 2, 2.0], dtype=torch.float64)
    cosine = angle.cos().requires_grad_()
    value = angle_over_sine(cosine)
    # A cosine has half of the digits of a small angle, which the ratio does not need.
    assert torch.allclose(value, angle / angle.sin(), rtol=1e-12)
    (slope,) = torch.autograd.grad(value.sum(), cosine)
    # d(angle / sine) / d(cosine) = (angle cosine / sine - 1) / sine^2, which tends to -1/3.
    exact = (angle * angle.cos() / angle.sin() - 1) / angle.sin() ** 2
    assert torch.allclose(slope[2:], exact[2:], rtol=1e-8)
    assert torch.allclose(slope[:2], torch.full((2,), -1 / 3, dtype=torch.float64), atol=1e-6)
    for dtype in (torch.float32, torch.float64):
        assert angle_over_sine(torch.tensor([1.0, 1.0 + 1e-6, -1e-3], dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("size", [2, 5])
def test_points_move_on_great_circles_with_the_velocity_of_their_token(size, generator):
    x0 = bases.Orthant(size).double().sample((50,), generator=generator)
    t = torch.rand(50, generator=generator, dtype=torch.float64).requires_grad_()
    x1 = corners(50, size)
    sample = PATH.sample(x0, x1, t)
    assert torch.allclose(sample.xt.norm(dim=1), torch.ones(50).double())
    angles = (x0[:, 0].arccos() * (1 - t)).cos()
    assert torch.allclose(sample.xt[:, 0], angles)
    slope = torch.stack([torch.autograd.grad(sample.xt[:, k].sum(), t, retain_graph=True)[0] for k in range(size)], 1)
    logits = torch.where(x1 > 0, 0.0, -1e4).double()
    velocity = PATH.velocity(logits, sample.xt.detach(), t.detach())
    assert torch.allclose(velocity, slope, atol=1e-9)
    assert (velocity * sample.xt.detach()).sum(1).abs().max() < 1e-12
    ends = PATH.sample(x1, x1, t.detach())  # a point that starts at its token stays
    assert torch.equal(ends.xt, x1)


def exact_flow(probs, **options):
    field = RelaxedTokenField(probs, evidence)
    return cflow.RelaxedFlow(field, bases.Orthant(field.event_shape), path=PATH, **options).double()


@pytest.mark.parametrize("steps", [1, 4, 32])
def test_samples_of_the_exact_flow_are_possible_pairs(steps, generator):
    flow = exact_flow(torch.tensor([[0.6, 0.0], [0.0, 0.4]], dtype=torch.float64), solver=solvers.Euler(steps))
    pairs = flow.sample((20_000,), generator=generator)
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    if steps == 32:  # the standard error is 0.0035, and Euler's method with 32 steps adds an error
        assert abs(float((pairs[:, 0] == 0).double().mean()) - 0.6) < 0.03


def test_tokens_of_the_exact_flow_have_their_probabilities(generator):
    probs = torch.tensor([0.5, 0.3, 0.2]).double()
    flow = exact_flow(probs, solver=solvers.RK4(100))
    x = flow.sample((20_000,), generator=generator)
    shares = torch.bincount(x[:, 0], minlength=3) / 20_000
    # Five standard errors, and the error of the solver where the support of a token ends.
    assert ((shares - probs).abs() < 5 * (probs * (1 - probs) / 20_000).sqrt() + 0.01).all()


def test_the_norm_stays_one_and_the_network_sees_points_of_the_sphere():
    seen = []

    class Network(torch.nn.Module):
        def forward(self, t, x, context=None):
            seen.append(x)
            return 3 * x

    flow = cflow.ContinuousFlow(Network(), bases.Orthant((2, 3)), path=PATH).double()
    x0 = bases.Orthant((2, 3)).double().sample((20,))
    # A step along a tangent leaves the sphere, the more the longer it is.
    flow.transport(x0, 0.0, 0.6, solver=solvers.Euler(2))
    assert all(torch.allclose(x.norm(dim=-1), torch.ones(20, 2).double()) for x in seen)
    y = flow.transport(x0, 0.0, 0.6, solver=solvers.Dopri5(rtol=1e-8, atol=1e-8)).y
    assert torch.allclose(y.norm(dim=-1), torch.ones(20, 2).double(), atol=1e-6)
    assert (y > 0).all()


def test_training_and_the_bases(generator):
    flow = cflow.RelaxedFlow(fields.MLP(4), bases.Orthant(4), path=PATH, solver=solvers.Heun(4))
    x = torch.randint(4, (64,), generator=generator)
    losses = [objectives.FlowMatching()(flow, x, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*losses)
    losses[0].mean().backward()
    assert flow.likelihood == "none"
    assert flow.sample((3, 2), generator=generator).shape == (3, 2)
    check_base(bases.Orthant((2, 3)))
    draws = bases.Orthant((2, 3)).double().sample((20_000,), generator=generator)
    # The heights of an octant of the sphere are uniform (Archimedes).
    assert stats.kstest(draws[:, 1, 2], stats.uniform.cdf).pvalue > 1e-4


REFUSED = {
    "base": (lambda: cflow.ContinuousFlow(fields.MLP(3), bases.Simplex(3), path=PATH), "use bases.Orthant"),
    "circle": (lambda: bases.Orthant((3, 1)), "two coordinates or more"),
    "density": (
        lambda: cflow.RelaxedFlow(fields.MLP(2), bases.Orthant(2), path=PATH).log_prob(torch.tensor(1)),
        "from base Orthant has no density",
    ),
    "margin": (lambda: paths.Fisher(margin=0.6), "pass 1e-3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_use_says_what_to_do(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
