import math

import numpy as np
import pytest
import scipy.stats
import torch

from cflow.bijections import Compose, Dequantise, Exp, Inverse, Logit, Rescale, Sigmoid, Standardise
from cflow.registry import build, configuration
from cflow.testing import check_surjection


def members(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    loc = torch.randn(2, 3, generator=generator, dtype=dtype)
    scale = torch.rand(2, 1, generator=generator, dtype=dtype) + 0.1
    return {
        "standardise": Standardise((2, 3), loc, scale),
        "standardise-scalar": Standardise((2, 3), torch.tensor(1.5, dtype=dtype), torch.tensor(2.5, dtype=dtype)),
        "rescale": Rescale((2, 3), -2.0, 5.0),
        "logit": Logit((2, 3)),
        "logit-0": Logit((2, 3), alpha=0.0),
        "logit-mnist": Logit((2, 3), alpha=1e-6),
    }


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("name", members())
def test_round_trip_in_either_precision(name, count, generator):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        transform = members(dtype)[name]
        x = 0.01 + 0.98 * torch.rand(count, 2, 3, generator=generator, dtype=dtype)
        u, forth = transform.encode(x)
        y, back = transform.decode(u)
        assert u.dtype == y.dtype == forth.dtype == dtype
        assert forth.shape == back.shape == (count,)
        assert torch.allclose(y, x, rtol=0, atol=tolerance)
        assert torch.allclose(forth, -back, rtol=tolerance, atol=1e3 * tolerance)


@pytest.mark.parametrize("name", [*members(), "dequantise"])
def test_is_rebuilt_from_its_configuration(name):
    transform = {**members(), "dequantise": Dequantise(4, levels=17)}[name]
    again = build(type(transform), configuration(transform))
    assert again.event_shape == transform.event_shape
    state = again.state_dict()
    assert state.keys() == transform.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in transform.state_dict().items())


def test_standardise_fit_pools_what_it_is_told(generator):
    images = 3 + torch.tensor([1.0, 7.0])[:, None, None] * torch.randn(500, 2, 4, 5, generator=generator)
    u, _ = Standardise.fit(images).encode(images)
    assert torch.allclose(u.mean(0), torch.zeros(2, 4, 5), atol=1e-5)
    assert torch.allclose(u.std(0, correction=0), torch.ones(2, 4, 5), atol=1e-5)
    by_channel = Standardise.fit(images, pooled=(-2, -1))
    assert by_channel.scale.shape == (2, 1, 1)
    u, _ = by_channel.encode(images)
    assert torch.allclose(u.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-5)
    assert not torch.allclose(u.std(0, correction=0), torch.ones(2, 4, 5), atol=1e-3)
    assert Standardise.fit(images, pooled=(-3, -2, -1)).scale.shape == (1, 1, 1)
    assert Standardise.fit(images, dtype=torch.float64).loc.dtype == torch.float64


def test_standardise_fit_measures_large_offsets_and_integers_exactly():
    data = torch.tensor([[1e8], [1e8 + 1], [1e8 + 2]], dtype=torch.float64)
    fitted = Standardise.fit(data)
    assert torch.allclose(fitted.scale, torch.tensor([math.sqrt(2 / 3)], dtype=torch.float64), rtol=1e-12)
    fitted = Standardise.fit(torch.tensor([[0, 4], [2, 8]], dtype=torch.uint8))
    assert fitted.loc.tolist() == [1.0, 6.0]
    assert fitted.scale.tolist() == [1.0, 2.0]


def test_standardise_fit_counts_every_chunk(generator):
    data = torch.randn(10_000, 3, generator=generator, dtype=torch.float64)
    fitted = Standardise.fit(data)
    assert torch.allclose(fitted.loc, data.mean(0), rtol=0, atol=1e-12)
    assert torch.allclose(fitted.scale, data.std(0, correction=0), rtol=1e-12)


