import copy
import math

import numpy
import pytest
import scipy.stats
import torch
from base_members import members, name
from torch import nn

from cflow.bases import Mixture, Normal, StudentT, Uniform
from cflow.registry import build, configuration

ALARM = 1e-4  # every KS test below fails for one seed in 10,000 when the law is right


each = pytest.mark.parametrize("base", members(), ids=name)


@each
@pytest.mark.parametrize("shape", [(), (5,), (2, 4), (0,), (1,)])
def test_draws_and_densities_have_the_promised_shapes(base, shape, generator):
    x = base.sample(shape, generator=generator)
    assert x.shape == (*shape, *base.event_shape)
    assert x.dtype == torch.float32
    density = base.log_prob(x)
    assert density.shape == shape
    assert density.isfinite().all()


@each
def test_a_generator_reproduces_draws_and_the_default_one_is_used_without(base):
    first, again = (base.sample((50,), generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, base.sample((50,), generator=torch.Generator().manual_seed(8)))
    state = torch.get_rng_state()
    base.sample((50,), generator=torch.Generator().manual_seed(7))
    assert torch.equal(state, torch.get_rng_state())
    base.sample((50,))
    assert not torch.equal(state, torch.get_rng_state())


@each
def test_configuration_rebuilds_the_same_law(base, generator):
    rebuilt = build(type(base), configuration(base))
    x = base.sample((20,), generator=generator)
    assert torch.equal(rebuilt.log_prob(x), base.log_prob(x))
    assert rebuilt.event_shape == base.event_shape
    assert rebuilt.state_dict().keys() == base.state_dict().keys()
    copied = copy.deepcopy(base)
    assert torch.equal(copied.log_prob(x), base.log_prob(x))
    assert base.context_shape is None


@each
def test_dtype_follows_the_module_but_never_below_float32(base, generator):
    assert len(list(base.buffers())) >= 1
    wide = copy.deepcopy(base).double()
    x = wide.sample((6,), generator=generator)
    assert x.dtype == wide.log_prob(x).dtype == torch.float64
    for narrow in (torch.bfloat16, torch.float16):
        cast = copy.deepcopy(base).to(narrow)
        draws = cast.sample((6,), generator=generator)
        assert draws.dtype == torch.float32
        assert cast.log_prob(draws.to(narrow)).dtype == torch.float32
    assert base.log_prob(x).dtype == torch.float64
    torch.testing.assert_close(base.log_prob(x), wide.log_prob(x), rtol=1e-6, atol=1e-6)


@each
def test_a_base_moves_between_devices(base):
    moved = copy.deepcopy(base).to("meta")
    assert moved.device.type == "meta"
    assert moved.sample((2,)).device.type == "meta"
    assert moved.log_prob(torch.empty(2, *base.event_shape, device="meta")).device.type == "meta"


@each
def test_context_and_mask_are_refused(base):
    x = torch.zeros(2, *base.event_shape)
    with pytest.raises(ValueError, match=r"sample\(context=Tensor of shape \[2, 3\]\).*omit it"):
        base.sample((2,), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="does not depend on a mask"):
        base.sample((2,), mask=torch.ones(2))
    with pytest.raises(ValueError, match=r"log_prob.*does not depend on a context"):
        base.log_prob(x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"log_prob.*does not depend on a mask"):
        base.log_prob(x, mask=torch.ones(2))


def test_normal_has_the_density_of_scipy(generator, float64):
    loc, scale = torch.tensor([0.0, -2.0, 5.0]), torch.tensor([[1.0], [3.0]])
    x = 4 * torch.randn(10, 2, 3, generator=generator)
    expected = scipy.stats.norm(loc, scale).logpdf(x).sum((1, 2))
    numpy.testing.assert_allclose(Normal((2, 3), loc, scale).log_prob(x), expected, rtol=1e-12)
    numpy.testing.assert_allclose(Normal((2, 3)).log_prob(x), scipy.stats.norm().logpdf(x).sum((1, 2)), rtol=1e-12)
    numpy.testing.assert_allclose(
        Normal((2, 3), scale=2.0).log_prob(x), scipy.stats.norm(0, 2).logpdf(x).sum((1, 2)), rtol=1e-12
    )


def test_uniform_has_the_density_of_scipy(generator, float64):
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.5])
    x = 2 * torch.rand(200, 2, generator=generator) - 1
    expected = scipy.stats.uniform(low, high - low).logpdf(x).sum(1)
    assert numpy.isinf(expected).any()
    assert numpy.isfinite(expected).any()
    numpy.testing.assert_allclose(Uniform(2, low, high).log_prob(x), expected, rtol=1e-12)
    assert Uniform(2).log_prob(torch.tensor([0.0, 1.0])) == 0  # both ends belong to the interval
    assert Uniform(1).log_prob(torch.tensor([torch.nan])).isnan()


