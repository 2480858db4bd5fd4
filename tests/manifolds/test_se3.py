import math

import pytest
import torch

from cflow.manifolds import SE3, SO3
from cflow.solvers import RKMK4, GeodesicRK4
from cflow.testing import check_manifold


def test_rigid_motions_conform():
    check_manifold(SE3(0.3))


def test_distances_and_components(generator):
    group, rotations = SE3(0.25), SO3()
    r = rotations.uniform((2, 6), generator=generator, dtype=torch.float64)
    p = torch.randn(2, 6, 3, 1, generator=generator, dtype=torch.float64)
    x, y = torch.cat((r, p), -1)
    square = rotations.dist(*r).square() + 0.25 * (p[0] - p[1]).square().sum((1, 2))
    assert torch.allclose(group.dist(x, y).square(), square)
    w = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    u = group.from_body(x, w)
    assert torch.allclose(group.to_body(x, u), w)
    assert torch.allclose(group.inner(x, u, u), w.square().sum(1))


@pytest.mark.parametrize("method", [RKMK4, GeodesicRK4])
def test_order_on_rigid_motions(method, generator):
    # The rotation exp(t a) exp(t b) moves with the position (sin t, t^2, 1).
    group = SE3(2.0)
    a, b = torch.tensor([[0.3, -1.0, 0.8], [1.0, 0.5, -0.4]], dtype=torch.float64)
    exp = lambda w: torch.linalg.matrix_exp(SO3.hat(w))

    def field(t, x):
        spin = x[..., :3] @ SO3.hat(b + exp(-t.unsqueeze(1) * b) @ a)
        move = torch.stack((t.cos(), 2 * t, torch.zeros_like(t)), 1).unsqueeze(2)
        return torch.cat((spin, move), 2)

    start = torch.cat((torch.eye(3), torch.tensor([[0.0], [0.0], [1.0]])), 1).double()
    end = torch.cat((exp(a) @ exp(b), torch.tensor([[math.sin(1.0)], [1.0], [1.0]])), 1)
    coarse, fine = (
        group.dist(method(n).solve(field, start.unsqueeze(0), 0.0, 1.0, manifold=group).y, end).max() for n in (8, 16)
    )
    assert abs(math.log2(coarse / fine) - 4) < 0.15


def test_a_weight_is_positive():
    with pytest.raises(ValueError, match="a weight of squared distances is positive"):
        SE3(0.0)