def test_constant_features_are_refused_or_given_a_scale():
    data = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0]])
    with pytest.raises(ValueError, match=r"1 of 2 features are constant \(at \(0,\)\)"):
        Standardise.fit(data)
    assert Standardise.fit(data, minimum_scale=1.0).scale[0] == 1.0
    assert Standardise.fit(data, minimum_scale=1e-6).scale[1] == pytest.approx(math.sqrt(2 / 3))


def test_standardise_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="does not broadcast"):
        Standardise(3, torch.zeros(4), torch.ones(3))
    with pytest.raises(ValueError, match="positive"):
        Standardise(2, 0.0, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="not finite"):
        Standardise.fit(torch.tensor([[0.0], [math.nan]]))
    with pytest.raises(ValueError, match="at least two items"):
        Standardise.fit(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="pass some of these"):
        Standardise.fit(torch.randn(5, 3), pooled=(-2,))
    with pytest.raises(ValueError, match=r"events of shape \[3\]"):
        Standardise(3, 0.0, 1.0).encode(torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"pass \[B, 2, 3\]"):
        Standardise((2, 3), 0.0, 1.0).decode(torch.zeros(3))


def test_scalar_events():
    u, ladj = Standardise((), 1.0, 2.0).encode(torch.tensor([1.0, 5.0]))
    assert u.tolist() == [0.0, 2.0]
    assert torch.allclose(ladj, torch.full((2,), -math.log(2)))


def test_half_precision_is_computed_in_float32():
    u, ladj = Logit(2).encode(torch.tensor([[0.25, 0.5]], dtype=torch.bfloat16))
    assert u.dtype == ladj.dtype == torch.float32


def test_rescale_meets_the_ends():
    u, _ = Rescale((), 0, 255).encode(torch.tensor([0, 255], dtype=torch.uint8))
    assert u.tolist() == [-1.0, 1.0]
    with pytest.raises(ValueError, match="low < high"):
        Rescale(2, 1.0, 1.0)


