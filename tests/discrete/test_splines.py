import math

import numpy as np
import pytest
import scipy.interpolate
import torch

from cflow.discrete import CubicSpline, LinearSpline, QuadraticSpline
from cflow.discrete.univariate.knots import within
from cflow.discrete.univariate.splines import _cubic, _rise, _root

EPS = torch.finfo(torch.float32).eps
FAMILIES = [
    cls(bins=6, bound=3.0, tails=tails)
    for cls in (LinearSpline, QuadraticSpline, CubicSpline)
    for tails in ("linear", "box")
]
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda each: f"{type(each).__name__}-{each.tails}")


def draw(family, count, scale, generator, dtype=torch.float64):
    return scale * torch.randn(count, family.size, generator=generator, dtype=dtype)


def knots(shares, minimum=1e-3):
    """Gives the knots on [-3, 3] of shares that a softmax makes."""
    shares = minimum + (1 - minimum * len(shares)) * torch.softmax(shares, 0).numpy()
    return 6 * np.concatenate(([0.0], shares.cumsum())) - 3


def test_the_linear_spline_interpolates_linearly(generator):
    raw, x = draw(FAMILIES[0], 1, 2.0, generator), torch.linspace(-3, 3, 301, dtype=torch.float64)
    wanted = np.interp(x.numpy(), np.linspace(-3, 3, 7), knots(raw[0]))
    z, _ = FAMILIES[0].encode(x, raw.expand(301, -1))
    torch.testing.assert_close(z, torch.from_numpy(wanted), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES[2:4], ids=["linear", "box"])
