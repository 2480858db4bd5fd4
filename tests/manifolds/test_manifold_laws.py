"""Distributions on manifolds: normalised against the stated volume, and drawn as they say."""

import copy
import math

import pytest
import scipy.stats
import torch
from torch import nn

from cflow import manifolds
from cflow.manifolds import SO3, Dirichlet, FlatTorus, Lorentz, Poincare, Power, Product, Simplex, Sphere, WrappedNormal
from cflow.testing import check_base

ANGLES = Product({"place": Sphere(2), "angle": FlatTorus(1)}, {"place": 2.0})
LAWS = [
    manifolds.Uniform(Sphere(2)),
    manifolds.Uniform(ANGLES),
    WrappedNormal(Sphere(2), scale=2.0),
    WrappedNormal(Sphere(3), torch.tensor([0.5, -0.5, 0.5, 0.5]), torch.tensor([0.5, 0.8, 0.3])),
    WrappedNormal(FlatTorus(2), torch.tensor([3.0, -1.0]), torch.tensor([0.5, 4.0])),
    WrappedNormal(Lorentz(2), scale=0.7),
    WrappedNormal(Poincare(2), torch.tensor([0.3, 0.4]), torch.tensor([0.5, 1.0])),
    WrappedNormal(SO3(), scale=1.2),
    WrappedNormal(Simplex(3), scale=1.5),
    WrappedNormal(ANGLES, scale=torch.tensor([0.5, 0.7, 2.0])),
    WrappedNormal(Power(Sphere(2), 2), scale=0.5),
    Dirichlet([0.5, 2.0, 1.0]),
]
each = pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{type(law).__name__}-{law.manifold!r}"[:40])


@each
def test_every_law_is_a_base(law):
    check_base(law, density=False)
    x = law.sample((20,), generator=torch.Generator().manual_seed(0))
    assert law.manifold.holds(x).all()
    assert law.log_prob(x).isfinite().all()


@each
def test_densities_integrate_to_one_and_draws_follow_them(law):
    """By uniform draws, and by E[1_A(x) / p(x)] = vol(A) for balls; each fails once in two million seeds."""
    law, generator = copy.deepcopy(law).double(), torch.Generator().manual_seed(1)
    manifold, count = law.manifold, 10_000
    if math.isfinite(manifold.log_volume):
        x = manifold.uniform((count,), generator=generator, dtype=torch.float64)
        p = (law.log_prob(x) + manifold.log_volume).exp()
        assert abs(float(p.mean()) - 1) < 5 * float(p.std()) / count**0.5 + 1e-9
    x = law.sample((count,), generator=generator)
    for centre in law.sample((2,), generator=generator):
        dist = manifold.dist(centre, x)
        radius = dist.sort().values[count // 25]  # small, so that the density varies little
        weight = torch.where(dist < radius, (-law.log_prob(x)).exp(), 0.0)
        volume, error = ball(manifold, centre, radius, generator)
        error = math.hypot(float(weight.std()) / count**0.5, error)
        assert abs(float(weight.mean()) - volume) < 5 * error + 1e-9


def ball(manifold, centre, radius, generator, count=20_000):
    """Estimates the volume of a ball, in a box of the ambient frame at its centre, and the standard error."""
    frame = manifold.frame(centre)
    gram = manifold.inner(centre, frame.unsqueeze(0), frame.unsqueeze(1))
    frame = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), frame.flatten(1), upper=False).reshape(
        frame.shape
    )
    if manifold.injectivity == 0 or radius > manifold.injectivity:  # count uniform points
        x = manifold.uniform((count,), generator=generator, dtype=torch.float64)
        share = float((manifold.dist(centre, x) < radius).double().mean())
        volume = math.exp(manifold.log_volume)
        return share * volume, volume * math.sqrt(share * (1 - share) / count)
    z = torch.randn(count, manifold.dim, generator=generator, dtype=torch.float64)
    z = z / z.norm(dim=1, keepdim=True) * torch.rand(count, 1, generator=generator).double() ** (1 / manifold.dim)
    factor = manifold.log_det_exp(centre, torch.tensordot(radius * z, frame, 1)).exp()
    n = manifold.dim
    whole = math.pi ** (n / 2) / math.gamma(n / 2 + 1) * float(radius) ** n
    return whole * float(factor.mean()), whole * float(factor.std()) / count**0.5


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_wrapped_normals_integrate_to_one_by_quadrature(scale, float64):
    n = 200
    theta = (torch.arange(n) + 0.5) / n * math.pi
    phi = (torch.arange(2 * n) + 0.5) / n * math.pi
    a, b = torch.cartesian_prod(theta, phi).T
    # The centre lies on the axis of the grid: the density is infinite at the antipode, where the cells vanish.
    sphere = torch.stack([a.sin() * b.cos(), a.sin() * b.sin(), a.cos()], 1)
    law = WrappedNormal(Sphere(2), scale=torch.tensor([scale, 0.7 * scale]))
    integral = float((law.log_prob(sphere).exp() * a.sin()).sum()) * (math.pi / n) ** 2
    assert integral == pytest.approx(1, abs=1e-3)
    grid = torch.cartesian_prod(phi, phi)
    law = WrappedNormal(FlatTorus(2), torch.tensor([1.0, -2.0]), torch.tensor([scale, 0.7 * scale]))
    assert float(law.log_prob(grid).exp().sum()) * (math.pi / n) ** 2 == pytest.approx(1, abs=1e-7)


