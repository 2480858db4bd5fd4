import math

import pytest
import torch

import cflow
from cflow import bijections, discrete
from cflow.testing import check_bijection

# name: (bijection of one number, function, its inverse, ends of its range)
MAPS = {
    "exp": (bijections.Exp, math.exp, math.log, (0.0, math.inf)),
    "sigmoid": (bijections.Sigmoid, lambda x: 1 / (1 + math.exp(-x)), lambda z: math.log(z / (1 - z)), (0.0, 1.0)),
    "softplus": (
        bijections.Softplus,
        lambda x: math.log1p(math.exp(x)),
        lambda z: math.log(math.expm1(z)),
        (0.0, math.inf),
    ),
    "tanh": (bijections.Tanh, math.tanh, math.atanh, (-1.0, 1.0)),
    "arcsinh": (bijections.Arcsinh, math.asinh, math.sinh, (-math.inf, math.inf)),
    "leaky": (
        lambda shape: bijections.LeakyReLU(shape, 0.25),
        lambda x: x if x > 0 else x / 4,
        lambda z: z if z > 0 else 4 * z,
        (-math.inf, math.inf),
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_each_is_the_function_it_is_named_after(name):
    kind, function, inverse, _ = MAPS[name]
    x = torch.tensor([-4.0, -0.5, 1e-3, 0.7, 5.0], dtype=torch.float64)
    z, _ = kind(()).encode(x)
    torch.testing.assert_close(z, torch.tensor([function(float(each)) for each in x], dtype=torch.float64))
    torch.testing.assert_close(kind(()).decode(z)[0], torch.tensor([inverse(float(each)) for each in z]).double())


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (2, 1, 2)])
def test_events_of_any_rank_sum_their_logs(name, shape, generator):
    layer = MAPS[name][0](shape)
    x = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    z, ladj = layer.encode(x)
    single, parts = MAPS[name][0](()).encode(x.flatten())
    torch.testing.assert_close(z.flatten(), single)
    torch.testing.assert_close(ladj, parts.reshape(4, math.prod(shape)).sum(1))
    assert layer.decode(z)[1].shape == (4,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MAPS)
def test_no_number_however_large_leaves_the_finite(name, dtype):
    kind = MAPS[name][0](())
    sizes = torch.tensor(
        [0.0, 1e-30, 1e-6, 1.0, 8.0, 9.0, 20.0, 40.0, 88.0, 120.0, 700.0, 1e4, 1e20, 1e38], dtype=dtype
    )
    x = torch.cat((sizes, -sizes)).requires_grad_()
    z, ladj = kind.encode(x)
    back, inverse = kind.decode(z)
    for value in (z, ladj, back, inverse):
        assert value.isfinite().all()
    gradients = torch.autograd.grad(z.sum() + ladj.sum(), x)
    assert gradients[0].isfinite().all()
    z = z.detach().requires_grad_()
    x, ladj = kind.decode(z)
    assert torch.autograd.grad(x.sum() + ladj.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["exp", "sigmoid", "softplus", "tanh"])
def test_ends_are_taken_as_the_last_number_inside_and_what_is_beyond_has_no_density(name, dtype):
    kind, _, _, (low, high) = MAPS[name]
    x, ladj = kind(()).decode(torch.tensor([low, high], dtype=dtype))
    assert x.isfinite().all()
    assert ladj.isfinite().all()
    beyond = torch.tensor(
        [low - 1e-3, *([high + 1e-3] if math.isfinite(high) else [])], dtype=dtype, requires_grad=True
    )
    nearest, none = kind(()).decode(beyond)
    assert torch.equal(nearest, x[: len(beyond)])
    assert (none == -math.inf).all()
    assert not torch.autograd.grad(nearest.sum() + none.sum(), beyond)[0].any()
    assert all(value.isnan().all() for value in kind(()).decode(torch.tensor([math.nan], dtype=dtype)))
    again, _ = kind(()).encode(x)
    assert ((again > low) & (again < high)).all()


