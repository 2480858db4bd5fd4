import math

import pytest
import torch

from cflow.manifolds import Lorentz, Poincare


def far_pair(radius, angle, dtype):
    """Returns points at one distance from the origin and an angle, and their distance by the law of cosines."""
    r = torch.tensor(radius, dtype=torch.float64)
    directions = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    points = Lorentz(2)._exp(Lorentz(2).origin(dtype=torch.float64), torch.cat([torch.zeros(2, 1), r * directions], 1))
    # sinh(d / 2) = sinh(r) sin(angle / 2)
    return points.to(dtype), 2 * torch.asinh(r.sinh() * math.sin(angle / 2))


@pytest.mark.parametrize("radius", [1.0, 5.0, 10.0])
def test_distances_across_are_accurate_far_out_in_float32(radius):
    (x, y), dist = far_pair(radius, 2.0, torch.float32)
    space = Lorentz(2)
    assert float(space.dist(x, y)) == pytest.approx(float(dist), rel=1e-6)
    assert float(space.dist(space.origin(), x)) == pytest.approx(radius, rel=1e-6)
    log = space.log(x, y)
    assert float(space.inner(x, log, log).sqrt()) == pytest.approx(float(dist), rel=1e-6)


def test_neighbours_far_out_in_float32():
    """Ten from the origin, rounding of coordinates of 11,000 is all that there is."""
    (x, y), dist = far_pair(10.0, 2e-4, torch.float32)
    space = Lorentz(2)
    assert 1.8 < float(dist) < 2
    exact = space.dist(x.double(), y.double())
    assert float(space.dist(x, y)) == pytest.approx(float(exact), rel=2e-7)
    end = space.exp(x, space.log(x, y))
    assert float((end - y).norm() / y.norm()) < 1e-6
    w = space.log(x, space.exp(x, torch.tensor([0.0, 0.3, -0.2])))
    torch.testing.assert_close(w[1:], torch.tensor([0.3, -0.2]), atol=2e-3, rtol=0)  # 2e-7 of the coordinates


def test_the_charts_are_isometric(generator, float64):
    ball, space = Poincare(3), Lorentz(3)
    x, y = ball.exp(ball.origin(), 0.6 * torch.randn(2, 20, 3, generator=generator))
    torch.testing.assert_close(space.to_poincare(ball.to_lorentz(x)), x)
    torch.testing.assert_close(space.dist(ball.to_lorentz(x), ball.to_lorentz(y)), ball.dist(x, y))
    log, carried = ball.log(x, y), lambda at, u: torch.func.jvp(ball.to_lorentz, (at,), (u,))[1]
    torch.testing.assert_close(carried(x, log), space.log(ball.to_lorentz(x), ball.to_lorentz(y)))
    u = torch.randn(20, 3, generator=generator)
    found = space.transport(ball.to_lorentz(x), ball.to_lorentz(y), carried(x, u))
    torch.testing.assert_close(carried(y, ball.transport(x, y, u)), found)


def test_points_of_poincare_stay_inside_the_ball():
    ball = Poincare(2)
    x = ball.exp(ball.origin(), torch.tensor([[0.1, 0.0], [50.0, 0.0], [0.0, 1e10]]))
    assert (x.norm(dim=1) < 1).all()
    assert ball.dist(ball.origin(), x).isfinite().all()
    assert float(ball.dist(ball.origin(), x).max()) == pytest.approx(15.9, abs=0.1)  # as the docstring states
    assert ball.holds(x).all()
    # As the docstring states: rounding near the rim, 8 from the origin.
    x = ball.exp(ball.origin(), torch.tensor([4.0, 0.0]))  # the metric is 4 |u|^2 at the centre
    assert 1e-6 < abs(float(ball.dist(ball.origin(), x)) - 8) < 1e-4
    assert not ball.holds(torch.tensor([1.1, 0.0]))


def test_the_determinant_of_exp_does_not_overflow():
    for space in (Lorentz(3), Poincare(3)):
        x = space.origin()
        u = torch.zeros_like(x)
        u[-1] = 200.0
        r = float(space.inner(x, u, u).sqrt())
        expected = 2 * (r - math.log(2 * r))
        assert float(space.log_det_exp(x, u)) == pytest.approx(expected, rel=1e-6)


def test_wrong_dimensions_are_refused():
    for make in (Lorentz, Poincare):
        with pytest.raises(ValueError, match="pass 2 for the plane"):
            make(0)