def test_on_a_circle_it_is_the_wrapped_normal_of_angles(float64):
    x = torch.linspace(-3, 3, 7)
    k = torch.arange(-20, 21).double()
    expected = torch.from_numpy(scipy.stats.norm(0, 2.0).pdf((x[:, None] + 2 * math.pi * k).numpy())).sum(1).log()
    torch.testing.assert_close(WrappedNormal(FlatTorus(1), scale=2.0).log_prob(x[:, None]), expected)
    circle = torch.stack([-x.sin(), x.cos()], 1)  # at angle x from the origin of the circle
    torch.testing.assert_close(WrappedNormal(Sphere(1), scale=2.0).log_prob(circle), expected)


def test_dirichlet_and_the_usual_density(generator, float64):
    law = Dirichlet([0.7, 2.0, 1.0])
    p = law.sample((50,), generator=generator)
    usual = torch.from_numpy(scipy.stats.dirichlet([0.7, 2.0, 1.0]).logpdf(p.numpy().T))
    torch.testing.assert_close(law.log_prob(p), usual + 0.5 * p.log().sum(1))
    ks = scipy.stats.kstest(law.sample((3000,), generator=generator)[:, 0].numpy(), scipy.stats.beta(0.7, 3.0).cdf)
    assert ks.pvalue > 1e-4  # fails for one seed in 10,000
    corner = torch.tensor([0.0, 0.5, 0.5])
    assert float(law.log_prob(corner)) == -math.inf
    assert Dirichlet([1e-3, 1e-3]).sample((100,), generator=generator).isfinite().all()


def test_locations_and_scales_are_trained(generator, float64):
    """A learned centre stays on the manifold, and the mean log-density of samples has its maximum at their law."""
    true = torch.tensor([0.6, 0.0, 0.8])
    x = WrappedNormal(Sphere(2), true, 0.3).sample((300,), generator=generator)
    law = WrappedNormal(Sphere(2), nn.Parameter(torch.tensor([0.0, 0.6, 0.8])), nn.Parameter(torch.tensor(1.0)))
    optimizer = torch.optim.Adam(law.parameters(), 0.1)
    for _ in range(70):
        optimizer.zero_grad()
        (-law.log_prob(x).mean()).backward()
        optimizer.step()
    loc = Sphere(2).project(law.loc.detach())
    assert float(Sphere(2).dist(loc, true)) < 0.08  # 4.6 standard errors, 0.3 / sqrt(300)
    assert float(law.scale.detach()) == pytest.approx(0.3, abs=0.04)
    law.sample((3,), generator=generator).sum().backward()
    assert law.loc.grad.isfinite().all()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"not one point of the manifold; pass manifold.project"):
        WrappedNormal(Sphere(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"pass a number or a tensor \[2\]"):
        WrappedNormal(Sphere(2), scale=torch.ones(3))
    with pytest.raises(ValueError, match="must be positive"):
        WrappedNormal(Sphere(2), scale=0.0)
    with pytest.raises(ValueError, match="must be positive"):
        Dirichlet([1.0, 0.0])
    with pytest.raises(ValueError, match=r"pass a tensor \[n\]"):
        Dirichlet([1.0])