def test_log_derivatives_keep_their_digits_far_out():
    """Against closed forms; naive formulas give log 0 or 1 - 1 there."""
    x = torch.tensor([-300.0, -60.0, 60.0, 300.0], dtype=torch.float64)
    torch.testing.assert_close(bijections.Tanh(()).encode(x)[1], math.log(4.0) - 2 * x.abs(), rtol=1e-14, atol=0)
    torch.testing.assert_close(bijections.Sigmoid(()).encode(x)[1], -x.abs(), rtol=1e-14, atol=0)
    torch.testing.assert_close(bijections.Softplus(()).encode(x)[1], x.clamp(max=0), rtol=1e-14, atol=1e-25)
    small = torch.tensor([1e-12, 1e-8], dtype=torch.float64)
    torch.testing.assert_close(bijections.Softplus(()).decode(small)[0], small.log() + small / 2, rtol=1e-15, atol=0)
    big = torch.tensor([-1e200, 1e200], dtype=torch.float64)
    torch.testing.assert_close(bijections.Arcsinh(()).encode(big)[1], -big.abs().log(), rtol=1e-14, atol=0)


def test_slopes_at_zero():
    for name, slope in (("exp", 1.0), ("sigmoid", 0.25), ("softplus", 0.5), ("tanh", 1.0), ("arcsinh", 1.0)):
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        z, ladj = MAPS[name][0](()).encode(x)
        torch.testing.assert_close(torch.autograd.grad(z, x)[0], torch.tensor([slope], dtype=torch.float64))
        torch.testing.assert_close(ladj.exp(), torch.tensor([slope], dtype=torch.float64))


def test_a_leaky_unit_needs_a_slope():
    for slope in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="no inverse"):
            bijections.LeakyReLU(2, slope)


def test_positive_data_get_the_density_of_a_log_normal(generator):
    flow = discrete.NormalizingFlow(bijections.Inverse(bijections.Exp(1)), cflow.bases.Normal(1))
    x = torch.rand(20, 1, generator=generator) * 5 + 0.1
    distribution = torch.distributions.LogNormal(0.0, 1.0)
    torch.testing.assert_close(flow.log_prob(x), distribution.log_prob(x).squeeze(1))


def test_standardise_standardises_what_it_was_fitted_to(generator):
    data = 1e4 + 3 * torch.randn(500, 2, 3, generator=generator)
    z, ladj = bijections.Standardise.fit(data).encode(data)
    torch.testing.assert_close(z.double().mean(0), torch.zeros(2, 3).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(z.double().var(0, correction=0), torch.ones(2, 3).double(), rtol=1e-3, atol=0)
    wanted = -data.double().std(0, correction=0).log().sum()
    torch.testing.assert_close(ladj, wanted.float().expand(500), rtol=1e-5, atol=1e-5)
    pooled = bijections.Standardise.fit(data, pooled=(-1,), learned=True)
    assert pooled.loc.shape == pooled.shift.shape == (2, 1)
    check_bijection(pooled, points=data[:5].double())
    with pytest.raises(ValueError, match="constant"):
        bijections.Standardise.fit(torch.ones(5, 2))


def test_standardise_refuses_what_it_cannot_divide_by():
    for loc, scale, message in (
        (0.0, 0.0, "positive"),
        (math.nan, 1.0, "finite"),
        (0.0, torch.ones(3), "broadcast"),
        (torch.zeros(1, 1, 2), 1.0, "broadcast"),
    ):
        with pytest.raises(ValueError, match=message):
            bijections.Standardise(2, loc, scale)


def test_standardise_learns_on_the_scale_of_what_it_was_given():
    layer = bijections.Standardise(1, 100.0, 10.0, learned=True)
    with torch.no_grad():
        layer.log_scale.fill_(math.log(2.0))
        layer.shift.fill_(-1.0)
    z, ladj = layer.encode(torch.tensor([[110.0]]))
    torch.testing.assert_close(z, torch.tensor([[1.0]]))
    torch.testing.assert_close(ladj, torch.tensor([math.log(0.2)]))
