import copy
import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BPoly

from cflow.discrete import Bernstein, SumOfSquares


@pytest.mark.parametrize("degree", [1, 2, 7, 16])
def test_bernstein_is_the_polynomial_of_its_coefficients(degree, generator, float64):
    family = Bernstein(degree, bound=3.0, floor=0.01)
    raw = torch.randn(family.size, generator=generator)
    x = torch.linspace(-3, 3, 101)
    slopes = 0.01 + 0.99 * (raw[1:] + math.log(math.e - 1)).exp().log1p()
    levels = np.concatenate([[0.0], np.cumsum(6 / degree * slopes.numpy())])
    reference = BPoly(levels[:, None] - levels[-1] / 2 + raw[0].item(), [-3, 3])
    z, ladj = family.encode(x, raw.expand(101, -1))
    torch.testing.assert_close(z, torch.from_numpy(reference(x.numpy())), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ladj.exp(), torch.from_numpy(reference.derivative()(x.numpy())), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", [Bernstein(5, bound=2.0), SumOfSquares(3, 2, bound=2.0)], ids=["Bernstein", "sums"])
def test_polynomials_go_on_by_their_tangents(family, generator, float64):
    family = copy.deepcopy(family).double()
    raw = 2 * torch.randn(1, family.size, generator=generator)
    for edge in (-2.0, 2.0):
        distance = torch.tensor([0.0, 1e-9, 1.0, 1e6])
        z, ladj = family.encode(edge * (1 + distance), raw.expand(4, -1))
        torch.testing.assert_close(z, z[0] + edge * distance * ladj[0].exp(), rtol=1e-12, atol=1e-12)
        assert (ladj == ladj[0]).all()
        near, slope = family.encode(torch.tensor([edge * (1 - 1e-9)]), raw)
        torch.testing.assert_close(near, z[:1], rtol=0, atol=1e-6)
        torch.testing.assert_close(slope, ladj[:1], rtol=0, atol=1e-6)
        back, inverse = family.decode(z, raw.expand(4, -1))
        torch.testing.assert_close(back, edge * (1 + distance), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(inverse, -ladj, rtol=0, atol=1e-12)


def test_bernstein_slopes_never_fall_below_the_floor(float64):
    family = Bernstein(floor=0.05)
    _, ladj = family.encode(torch.linspace(-9, 9, 50), torch.full((50, family.size), -60.0))
    torch.testing.assert_close(ladj, torch.full_like(ladj, math.log(0.05)))


def test_sum_of_squares_is_the_exact_integral(generator, float64):
    family = SumOfSquares(degree=3, polynomials=2, bound=7.0, floor=0.1)
    x = torch.tensor([-7.0, -0.5, 0.0, 1.0, 4.0])
    raw = torch.randn(5, family.size, generator=generator)
    z, ladj = family.encode(x, raw)
    for i in range(5):
        slope = np.polynomial.Polynomial([0.1])
        for k, row in enumerate(raw[i, 1:].reshape(2, 4).numpy(), start=1):
            coefficients = row * (k / 14.0) ** np.arange(4)
            coefficients[0] += 2**-0.5
            slope = slope + 0.9 * np.polynomial.Polynomial(coefficients) ** 2
        expected = raw[i, 0].item() + slope.integ()(x[i].item())
        assert z[i].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert ladj[i].exp().item() == pytest.approx(slope(x[i].item()), rel=1e-12)


def test_squared_polynomials_part_from_the_start(float64):
    family = SumOfSquares(degree=2, polynomials=3)
    raw = torch.zeros(1, family.size, requires_grad=True)
    _, ladj = family.encode(torch.tensor([2.0]), raw)
    (gradient,) = torch.autograd.grad(ladj.sum(), raw)
    linear = gradient[0, 1:].reshape(3, 3)[:, 1]
    assert len(linear.unique()) == 3
    assert (linear != 0).all()


def test_the_rule_survives_a_change_of_dtype(generator, float64):
    x, raw = torch.tensor([3.0]), torch.randn(1, SumOfSquares().size, generator=generator)
    for narrow in (torch.float32, torch.bfloat16):
        z, _ = SumOfSquares().to(narrow).double().encode(x, raw)
        assert torch.equal(z, SumOfSquares().encode(x, raw)[0])


def test_sum_of_squares_is_finite_where_it_is_harsh(generator):
    family = SumOfSquares(degree=6, polynomials=4)
    x = torch.linspace(-10, 10, 2001)
    raw = 10 * torch.randn(2001, family.size, generator=generator)
    z, ladj = family.encode(x, raw)
    back, inverse = family.decode(z, raw)
    assert all(bool(each.isfinite().all()) for each in (z, ladj, back, inverse))
    assert float(ladj.min()) >= math.log(1e-3) - 1e-4
    # What is found is mapped to z, but for a few roundings of z and of x.
    again, slope = family.encode(back.double(), raw.double())
    size = 1 + z.abs() + x.abs() * slope.exp()
    assert float(((again - z).abs() / size).max()) < 16 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("make", [lambda: Bernstein(0), lambda: Bernstein(bound=0.0), lambda: Bernstein(floor=1.0)])
def test_bernstein_refuses_impossible_arguments(make):
    with pytest.raises(ValueError, match="pass Bernstein"):
        make()


@pytest.mark.parametrize("arguments", [{"degree": -1}, {"polynomials": 0}, {"bound": math.inf}, {"floor": 0.0}])
def test_sum_of_squares_refuses_impossible_arguments(arguments):
    with pytest.raises(ValueError, match="pass SumOfSquares"):
        SumOfSquares(**arguments)