def test_the_quadratic_spline_integrates_a_polygon_that_fills_the_box(family, generator):
    raw, x = draw(family, 1, 1.0, generator), torch.linspace(-3, 3, 501, dtype=torch.float64)
    places = knots(raw[0, :6])
    heights = torch.exp(raw[0, 6:]).numpy()
    if family.tails == "linear":
        room = 6 - np.trapezoid([1.0, 0, 0, 0, 0, 0, 1.0], places)
        heights = np.concatenate(([1.0], heights * room / np.trapezoid([0, *heights, 0], places), [1.0]))
    else:
        heights = heights * 6 / np.trapezoid(heights, places)
    heights = 1e-3 + (1 - 1e-3) * heights
    z, ladj = family.encode(x, raw.expand(501, -1))
    slope = np.interp(x.numpy(), places, heights)
    torch.testing.assert_close(ladj.exp(), torch.from_numpy(slope), rtol=1e-10, atol=1e-10)
    fine = np.union1d(places, x.numpy())
    area = scipy.integrate.cumulative_trapezoid(np.interp(fine, places, heights), fine, initial=0.0) - 3
    torch.testing.assert_close(z, torch.from_numpy(np.interp(x.numpy(), fine, area)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES[4:], ids=["linear", "box"])
def test_the_cubic_spline_is_hermites_with_steffens_slopes(family, generator):
    raw, x = draw(family, 1, 1.0, generator), torch.linspace(-3, 3, 501, dtype=torch.float64)[1:-1]
    places, values = knots(raw[0, :6]), knots(raw[0, 6:12])
    width, mean = np.diff(places), np.diff(values) / np.diff(places)
    slopes = np.ones(7)
    for i in range(1, 6):
        p = (mean[i - 1] * width[i] + mean[i] * width[i - 1]) / (width[i - 1] + width[i])
        slopes[i] = 2 * min(mean[i - 1], mean[i], p / 2)
    for i, j in ((0, 0), (6, 5)):
        if family.tails == "linear":
            slopes[i] = min(1.0, 3 * mean[j])
        else:
            start = math.log(0.999 / 2)
            slopes[i] = mean[j] * (1e-3 + (3 - 1e-3) / (1 + math.exp(-float(raw[0, 12 + (i > 0)]) - start)))
    wanted = scipy.interpolate.CubicHermiteSpline(places, values, slopes)
    z, ladj = family.encode(x, raw.expand(len(x), -1))
    torch.testing.assert_close(z, torch.from_numpy(wanted(x.numpy())), rtol=0, atol=1e-11)
    torch.testing.assert_close(ladj.exp(), torch.from_numpy(wanted.derivative()(x.numpy())), rtol=1e-9, atol=1e-10)


def test_the_cubics_root_is_found_at_every_slope_and_height():
    ends = torch.cat(
        (torch.logspace(-9, -1, 9), torch.linspace(0.2, 3.0, 29), 1 + torch.tensor([-1e-9, 0.0, 1e-9]))
    ).double()
    height = torch.cat(
        (torch.logspace(-12, -1, 12), torch.linspace(0.0, 1.0, 41), 1 - torch.logspace(-12, -1, 12))
    ).double()
    theta = torch.meshgrid(height, ends, ends, indexing="ij")[0]
    _, a, b = torch.meshgrid(height, ends, ends, indexing="ij")
    possible = torch.minimum(a, b) <= 2  # only one end of a bin lies on the edge of the box
    theta, a, b = theta[possible], a[possible], b[possible]
    eta = _cubic(theta, a, b)
    found = _root(eta, a, b)
    for _ in range(2):
        found = within(found - (_cubic(found, a, b) - eta) / _rise(found, a, b))
    slope = torch.minimum(_rise(theta, a, b), _rise(found, a, b))
    assert ((found - theta).abs() <= 1e-13 * (1 + 1 / slope)).all()


@each_family
@pytest.mark.parametrize("bound", [3.0, 32.0, 1000.0])
def test_edges_are_exact_in_float32(family, bound, generator):
    family = type(family)(bins=6, bound=bound, tails=family.tails)
    edge = torch.tensor([-bound, bound])
    inner = torch.nextafter(edge, torch.zeros(2))
    for scale in (0.0, 1.0, 10.0):
        raw = draw(family, 1, scale, generator, torch.float32).expand(2, -1)
        for method in (family.encode, family.decode):
            value, _ = method(edge, raw)
            assert (value == edge).all()
            near, ladj = method(inner, raw)
            assert ((near - edge).abs() <= 8 * EPS * bound * (1 + ladj.exp())).all()


@each_family
def test_far_out_and_off_the_line(family, generator):
    raw = draw(family, 3, 1.0, generator, torch.float32)
    x = torch.tensor([-math.inf, math.nan, math.inf])
    value, ladj = family.encode(x, raw)
    assert value[0] == -math.inf
    assert value[1].isnan()
    assert value[2] == math.inf
    assert ladj[1].isnan() or isinstance(family, LinearSpline)
    assert ladj[[0, 2]].isfinite().all()
    x = torch.tensor([-1e20, 40.0, 1e20]).requires_grad_()
    raw.requires_grad_()
    for method in (family.encode, family.decode):
        value, ladj = method(x, raw)
        gradients = torch.autograd.grad(value.sum() + ladj.sum(), (x, raw), allow_unused=True)
        assert all(each.isfinite().all() for each in gradients)
        torch.testing.assert_close(gradients[0].log(), ladj.detach(), rtol=1e-5, atol=1e-5)


@each_family
@pytest.mark.parametrize("scale", [1.0, 5.0, 10.0])
def test_float32_round_trips_cost_few_roundings(family, scale, generator):
    for method, back in ((family.encode, family.decode), (family.decode, family.encode)):
        x = 7 * torch.rand(20_000, generator=generator) - 3.5
        raw = draw(family, len(x), scale, generator, torch.float32)
        y, ladj = method(x, raw)
        again, inverse = back(y, raw)
        assert all(each.isfinite().all() for each in (y, ladj, again, inverse))
        slopes = [method(each.double(), raw.double())[1].exp() for each in (x, again)]
        condition = torch.maximum(x.abs(), y.abs()).clamp(min=3.0) * (1 + 1 / torch.minimum(*slopes))
        assert ((again - x).abs() / condition).max() <= 64 * EPS


@each_family
def test_boxes_have_mass_one(family, generator):
    x = torch.linspace(-3, 3, 400_001, dtype=torch.float64)
    _, ladj = family.encode(x, draw(family, 1, 1.0, generator).expand(len(x), -1))
    assert abs(float(torch.trapezoid(ladj.exp() / 6, x)) - 1) < 1e-4  # jumps of the density cost a step of the rule


# Not the linear ones, whose density jumps at knots.
@pytest.mark.parametrize("family", [each for each in FAMILIES if not isinstance(each, LinearSpline)], ids=repr)
def test_neighbouring_bins_meet_with_equal_slopes(family, generator):
    raw = draw(family, 1, 0.7, generator)
    places = torch.from_numpy(knots(raw[0, :6]))[1:-1]
    sides = [family.encode(places + shift, raw.expand(5, -1)) for shift in (-1e-10, 1e-10)]
    torch.testing.assert_close(*(each[1] for each in sides), rtol=0, atol=1e-7)
    torch.testing.assert_close(*(each[0] for each in sides), rtol=0, atol=1e-7)


@pytest.mark.parametrize("family", [LinearSpline, QuadraticSpline, CubicSpline])
def test_tails_that_a_family_lacks_are_refused(family):
    with pytest.raises(ValueError, match="tails='circular'.*'linear', 'box'"):
        family(tails="circular")


@each_family
def test_on_the_knots_of_equal_bins_the_identity_has_the_gradient_one(family):
    x = (6 * torch.arange(1, 6) / 6 - 3.0).requires_grad_()
    ends = torch.full_like(x, 9.0)
    for near in (x, *(torch.nextafter(x.detach(), each).requires_grad_() for each in (-ends, ends))):
        for method in (family.encode, family.decode):
            value, _ = method(near, torch.zeros(5, family.size))
            (slope,) = torch.autograd.grad(value.sum(), near, retain_graph=True)
            torch.testing.assert_close(slope, torch.ones(5), rtol=0, atol=1e-4)
