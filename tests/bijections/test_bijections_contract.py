"""The attributes of maps, and those of chains and inverses of maps."""

import pytest
import torch
from map_standins import NoisyDouble, RandomTrace, ShiftByContext

import cflow
from cflow import bases, bijections, discrete
from cflow.bijections.map import weakest
from cflow.testing import check_bijection


def test_the_names_of_the_room_are_shown_where_layers_are_stacked():
    assert cflow.bijections is bijections
    for name in (
        "Compose",
        "Inverse",
        "LULinear",
        "Permute",
        "Exp",
        "ActNorm",
        "Reversible",
        "Standardise",
        "Bijection",
    ):
        assert getattr(discrete, name) is getattr(bijections, name)


def test_the_weakest_promise_counts():
    assert weakest("exact", "estimate") == weakest("estimate", "exact") == "estimate"
    assert weakest("estimate", "bound", "exact") == "bound"
    exp, noisy, dequantise = bijections.Exp(2), NoisyDouble(2), bijections.Dequantise(2)
    for members, likelihood, draws, has_rsample in (
        ([exp], "exact", False, True),
        ([exp, noisy], "estimate", True, True),
        ([dequantise, bijections.Permute([1, 0]), noisy], "bound", True, False),
    ):
        for chain in (bijections.Compose(*members), bijections.Compose(bijections.Compose(*members))):
            assert (chain.likelihood, chain.draws, chain.has_rsample) == (likelihood, draws, has_rsample)
    assert bijections.Inverse(bijections.Compose(exp, noisy)).likelihood == "estimate"
    assert bijections.Compose(dequantise).levels == 256
    assert bijections.Compose(dequantise).takes_integers


@pytest.mark.parametrize("make", [lambda: NoisyDouble(3), lambda: RandomTrace(3)])
def test_random_log_determinants_conform(make):
    check_bijection(make())
    check_bijection(bijections.Compose(bijections.Permute([2, 0, 1]), make(), bijections.LULinear(3)))
    check_bijection(bijections.Inverse(make()))


def test_a_claim_of_an_exact_density_is_checked():
    class Dishonest(NoisyDouble):
        likelihood = "exact"

    with pytest.raises(AssertionError, match="log-determinant"):
        check_bijection(Dishonest(2))

    class Quiet(NoisyDouble):
        draws = False

    with pytest.raises(AssertionError, match="unbiased|varies|draws"):
        check_bijection(Quiet(2))


def test_only_what_draws_is_handed_the_generator(generator):
    class Strict(bijections.Permute):
        def encode(self, x, context=None):
            return super().encode(x, context)

    chain = bijections.Compose(Strict([1, 0]), NoisyDouble(2))
    x = torch.randn(5, 2, generator=generator)
    draws = [chain.encode(x, generator=torch.Generator().manual_seed(7))[1] for _ in range(2)]
    assert torch.equal(*draws)


def test_surjections_are_refused_where_an_inverse_is_taken():
    dequantise = bijections.Dequantise(2)
    for member in (dequantise, bijections.Compose(dequantise, bijections.Rescale(2))):
        with pytest.raises(ValueError, match="surjection"):
            bijections.Inverse(member)
        with pytest.raises(ValueError, match="no inverse"):
            bijections.Reversible(member)
    with pytest.raises(TypeError, match="not a bijections.Map"):
        bijections.Inverse(torch.nn.Identity())


def test_what_draws_is_refused_by_reversible():
    """The backward pass would draw other numbers, and compute the gradient of another function."""
    with pytest.raises(ValueError, match="draws random numbers"):
        bijections.Reversible(bijections.LULinear(2), NoisyDouble(2))


def test_a_chain_of_none_leaves_all_as_it_is(generator):
    chain = bijections.Compose(event_shape=(2, 3))
    x = torch.randn(4, 2, 3, generator=generator)
    for direction in (chain.encode, chain.decode):
        value, contribution = direction(x)
        assert torch.equal(value, x)
        assert contribution.tolist() == [0.0] * 4
    assert (chain.likelihood, chain.draws, chain.has_rsample, len(chain)) == ("exact", False, True, 0)
    with pytest.raises(ValueError, match="omit event_shape"):
        bijections.Compose(bijections.Exp(2), event_shape=3)


def test_slices_keep_shapes_and_members():
    chain = bijections.Compose(bijections.Reshape((2, 2), 4), bijections.LULinear(4), bijections.Reshape(4, (4, 1)))
    assert chain[1:].event_shape == (4,)
    assert chain[:1].latent_shape == (4,)
    assert chain[0:0].event_shape == (2, 2)
    assert chain[3:].event_shape == (4, 1)
    assert chain[2:2].event_shape == (4,)
    assert chain[1:][0] is chain[1]


def test_maps_are_used_in_either_place(generator):
    """The same map in front of a flow and inside one results in the same density."""
    context = torch.randn(6, 2, generator=generator)
    x = torch.rand(6, 2, generator=generator) * 0.9 + 0.05
    for make in (
        lambda: bijections.Standardise(2, 0.5, 2.0, learned=True),
        lambda: bijections.Logit(2),
        lambda: bijections.Inverse(bijections.Sigmoid(2)),
        lambda: bijections.LULinear(2),
        lambda: bijections.Rescale(2),
        lambda: ShiftByContext(2),
        lambda: discrete.Elementwise(discrete.Affine(), 2, context=2, hidden=(8,)),
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            member = make()
            layer = discrete.Coupling(discrete.Affine(), 2, context=2, hidden=(8,))
        outside = discrete.NormalizingFlow(layer, bases.Normal(2)).with_transform(member)
        inside = discrete.NormalizingFlow(discrete.Compose(member, layer), bases.Normal(2))
        torch.testing.assert_close(outside.log_prob(x, context), inside.log_prob(x, context))
        draws = [each.sample((), context, generator=torch.Generator().manual_seed(1)) for each in (outside, inside)]
        assert torch.equal(*draws)


@pytest.mark.parametrize("shape", [(2,), (3, 2, 2)])
def test_the_inverse_of_an_act_norm_undoes_what_it_did(shape, generator):
    x = 7 + 3 * torch.randn(50, *shape, generator=generator)
    view = bijections.Inverse(bijections.ActNorm(shape))
    # Samples that are asked for first are none to measure.
    view.decode(torch.randn(9, *shape, generator=generator))
    assert not view.bijection.initialised
    z, ladj = view.encode(x)
    back, inverse = view.decode(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse, -ladj)
    over = (0, 2, 3) if len(shape) == 3 else (0,)
    torch.testing.assert_close(z.mean(over), torch.zeros_like(z.mean(over)), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.var(over, correction=0), torch.ones_like(z.mean(over)), rtol=1e-4, atol=0)


def test_an_act_norm_measures_on_the_data_side_however_deep_it_lies(generator):
    x = 7 + 3 * torch.randn(50, 2, generator=generator)
    for depth in range(4):
        norm = bijections.ActNorm(2)
        view = bijections.Compose(bijections.Permute([1, 0]), norm)
        for _ in range(depth):
            view = bijections.Inverse(view)
        view.decode(x)
        assert not norm.initialised
        z, _ = view.encode(x)
        assert norm.initialised
        torch.testing.assert_close(z.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
        torch.testing.assert_close(view.decode(z)[0], x)
        assert not norm.turned
