import math

import pytest
import scipy.stats
import torch

from cflow.manifolds import Simplex

CORNERS = torch.eye(3, dtype=torch.float64)


def test_distances_are_twice_the_angles_of_the_roots(generator, float64):
    simplex = Simplex(4)
    p, q = simplex.uniform((2, 50), generator=generator)
    torch.testing.assert_close(simplex.dist(p, q), 2 * (p * q).sqrt().sum(-1).acos(), rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(Simplex(3).dist(CORNERS[0], CORNERS[1]), torch.tensor(math.pi))


def test_geodesics_between_corners_are_finite_at_all_times(float64):
    simplex, t = Simplex(3), torch.linspace(0, 1, 5)
    p = CORNERS[0].clone().requires_grad_()
    xt, ut = simplex.geodesic(p, CORNERS[1], t)
    expected = torch.stack([(math.pi / 2 * t).cos() ** 2, (math.pi / 2 * t).sin() ** 2, 0 * t], 1)
    torch.testing.assert_close(xt.detach(), expected)
    assert ut.isfinite().all()
    for value in (xt, ut, simplex.dist(p, CORNERS[1]), simplex.log(p, CORNERS[1])):
        (gradient,) = torch.autograd.grad(value.square().sum(), p, retain_graph=True)
        assert gradient.isfinite().all()


def test_points_on_the_boundary_are_reached(generator, float64):
    """From inside, log and exp reach faces and corners."""
    simplex = Simplex(3)
    p = simplex.uniform((3,), generator=generator)
    torch.testing.assert_close(simplex.exp(p, simplex.log(p, CORNERS)), CORNERS, atol=1e-14, rtol=0)
    moved = simplex.exp(CORNERS[0], torch.zeros(3))
    assert torch.equal(moved, CORNERS[0])


def test_uniform_draws_are_dirichlet_of_one_half(generator, float64):
    p = Simplex(4).uniform((3000,), generator=generator)
    # Fails for one seed in 10,000.
    assert scipy.stats.kstest(p[:, 1].numpy(), scipy.stats.beta(0.5, 1.5).cdf).pvalue > 1e-4


@pytest.mark.parametrize("size", [2, 3])
def test_the_volume_is_the_integral_of_its_element(size, float64):
    """In the first coordinates, by a grid in the angles of the roots, which take the singularity away."""
    u = (torch.arange(400) + 0.5) / 400 * math.pi / 2
    angles = torch.cartesian_prod(*[u] * (size - 1)).reshape(-1, size - 1)
    if size == 2:
        p = torch.cat([angles.cos() ** 2, angles.sin() ** 2], 1)
        slope = (2 * angles.cos() * angles.sin()).prod(1)
    else:
        a, b = angles.T
        s = torch.stack([a.cos(), a.sin() * b.cos(), a.sin() * b.sin()], 1)
        p = s.square()
        # d(p_1, p_2) / d(a, b)
        slope = 4 * a.cos() * a.sin() ** 3 * b.cos() * b.sin()
    lebesgue = 0.5 * math.log(size)  # the ambient area of the simplex over that of its shadow on all but one axes
    density = (Simplex(size).log_volume_element(p) + lebesgue).exp() * slope
    volume = float(density.sum()) * (math.pi / 800) ** (size - 1)
    assert math.log(volume) == pytest.approx(Simplex(size).log_volume, abs=1e-5)


def test_too_few_probabilities_are_refused():
    with pytest.raises(ValueError, match="pass 4 for DNA"):
        Simplex(1)
    with pytest.raises(ValueError, match="reflections"):
        Simplex(13).preimages(torch.ones(13) / 13, torch.ones(13) / 13, 1)
