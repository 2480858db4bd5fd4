import math

import pytest
import torch
from curves import AXIS, spin, spun, swirl, swirled

from cflow.manifolds import SO3, Manifold, Sphere
from cflow.solvers import (
    RKMK4,
    Backprop,
    Checkpointed,
    GeodesicEuler,
    GeodesicMidpoint,
    GeodesicRK4,
    Heun,
    ProjectedEuler,
    Wrapper,
)

ORDERS = {GeodesicEuler: 1, ProjectedEuler: 1, GeodesicMidpoint: 2, GeodesicRK4: 4}
SPHERE = Sphere(2)


@pytest.fixture
def x0(generator):
    return SPHERE.uniform((4,), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("method", ORDERS)
def test_order_on_the_sphere_in_both_directions(method, x0):
    x1 = swirled(x0, 1.0)
    for start, end, t0, t1 in ((x0, x1, 0.0, 1.0), (x1, x0, 1.0, 0.0)):
        coarse, fine = (
            SPHERE.dist(method(n).solve(swirl, start, t0, t1, manifold=SPHERE).y, end).max() for n in (24, 48)
        )
        assert abs(math.log2(coarse / fine) - ORDERS[method]) < 0.15


@pytest.mark.parametrize(("method", "order"), [*ORDERS.items(), (RKMK4, 4)])
def test_order_on_rotations(method, order, generator):
    # RKMK4 with the sign of the other frame is of order 2.
    group = SO3()
    start = group.uniform((2,), generator=generator, dtype=torch.float64)
    coarse, fine = (
        group.dist(method(n).solve(spin, start, 0.0, 1.0, manifold=group).y, spun(start, 1.0)).max() for n in (8, 16)
    )
    assert abs(math.log2(coarse / fine) - order) < 0.15


@pytest.mark.parametrize("method", ORDERS)
def test_points_outputs_integrals_and_evaluations(method, x0):
    solver = method(48)
    field = lambda t, x: (swirl(t, x), {"height": x @ AXIS})
    solution = solver.solve(field, x0, 0.0, 1.0, manifold=SPHERE, quadratures={"height": None}, at=[0.0, 0.31, 1.0])
    error = 2 * SPHERE.dist(solution.y, swirled(x0, 1.0)).max() + 1e-14
    assert solution.stats.nfe == 49 * method.calls_per_step()  # 0.31 is a node of its own
    assert (solution.trajectory.norm(dim=-1) - 1).abs().max() < 1e-14
    assert torch.equal(solution.trajectory[0], x0)
    assert torch.equal(solution.trajectory[2], solution.y)
    assert SPHERE.dist(solution.trajectory[1], swirled(x0, 0.31)).max() < error
    times = torch.linspace(0, 1, 2001, dtype=torch.float64)
    heights = torch.stack([swirled(x0, float(t)) @ AXIS for t in times])
    assert (solution.quadratures["height"] - torch.trapezoid(heights, times, dim=0)).abs().max() < error + 1e-7


@pytest.mark.parametrize("gradient", [Backprop(), Checkpointed()])
@pytest.mark.parametrize("method", ORDERS)
def test_gradients_are_those_of_finite_differences(method, x0, gradient):
    rate = torch.tensor([0.3, -1.4], dtype=torch.float64, requires_grad=True)

    def end(x0, rate):
        field = lambda t, x, rate: (swirl(t, x) * rate.unsqueeze(1), {"q": x[:, 0] * rate})
        start = SPHERE.project(x0)
        s = method(2, gradient=gradient).solve(
            field, start, 0.0, 1.0, args=(rate,), manifold=SPHERE, quadratures={"q": None}, at=[0.5]
        )
        return s.y, s.quadratures["q"], s.trajectory

    assert torch.autograd.gradcheck(end, (x0[:2].clone().requires_grad_(), rate), fast_mode=True)


def test_normal_velocity_is_the_differential_of_log(x0):
    y = SPHERE.exp(x0, SPHERE.to_tangent(x0, x0.flip(0).roll(1, 1) * torch.tensor([[2.0], [1e-3], [1e-9], [0.0]])))
    v = SPHERE.to_tangent(y, y.roll(1, 1))
    assert torch.allclose(SPHERE.normal_velocity(x0, y, v), Manifold.normal_velocity(SPHERE, x0, y, v), atol=1e-9)


def test_a_solver_on_manifolds_is_asked_by_its_attribute(x0):
    assert not Heun(3).on_manifolds
    assert Wrapper(GeodesicEuler(3)).on_manifolds
    with pytest.raises(ValueError, match=r"Heun.solve\(manifold=Sphere\): this solver would leave the manifold"):
        Heun(3).solve(swirl, x0, 0.0, 1.0, manifold=SPHERE)
    with pytest.raises(ValueError, match=r"GeodesicEuler.solve\(manifold=None\).*use a solver such as Heun"):
        GeodesicEuler(3).solve(swirl, x0, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"RKMK4.solve\(manifold=Sphere\(dim=2\)\): it is not a Lie group"):
        RKMK4(3).solve(swirl, x0, 0.0, 1.0, manifold=SPHERE)
    with pytest.raises(ValueError, match="the state has 2 parts"):
        GeodesicEuler(3).solve(swirl, (x0, x0), 0.0, 1.0, manifold=SPHERE)
    with pytest.raises(ValueError, match=r"points of shape \[4\] are not on Sphere\(dim=2\)"):
        GeodesicEuler(3).solve(swirl, torch.ones(3, 4), 0.0, 1.0, manifold=SPHERE)