@pytest.mark.parametrize("scales", [0.7, [0.5, 1.0, 2.0], [[[0.5, 1.0]], [[0.7, 2.0]], [[3.0, 0.1]]]])
@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.0]])
def test_mixture_has_the_density_of_scipy(scales, weights, generator, float64):
    means = 3 * torch.randn(3, 1, 2, generator=generator)
    x = 3 * torch.randn(20, 1, 2, generator=generator)
    base = Mixture(means, scales if isinstance(scales, float) else torch.tensor(scales), weights)
    spread = numpy.array(scales).reshape((-1, 1, 1) if numpy.ndim(scales) < 2 else (3, 1, 2))
    spread = numpy.broadcast_to(spread, (3, 1, 2))
    share = numpy.array([1, 1, 1] if weights is None else weights)
    share = share / share.sum()
    parts = [w * numpy.exp(scipy.stats.norm(m, s).logpdf(x).sum((1, 2))) for w, m, s in zip(share, means, spread)]
    numpy.testing.assert_allclose(base.log_prob(x), numpy.log(sum(parts)), rtol=1e-10)


@pytest.mark.parametrize("df", [0.5, 1.0, 3.7, 200.0, 1e6])
def test_student_t_has_the_density_of_scipy(df, generator, float64):
    x = 10 * torch.randn(30, 3, generator=generator)
    scale = torch.tensor([0.5, 1.0, 2.0])
    expected = scipy.stats.t(df, 1.0, scale).logpdf(x).sum(1)
    numpy.testing.assert_allclose(StudentT(3, df, 1.0, scale).log_prob(x), expected, rtol=1e-7)
    narrow = StudentT(3, df, 1.0, scale.float()).log_prob(x.float())
    numpy.testing.assert_allclose(narrow, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("base", "law"),
    [
        (Normal(1, loc=2.0, scale=0.3), scipy.stats.norm(2.0, 0.3)),
        (Normal(1), scipy.stats.norm()),
        (Uniform(1, low=-3.0, high=-1.0), scipy.stats.uniform(-3, 2)),
        (StudentT(1, df=0.7), scipy.stats.t(0.7)),
        (StudentT(1, df=1.0, loc=1.0, scale=2.0), scipy.stats.cauchy(1, 2)),
        (StudentT(1, df=torch.tensor(5.0)), scipy.stats.t(5)),
        (StudentT(1, df=1e5), scipy.stats.norm()),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_follow_the_law_of_scipy(base, law, dtype, generator):
    x = copy.deepcopy(base).to(dtype).sample((20_000,), generator=generator)
    assert scipy.stats.kstest(x.squeeze(1).double().numpy(), law.cdf).pvalue > ALARM


def test_draws_of_a_student_t_reach_its_tails(generator):
    # P(|t_2| > 100) = 1e-4: of 200,000 draws 20 +- 4.5 exceed it; outside [4, 40] fewer than once in 10,000 seeds.
    x = StudentT(1, df=2.0).sample((200_000,), generator=generator)
    assert 4 <= (x.abs() > 100).sum() <= 40
    assert x.isfinite().all()


def test_entries_of_a_student_t_are_independent(generator):
    # Under dependence through a shared chi-square (the multivariate t) the absolute values correlate.
    x = StudentT(2, df=3.0).sample((20_000,), generator=generator).numpy()
    assert scipy.stats.spearmanr(abs(x[:, 0]), abs(x[:, 1])).pvalue > ALARM
    assert scipy.stats.spearmanr(x[:, 0], x[:, 1]).pvalue > ALARM


@pytest.mark.parametrize("weights", [None, [0.2, 0.0, 0.5, 0.0]])
def test_draws_of_a_mixture_follow_it(weights, generator):
    means, scales = torch.tensor([-4.0, 0.0, 1.0, 9.0]), torch.tensor([0.5, 1.0, 0.1, 2.0])
    base = Mixture(means, scales, weights)
    x = base.sample((20_000,), generator=generator).numpy()
    share = numpy.array(weights or [1.0] * 4)

    def cdf(value):
        parts = [w * scipy.stats.norm(m, s).cdf(value) for w, m, s in zip(share / share.sum(), means, scales)]
        return sum(parts)

    assert scipy.stats.kstest(x, cdf).pvalue > ALARM


@each
def test_densities_are_those_of_the_draws(base, generator, float64):
    # Importance identity: draws of p weighted by q/p integrate q to one, where q is p seen through a change of scale.
    # The contraction keeps q inside p's support and lighter in the tails, so the weights are bounded or nearly so.
    base = copy.deepcopy(base).double()
    middle = base.sample((4001,), generator=generator).median(0).values
    x = base.sample((20_000,), generator=generator)
    dimensions = max(base.event_shape.numel(), 1)
    log_weight = base.log_prob(middle + (x - middle) / 0.9) - dimensions * math.log(0.9) - base.log_prob(x)
    weight = log_weight.exp()
    error = weight.std() / math.sqrt(len(weight))
    assert abs(weight.mean() - 1) < 3.9 * error  # one seed in 10,000


def test_standard_is_known_without_asking_the_device():
    assert Normal(3).is_standard
    assert Normal(3, loc=torch.zeros(3), scale=torch.ones(())).is_standard
    assert not Normal(3, loc=0.1).is_standard
    assert not Normal(3, scale=torch.tensor([1.0, 1.0, 2.0])).is_standard
    assert not Normal(3, loc=nn.Parameter(torch.zeros(3))).is_standard
    assert Normal(3).to("meta").is_standard
    base = Normal(3, loc=torch.zeros(3))
    base.load_state_dict(Normal(3, loc=torch.ones(3)).state_dict())
    assert not base.is_standard
    torch.testing.assert_close(base.log_prob(torch.ones(3)), Normal(3).log_prob(torch.zeros(3)))


def test_floats_stay_exact_when_the_module_is_cast():
    base = Normal(1, loc=0.1).to(torch.bfloat16).to(torch.float64)
    assert base.loc == 0.1
    assert configuration(base) == {"event_shape": torch.Size([1]), "loc": 0.1, "scale": 1.0}


def test_parameters_are_trained_through_draws_and_densities(generator):
    loc, scale, df = (nn.Parameter(torch.ones(2) * v) for v in (0.0, 1.0, 3.0))
    base = StudentT(2, df, loc, scale)
    assert [n for n, _ in base.named_parameters()] == ["df", "loc", "scale"]
    for value in (base.sample((5,), generator=generator).square().mean(), base.log_prob(torch.rand(5, 2)).mean()):
        for gradient in torch.autograd.grad(value, [df, loc, scale]):
            assert gradient.isfinite().all()
            assert (gradient != 0).all()
    assert not Normal(2, torch.zeros(2)).sample((3,)).requires_grad


def test_arguments_are_copied():
    means = torch.zeros(2, 1)
    base = Mixture(means)
    means += 5
    assert (base.means == 0).all()


@pytest.mark.parametrize(
    "base", [Normal((2, 3)), Uniform((2, 3)), StudentT((2, 3), 3.0), Mixture(torch.zeros(4, 2, 3))]
)
def test_a_wrong_event_is_named(base):
    for wrong in ((5, 3, 2), (3,), (2, 1)):
        with pytest.raises(ValueError, match=r"log_prob\(x of shape .*events have shape \[2, 3\]; pass a tensor"):
            base.log_prob(torch.zeros(wrong))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Normal(0), "positive integers"),
        (lambda: Normal((2, -1)), "positive integers"),
        (lambda: Normal((2, 1.5)), "positive integers"),
        (lambda: Normal(2, scale=0.0), r"scale=0.0\): it must be positive"),
        (lambda: Normal(2, scale=torch.tensor([1.0, -1.0])), r"scale=tensor of shape \[2\]\): it must be positive"),
        (lambda: Normal(2, loc=float("nan")), "finite numbers"),
        (lambda: Normal(2, loc=torch.zeros(3)), r"loc of shape \[3\].*the event \[2\]"),
        (lambda: Normal(2, loc=torch.zeros(1, 2)), r"loc of shape \[1, 2\]"),
        (lambda: Uniform(2, low=1.0, high=1.0), "high is not above low"),
        (lambda: Uniform(2, low=torch.tensor([0.0, 2.0])), "high is not above low"),
        (lambda: StudentT(2, df=0.0), "df=0.0"),
        (lambda: StudentT(2, df=1.0, scale=-1.0), "scale=-1.0"),
        (lambda: Mixture(torch.tensor(1.0)), "no components"),
        (lambda: Mixture(torch.zeros(0, 2)), "no components"),
        (lambda: Mixture(torch.zeros(3, 2), scales=torch.ones(2)), r"scales of shape \[2\]"),
        (lambda: Mixture(torch.zeros(3, 2), scales=0.0), "positive"),
        (lambda: Mixture(torch.zeros(3, 2), weights=[1.0, 2.0]), r"one weight per component, \[3\]"),
        (lambda: Mixture(torch.zeros(3, 2), weights=[1.0, 2.0, -1.0]), "none negative"),
        (lambda: Mixture(torch.zeros(3, 2), weights=[0.0, 0.0, 0.0]), "not all zero"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