def test_logit_refuses_what_is_outside():
    with pytest.raises(ValueError, match=r"1 of 2 values are NaN or outside \[0, 1\]"):
        Logit(2).encode(torch.tensor([[0.5, 200.0]]))
    with pytest.raises(ValueError, match="NaN or outside"):
        Logit(2).encode(torch.tensor([[0.5, math.nan]]))
    with pytest.raises(ValueError, match="at its ends"):
        Logit(2, alpha=0.0).encode(torch.tensor([[0.5, 0.0]]))
    with pytest.raises(ValueError, match="alpha"):
        Logit(2, alpha=0.5)
    Logit(2).encode(torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logit_encodes_whatever_it_decodes(alpha, dtype):
    u = torch.linspace(-60, 60, 1201, dtype=dtype)[:, None]
    logit = Logit(1, alpha=alpha)
    x, _ = logit.decode(u)
    again, ladj = logit.encode(x)
    assert again.isfinite().all()
    assert ladj.isfinite().all()
    middle = u.abs() < 5
    assert torch.allclose(again[middle], u[middle], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dequantise_never_changes_a_level(dtype, monkeypatch):
    for levels in (2, 3, 5, 17, 100, 255, 256, 1000, 65_535, 65_536):
        x = torch.arange(levels, dtype=dtype)
        transform = Dequantise((), levels)
        for extreme in (0, -1):  # the smallest and the largest noise that can be drawn
            monkeypatch.setattr(torch, "randint", lambda n, shape, extreme=extreme, **_: torch.full(shape, extreme % n))
            u, ladj = transform.encode(x)
            monkeypatch.undo()
            assert torch.equal(transform.decode(u)[0], x)
            assert u.min() > 0
            assert u.max() < 1
            assert torch.allclose(ladj, torch.full_like(ladj, -math.log(levels)))


def test_dequantising_noise_is_uniform(generator):
    u, _ = Dequantise((), 256).encode(torch.full((20_000,), 255), generator=generator)
    noise = u * 256 - 255
    assert scipy.stats.kstest(noise.numpy(), "uniform").pvalue > 1e-4  # fails once in 10,000 seeds
    again, _ = Dequantise((), 256).encode(
        torch.full((20_000,), 255), generator=torch.Generator().manual_seed(generator.initial_seed())
    )
    assert torch.equal(u, again)


def test_dequantised_density_bounds_the_log_mass_and_averages_to_it(generator):
    beta = torch.distributions.Beta(torch.tensor(2.0, dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64))
    transform = Dequantise((), 4)
    edges = scipy.stats.beta(2, 5).cdf([0, 0.25, 0.5, 0.75, 1])
    for level in range(4):
        draws = 20_000
        u, ladj = transform.encode(torch.full((draws,), level, dtype=torch.float64), generator=generator)
        estimate = beta.log_prob(u) + ladj
        mass = edges[level + 1] - edges[level]
        error = estimate.exp().std() / math.sqrt(draws)
        assert abs(estimate.exp().mean() - mass) < 4 * error + 1e-6  # fails once in 16,000 seeds
        assert estimate.mean() < math.log(mass)


def test_dequantise_clamps_and_refuses():
    x, ladj = Dequantise(3, 4).decode(torch.tensor([[-0.3, 0.5, 1.0]]))
    assert x.tolist() == [[0.0, 2.0, 3.0]]
    assert float(ladj) == pytest.approx(3 * math.log(4))
    assert not Dequantise(3).has_rsample
    assert Dequantise(3).likelihood == "bound"
    for bad in (0.5, -1.0, 256.0, math.nan):
        with pytest.raises(ValueError, match="not whole numbers from 0 to 255"):
            Dequantise(2).encode(torch.tensor([[0.0, bad]]))
    with pytest.raises(ValueError, match="levels"):
        Dequantise(2, levels=1)


def test_dequantise_conforms():
    x = torch.randint(7, (6, 2, 3), generator=torch.Generator().manual_seed(1))
    check_surjection(Dequantise((2, 3), levels=7), x)


def test_whole_numbers_are_taken_in_any_dtype():
    x = torch.tensor([[0, 3], [255, 7]], dtype=torch.uint8)
    for kind in (Dequantise(2), Standardise(2, 127.5, 60.0), Rescale(2, 0, 255), Compose(Rescale(2, 0, 255))):
        for dtype in (torch.uint8, torch.int64):
            z, _ = kind.encode(x.to(dtype), generator=torch.Generator().manual_seed(0))
            assert z.dtype == torch.float32
            torch.testing.assert_close(kind.decode(z)[0], x.float())
    with pytest.raises(TypeError, match="takes floating tensors"):
        Exp(2).encode(x)


def test_offsets_measured_in_float64_keep_their_digits():
    loc, scale = torch.tensor([1e8], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    z, ladj = Standardise(1, loc, scale).encode(torch.tensor([[100_000_008.0]]))
    assert z.tolist() == [[8.0]]
    assert z.dtype == ladj.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logit_and_the_inverse_of_sigmoid_are_one_function(dtype):
    x = torch.linspace(0.01, 0.99, 50, dtype=dtype)[:, None]
    for one, other in zip(Logit(1, alpha=0.0).encode(x), Inverse(Sigmoid(1)).encode(x)):
        torch.testing.assert_close(one, other)
    z = torch.linspace(-12, 12, 50, dtype=dtype)[:, None]
    for one, other in zip(Logit(1, alpha=0.0).decode(z), Inverse(Sigmoid(1)).decode(z)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("levels", [2.5, 256.0, True, "8", 1, 70_000])
def test_levels_are_counted(levels):
    with pytest.raises(ValueError, match="whole number from 2 to 65,536"):
        Dequantise(2, levels)


def test_data_to_standardise_are_a_tensor_and_go_to_fit():
    with pytest.raises(TypeError, match=r"Standardise.fit\(list\)"):
        Standardise.fit([1.0, 2.0])
    with pytest.raises(ValueError, match=r"shape tensor of shape \[200, 2\]: pass an int"):
        Standardise(torch.randn(200, 2))


def test_a_few_rows_that_decide_the_scale_are_named(generator):
    data = torch.randn(4000, 3, generator=generator)
    data[:4, 1] = 1e8
    with pytest.warns(UserWarning, match=r"about 4 rows decide the scale of 1 features \(at \(1,\)\)"):
        plain = Standardise.fit(data)
    assert plain.scale[1] > 1e6
    # Neither heavy tails of finite variance nor a rare indicator are taken for such rows (warnings are errors here).
    Standardise.fit(torch.randn(4000, 1, generator=generator).exp())
    Standardise.fit((torch.arange(4000) < 3).float()[:, None])


@pytest.mark.parametrize("pooled", [(), (-1,), (-2, -1), (-3, -2, -1)])
def test_robust_standardisation_measures_median_and_quantiles(pooled, generator):
    """Against NumPy's quantiles; of normal data they are mean and deviation, whatever four rows hold."""
    data = 7 + torch.tensor([1.0, 2.0, 3.0])[:, None, None] * torch.randn(400, 3, 2, 5, generator=generator).double()
    dims = (0, *pooled)
    robust = Standardise.fit(data, pooled=pooled, robust=True)
    share = 0.5 * math.erfc(2**-0.5)
    low, middle, high = np.quantile(data.numpy(), [share, 0.5, 1 - share], axis=dims, keepdims=True)
    np.testing.assert_allclose(robust.loc, middle[0], rtol=1e-12)
    np.testing.assert_allclose(robust.scale, (high - low)[0] / 2, rtol=1e-12)
    data[:4] = 1e8
    moved = Standardise.fit(data, pooled=pooled, robust=True)
    torch.testing.assert_close(moved.scale, robust.scale, rtol=0.05, atol=0)


def test_robust_scales_of_data_that_are_mostly_equal():
    data = torch.zeros(1000, 2)
    data[:100, 0] = torch.linspace(1, 2, 100)  # a tenth differs: wider quantiles
    data[:1, 1] = 1.0  # one value alone: the standard deviation
    scale = Standardise.fit(data, robust=True).scale
    assert 0.2 < scale[0] < 1
    torch.testing.assert_close(scale[1], data[:, 1].std(correction=0))
    with pytest.raises(ValueError, match="constant"):
        Standardise.fit(torch.ones(10, 1), robust=True)


def test_data_transforms_are_made_from_data(generator):
    bytes_ = torch.randint(0, 256, (20, 1, 2, 2), dtype=torch.uint8, generator=generator)
    assert Dequantise.fit(bytes_).levels == 256
    assert Dequantise.fit(torch.tensor([[0.0, 3.0], [5.0, 1.0]])).levels == 6
    assert Dequantise.fit(torch.zeros(3, 2, dtype=torch.int64)).levels == 2
    rescale = Rescale.fit(torch.tensor([[1.0, -3.0], [5.0, 2.0]]))
    assert (rescale.low, rescale.high, tuple(rescale.event_shape)) == (-3.0, 5.0, (2,))
    ends = torch.stack(Rescale.fit(bytes_).encode(bytes_)[0].aminmax())
    torch.testing.assert_close(ends, torch.tensor([-1.0, 1.0]))
    assert Logit.fit(torch.rand(9, 2, generator=generator), alpha=0.1).alpha == 0.1
    before = torch.get_rng_state()
    Dequantise.fit(bytes_)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [Dequantise, Logit, Rescale, Standardise])
@pytest.mark.parametrize("data", ["text", torch.zeros(0, 2), torch.tensor([[0.5, math.nan]]), torch.full((3, 2), 1e9)])
def test_what_a_data_transform_cannot_be_made_from_is_refused(kind, data):
    with pytest.raises((TypeError, ValueError), match=rf"^{kind.__name__}"):
        kind.fit(data)
