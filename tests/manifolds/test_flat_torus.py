import math

import pytest
import torch

from cflow.manifolds import FlatTorus


def test_every_real_number_is_accepted_as_its_class(generator, float64):
    torus, x, y = FlatTorus(3), *torch.randn(2, 20, 3, generator=generator)
    turns = 2 * math.pi * torch.randint(-3, 4, (20, 3), generator=generator)
    torch.testing.assert_close(torus.log(x + turns, y - turns), torus.log(x, y), atol=1e-13, rtol=0)
    torch.testing.assert_close(torus.project(x + turns), torus.project(x), atol=1e-13, rtol=0)
    assert torus.holds(1e3 * x).all()
    assert torus.log(x, y).abs().max() <= math.pi


def test_points_inside_one_period_are_returned_bit_for_bit():
    x = torch.tensor([-math.pi, -3.0, -1e-30, 0.0, 1e-7, 3.1415])
    assert torch.equal(FlatTorus(6).project(x), x)
    ends = FlatTorus(2, 1.0).project(torch.tensor([0.5, -0.5]))
    assert torch.equal(ends, torch.tensor([-0.5, -0.5]))


def test_the_short_way_crosses_the_seam():
    torus = FlatTorus(1, 360.0)
    xt, ut = torus.geodesic(torch.tensor([170.0]), torch.tensor([-160.0]), torch.tensor(0.75))
    assert (float(xt), float(ut)) == (-167.5, 30.0)


def test_preimages_are_all_classes_the_shortest_first(generator, float64):
    torus, x, y = FlatTorus(2), *torch.randn(2, 5, 2, generator=generator)
    u = torus.preimages(x, y, 1)
    assert u.shape == (9, 5, 2)
    torch.testing.assert_close(u[0], torus.log(x, y))
    torch.testing.assert_close(torus.exp(x, u), torus.project(y).expand(9, 5, 2), atol=1e-13, rtol=0)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="pass 2 for pairs"):
        FlatTorus(0)
    with pytest.raises(ValueError, match="period=0.0.*pass 360"):
        FlatTorus(2, 0.0)
