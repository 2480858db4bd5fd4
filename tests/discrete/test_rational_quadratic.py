import math

import pytest
import torch
from torch.autograd.functional import jacobian

from cflow.discrete import RationalQuadratic
from cflow.testing.solvers.operations import Operations

EPS = torch.finfo(torch.float32).eps


def draw(family, count, scale, generator, dtype=torch.float64):
    return scale * torch.randn(count, family.size, generator=generator, dtype=dtype)


def by_the_paper(x, raw, family):
    """Equations 4 and 5 of Neural Spline Flows, one number at a time, with knots from cumulative sums."""
    bins, low = family.bins, -family.bound
    share = lambda row: family.minimum_bin + (1 - family.minimum_bin * bins) * torch.softmax(row, 0)
    widths, heights = (2 * family.bound * share(row) for row in (raw[:bins], raw[bins : 2 * bins]))
    knots = [
        1.0,
        *(family.minimum_slope + (1 - family.minimum_slope) * math.log2(1 + 2**r) for r in raw[2 * bins :]),
        1,
    ]
    left, bottom = low, low
    for width, height, s0, s1 in zip(widths, heights, knots, knots[1:]):  # noqa: B007
        if x < left + width:
            break
        left, bottom = left + width, bottom + height
    t, s = (x - left) / width, height / width
    bottom_part = s + (s1 + s0 - 2 * s) * t * (1 - t)
    z = bottom + height * (s * t**2 + s0 * t * (1 - t)) / bottom_part
    slope = s**2 * (s1 * t**2 + 2 * s * t * (1 - t) + s0 * (1 - t) ** 2) / bottom_part**2
    return z, slope.log()


def test_it_is_the_spline_of_the_paper(generator):
    family = RationalQuadratic(bins=6, bound=3.0)
    raw, x = draw(family, 40, 1.5, generator), 6 * torch.rand(40, generator=generator, dtype=torch.float64) - 3
    z, ladj = family.encode(x, raw)
    wanted = torch.tensor([by_the_paper(*each, family) for each in zip(x, raw)], dtype=torch.float64)
    torch.testing.assert_close(torch.stack((z, ladj), 1), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("bound", [3.0, 32.0, 50.0, 1000.0])
@pytest.mark.parametrize("tails", ["linear", "box"])
def test_edges_and_their_neighbours_in_float32(bound, tails, generator):
    family = RationalQuadratic(bound=bound, tails=tails)
    edge = torch.tensor([-bound, bound])
    near = torch.cat([torch.nextafter(edge, edge * side) for side in (torch.zeros(()), torch.tensor(2.0))])
    for scale in (0.0, 1.0, 10.0):
        raw = draw(family, 1, scale, generator, torch.float32)
        for method in (family.encode, family.decode):
            value, ladj = method(edge, raw.expand(2, -1))
            assert (value == edge).all()
            around, ladj_near = method(near, raw.expand(4, -1))
            slopes = torch.cat((ladj, ladj)).exp()
            assert ((around - torch.cat((edge, edge))).abs() <= 8 * EPS * bound * (1 + slopes)).all()
            if scale == 1.0:  # the density is continuous at the edge
                torch.testing.assert_close(ladj_near, torch.cat((ladj, ladj)), atol=1e-4, rtol=0)


def test_infinities_stay_and_nan_stays_nan():
    family = RationalQuadratic()
    x = torch.tensor([-math.inf, math.inf, math.nan])
    for method in (family.encode, family.decode):
        value, ladj = method(x, torch.ones(3, family.size))
        assert value[0] == -math.inf
        assert value[1] == math.inf
        assert ladj[:2].eq(0).all()
        assert value[2].isnan()
        assert ladj[2].isnan()


def test_outside_the_box_gradients_are_finite_and_those_of_the_identity(generator):
    family = RationalQuadratic()
    for scale in (1.0, 10.0, 100.0):
        x = torch.tensor([-1e30, -7.0, -5.0, 5.0, 6.0, 1e30]).requires_grad_()
        raw = draw(family, 6, scale, generator, torch.float32).requires_grad_()
        for method in (family.encode, family.decode):
            value, ladj = method(x, raw)
            assert torch.equal(value, x)
            assert ladj.eq(0).all()
            gx, graw = torch.autograd.grad(value.sum() + ladj.sum(), (x, raw))
            assert gx.eq(1).all()
            assert graw.eq(0).all()


def test_points_on_knots_have_the_slope_of_the_knot(generator):
    family = RationalQuadratic(bins=4, bound=2.0)
    raw = draw(family, 1, 1.0, generator).expand(3, -1)
    widths = 4 * (1e-3 + (1 - 4e-3) * raw[0, :4].softmax(0))
    wanted = torch.log(1e-3 + (1 - 1e-3) * torch.log2(1 + 2 ** raw[0, 8:]))
    for shift in (-1e-12, 0.0, 1e-12):
        knots = (widths.cumsum(0)[:3] - 2 + shift).requires_grad_()
        z, ladj = family.encode(knots, raw)
        torch.testing.assert_close(ladj, wanted, rtol=0, atol=1e-7 if shift else 1e-10)
        (slope,) = torch.autograd.grad(z.sum(), knots)
        torch.testing.assert_close(slope.log(), wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 5.0, 10.0])
