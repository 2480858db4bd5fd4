import math

import pytest
import torch

from cflow.manifolds import IGSO3, SO3
from cflow.manifolds.laws import igso3
from cflow.testing import check_base

GROUP = SO3()


def angles(count=4001):
    return torch.linspace(0, math.pi, count, dtype=torch.float64)


def about_z(angle):
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return GROUP.exp(torch.eye(3, dtype=torch.float64), SO3.hat(angle.unsqueeze(-1) * axis))


def density(scale, angle):
    """The density with respect to the uniform distribution."""
    return IGSO3(scale).double().log_prob(about_z(angle)).exp() * 8 * math.pi**2


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 1.49, 1.5, 3.0])
def test_density_integrates_to_one_and_has_its_characters(scale):
    angle = angles()
    values = density(scale, angle) * (1 - angle.cos()) / math.pi
    assert abs(torch.trapezoid(values, angle) - 1) < 1e-6
    # The mean of a character is exp(-l (l + 1) scale^2 / 2) times its dimension.
    for index in (1, 2):
        character = 1 + 2 * sum((m * angle).cos() for m in range(1, index + 1))
        mean = torch.trapezoid(values * character, angle)
        assert abs(mean - (2 * index + 1) * math.exp(-index * (index + 1) * scale**2 / 2)) < 1e-5


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.5])
def test_both_series_agree(scale, monkeypatch):
    angle = torch.cat((angles(101), torch.tensor([1e-9, 1e-5, 1e-3], dtype=torch.float64)))
    monkeypatch.setattr(igso3, "CHARACTERS", 40)
    found = []
    for wide in (0.0, 10.0):
        monkeypatch.setattr(igso3, "WIDE", wide)
        found.append(density(scale, angle))
    assert torch.allclose(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0.2, 1.0, 2.0])
def test_draws_follow_the_density(scale, generator):
    loc = GROUP.uniform((), generator=generator)
    base = IGSO3(scale, loc)
    found = GROUP.dist(loc, base.sample((4000,), generator=generator)).sort().values
    angle = angles()
    steps = density(scale, angle) * (1 - angle.cos()) / math.pi
    cdf = torch.cat((torch.zeros(1), torch.cumulative_trapezoid(steps, angle)))
    place = (found.double() / math.pi * 4000).clamp(0, 3999)
    below = place.long()
    expected = cdf[below] + (place - below) * (cdf[below + 1] - cdf[below])
    assert (expected - torch.linspace(0, 1, 4000)).abs().max() < 2.2 / math.sqrt(4000)  # fails once in 8000 seeds


def test_gradients_shapes_and_refusals(generator):
    base = IGSO3(0.5, GROUP.uniform((), generator=generator)).double()
    x = torch.cat((base.sample((2, 3), generator=generator).reshape(6, 3, 3), base.loc.unsqueeze(0)))
    values = base.log_prob(x.requires_grad_())
    assert torch.autograd.grad(values.sum(), x)[0].isfinite().all()
    assert base.log_prob(2 * x.detach()).isneginf().all()
    assert base.sample((0, 2), generator=generator).shape == (0, 2, 3, 3)
    assert "loc" in base.state_dict()
    with pytest.raises(ValueError, match="a scale is positive and finite"):
        IGSO3(0.0)
    with pytest.raises(ValueError, match="it is not a rotation"):
        IGSO3(1.0, torch.ones(3, 3))


@pytest.mark.parametrize("scale", [0.7, 1.7])
def test_igso3_conforms_as_a_base(scale, generator):
    # The density is tested above: boxes in the ambient space hold no samples of a manifold.
    check_base(IGSO3(scale, GROUP.uniform((), generator=generator)), density=False)