def test_float32_round_trips_cost_few_roundings_and_are_never_nan(scale, generator):
    family = RationalQuadratic()
    for method, back in ((family.encode, family.decode), (family.decode, family.encode)):
        x = 12 * torch.rand(60_000, generator=generator) - 6
        raw = draw(family, len(x), scale, generator, torch.float32)
        y, ladj = method(x, raw)
        again, inverse = back(y, raw)
        for each in (y, ladj, again, inverse):
            assert each.isfinite().all()
        # The slope at hand and at what came back: in a bin that is flat in its middle they may differ.
        slopes = [method(each.double(), raw.double())[1].exp() for each in (x, again)]
        condition = torch.maximum(x.abs(), y.abs()).clamp(min=5.0) * (1 + 1 / torch.minimum(*slopes))
        assert ((again - x).abs() / condition).max() <= 64 * EPS


def test_a_circle_is_mapped_onto_itself_smoothly(generator):
    family = RationalQuadratic(bins=5, bound=math.pi, tails="circular")
    raw = draw(family, 1, 1.0, generator)
    x = torch.linspace(-math.pi, math.pi, 4001, dtype=torch.float64)[:-1].requires_grad_()
    z, ladj = family.encode(x, raw.expand(4000, -1))
    assert (z >= -math.pi).all()
    assert (z < math.pi).all()
    torch.testing.assert_close(torch.autograd.grad(z.sum(), x)[0].log(), ladj, rtol=1e-9, atol=1e-9)
    z, ladj, x = z.detach(), ladj.detach(), x.detach()
    assert abs(float(ladj.exp().mean()) - 1) < 1e-5  # once around
    steps = torch.remainder(z.roll(-1) - z + 1.0, 2 * math.pi) - 1.0
    assert (steps > 0).all()
    assert abs(float(steps.sum()) - 2 * math.pi) < 1e-9
    assert (ladj.roll(-1) - ladj).abs().max() < 0.05  # no jump, where the circle closes either
    back, inverse = family.decode(z, raw.expand(4000, -1))
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(inverse, -ladj, rtol=0, atol=1e-8)
    around, _ = family.encode(x + 6 * math.pi, raw.expand(4000, -1))
    torch.testing.assert_close(around, z, rtol=0, atol=1e-12)


def test_a_circle_of_zeros_is_the_identity_and_its_phase_a_rotation():
    family = RationalQuadratic(bins=3, bound=2.0, tails="circular")
    x, raw = torch.tensor([-2.0, -0.5, 0.0, 1.5]), torch.zeros(4, family.size)
    torch.testing.assert_close(family.encode(x, raw)[0], x, rtol=0, atol=1e-6)
    raw[:, -1] = 1.0
    torch.testing.assert_close(family.encode(x, raw)[0], torch.tensor([-1.0, 0.5, 1.0, -1.5]), rtol=0, atol=1e-6)


def test_circles_stay_in_the_half_open_box_in_float32(generator):
    family = RationalQuadratic(bound=1.0, tails="circular")
    x = torch.cat(
        (torch.tensor([-1.0, 1.0, -1.0 - 1e-7, 0.9999999, -0.9999999]), torch.randn(500, generator=generator))
    )
    for scale in (0.0, 3.0):
        raw = draw(family, len(x), scale, generator, torch.float32)
        for method in (family.encode, family.decode):
            value, ladj = method(x, raw)
            assert (value >= -1).all()
            assert (value < 1).all()
            assert ladj.isfinite().all()


def test_affine_tails_go_on_in_straight_lines_from_a_learned_box(generator):
    family = RationalQuadratic(bins=4, bound=1.0, tails="affine")
    raw = draw(family, 1, 1.0, generator)
    place, scale = raw[0, -4:-2], 3 * torch.tanh(raw[0, -2:] / 3)
    edges = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    z, ladj = family.encode(place[0] + edges * scale[0].exp(), raw.expand(2, -1))
    torch.testing.assert_close(z, place[1] + edges * scale[1].exp(), rtol=1e-12, atol=1e-12)
    far = place[0] + 3 * edges * scale[0].exp()
    beyond, same = family.encode(far, raw.expand(2, -1))
    torch.testing.assert_close(same, ladj, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(beyond - z, ladj.exp() * 2 * edges * scale[0].exp(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tails", ["linear", "box", "affine"])
def test_a_density_through_it_has_mass_one(tails, generator):
    family = RationalQuadratic(bound=3.0, tails=tails)
    raw = draw(family, 1, 1.0, generator)
    x = torch.linspace(-60, 60, 400_001, dtype=torch.float64)
    z, ladj = family.encode(x, raw.expand(len(x), -1))
    density = (ladj - z.square() / 2).exp() / math.sqrt(2 * math.pi)
    assert abs(float(torch.trapezoid(density, x)) - 1) < 1e-6


def test_entries_know_nothing_of_one_another(generator):
    family = RationalQuadratic(bins=3)
    x, raw = torch.randn(4, generator=generator, dtype=torch.float64), draw(family, 4, 1.0, generator)
    whole = jacobian(lambda raw: family.encode(x, raw)[0], raw)
    assert all(whole[i, j].eq(0).all() for i in range(4) for j in range(4) if i != j)


def test_calls_stay_within_a_budget_and_read_nothing_from_the_device():
    family = RationalQuadratic()
    x, raw = torch.zeros(8, 2), torch.zeros(8, 2, family.size)
    for method, budget in ((family.encode, 46), (family.decode, 56)):
        with Operations() as operations:
            method(x, raw)
        assert operations.counts.total() <= budget
        assert operations.reads == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tails": "cubic"}, "tails='cubic'.*linear"),
        ({"bins": 1}, "two bins"),
        ({"bound": 0.0}, "bound=0.0"),
        ({"minimum_bin": 0.2}, "less than 0.125"),
        ({"minimum_slope": 1.0}, "minimum_slope=1.0"),
    ],
)
def test_what_makes_no_spline_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RationalQuadratic(**arguments)
