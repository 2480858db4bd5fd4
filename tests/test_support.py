"""Where a flow has a density: constraints, points outside, rows beside them."""

import math

import pytest
import torch
from torch.distributions import biject_to, constraints

import cflow
from cflow import bases, bijections, discrete, fields, metrics
from cflow.standardised_context import StandardisedContext
from cflow.testing import check_base, check_flow


def log_normal():
    return discrete.NormalizingFlow(bijections.Inverse(bijections.Exp(1)), bases.Normal(1))


@pytest.mark.parametrize("inside", [True, False])
def test_outside_of_the_support_the_log_density_is_minus_infinity_with_no_gradient(inside, generator):
    """The logarithm as a data transform of a flow with weights, and as its first layer."""
    log, layer = bijections.Inverse(bijections.Exp(1)), discrete.Elementwise(discrete.Affine(), 1)
    if inside:
        flow = discrete.NormalizingFlow(discrete.Compose(log, layer), bases.Normal(1))
    else:
        flow = discrete.NormalizingFlow(layer, bases.Normal(1)).with_transform(log)
    x = torch.tensor([[2.0], [-1.0], [0.5]], requires_grad=True)
    logp = flow.log_prob(x)
    law = torch.distributions.LogNormal(0.0, 1.0)
    torch.testing.assert_close(logp[[0, 2]], law.log_prob(x[[0, 2]].detach()).squeeze(1))
    assert logp[1] == -math.inf
    gradients = torch.autograd.grad(logp.sum(), [x, layer.raw])
    alone = torch.autograd.grad(flow.log_prob(x[[0, 2]]).sum(), [x, layer.raw])
    assert all(torch.equal(*pair) for pair in zip(gradients, alone))
    assert gradients[0][1] == 0


def test_training_does_not_take_points_outside_for_the_nearest_inside():
    flow = cflow.ContinuousFlow(fields.MLP(1), bases.Normal(1), path=cflow.paths.Linear())
    flow = flow.with_transform(bijections.Inverse(bijections.Exp(1)))
    losses = cflow.objectives.FlowMatching()(flow, torch.tensor([[1.0], [-1.0]]))
    assert losses.isnan().tolist() == [False, True]


def test_continuous_flows_have_no_density_outside_and_solve_nothing_there():
    flow = cflow.ContinuousFlow(fields.MLP(1), bases.Normal(1)).with_transform(
        bijections.Inverse(bijections.Softplus(1))
    )
    x = torch.tensor([[1.0], [-3.0], [math.inf], [math.nan]])
    with torch.no_grad():
        logp, alone = flow.log_prob(x), flow.log_prob(x[:1])
    torch.testing.assert_close(logp[:1], alone)
    assert logp[1:3].tolist() == [-math.inf, -math.inf]
    assert logp[3].isnan()


@pytest.mark.parametrize("name", ["realnvp", "maf", "iaf", "nsf", "sospf", "flowpp", "sylvester"])
def test_rows_that_overflow_have_no_density_and_leave_the_others_alone(name, generator):
    flow = discrete.PRESETS[name](2, layers=3)
    with torch.no_grad():
        for each in flow.parameters():
            each.add_(0.1 * torch.randn(each.shape, generator=generator))
    near = torch.tensor([[0.5, 0.3]])
    alone = torch.autograd.grad(flow.log_prob(near).sum(), list(flow.parameters()), allow_unused=True)
    for size in (1e30, 1e35, 3e38):
        for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            logp = flow.log_prob(torch.cat([near, size * torch.tensor([signs])]))
            assert logp[1] == -math.inf
            gradients = torch.autograd.grad(logp[0], list(flow.parameters()), allow_unused=True)
            for got, wanted in zip(gradients, alone):
                assert (got is None) == (wanted is None)
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=5e-5)


def test_data_of_large_units_do_not_overflow(generator):
    """What is large before the transforms is not yet far."""
    flow = discrete.maf(2, layers=1, hidden=(4,))
    x = torch.randn(5, 2, generator=generator)
    large = flow.with_transform(bijections.Standardise(2, 0.0, 1e30)).log_prob(1e30 * x)
    torch.testing.assert_close(large, flow.log_prob(x) - 2 * math.log(1e30), rtol=1e-5, atol=0)


@pytest.mark.parametrize("place", ["transform", "chain", "bijection", "levels"])
def test_rows_without_numbers_are_set_aside_where_a_map_refuses_what_is_outside(place):
    """Zero, which stands for them elsewhere, is outside of the open interval, and has no place among readings."""
    logit, flow = bijections.Logit(2, alpha=0.0), discrete.maf(2, layers=1, hidden=(4,))
    readings = bijections.Standardise(2, 100.0, 5.0)
    rows, flow = {
        "transform": ([0.2, 0.7], flow.with_transform(logit)),
        "chain": ([101.0, 103.0], flow.with_transform(readings, logit)),
        "bijection": ([0.2, 0.7], discrete.NormalizingFlow(discrete.Compose(logit, *flow.bijection), flow.base)),
        "levels": ([105.0, 100.0], flow.with_transform(readings, bijections.Dequantise(2, 3), logit)),
    }[place]
    x = torch.tensor([rows, [math.nan, rows[1]], [math.inf, rows[1]], rows])
    state = torch.get_rng_state()
    logp = flow.log_prob(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert logp[[0, 3]].isfinite().all()
    assert logp[1].isnan()
    assert logp[2] == -math.inf
    logp[[0, 3]].sum().backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in flow.parameters())
    x[0, 0] = -900.0  # a number outside is refused all the same
    with pytest.raises(ValueError, match="encode: 1 of 8 values"):
        flow.log_prob(x)


def test_support_of_flows():
    plain = discrete.maf(2)
    assert plain().support.base_constraint is constraints.real
    x = torch.tensor([[-1.0, 1.0], [0.5, 0.25], [1.5, 0.0]])
    for make, holds in (
        (bijections.Inverse(bijections.Exp(2)), [False, True, True]),
        (bijections.Inverse(bijections.Sigmoid(2)), [False, True, False]),
        (bijections.Inverse(bijections.Tanh(2)), [True, True, False]),
        (bijections.Logit(2, 0.1), [False, True, False]),
        (bijections.Dequantise(2, 2), [False, False, False]),
    ):
        assert plain.with_transform(make)().support.check(x).tolist() == holds
    # A chain: x - 0.125 must be positive, and below 1.
    shifted = plain.with_transform(bijections.Standardise(2, 0.125, 1.0), bijections.Logit(2, 0.0))
    assert shifted().support.check(x).tolist() == [False, True, False]
    assert shifted().support.check(x.expand(4, 3, 2)).shape == (4, 3)
    assert log_normal()().support.check(torch.tensor([[2.0], [-1.0]])).tolist() == [True, False]
    # A chain seen from the other side is bounded by what its members give.
    both = bijections.Compose(bijections.Sigmoid(2), bijections.Rescale(2))
    assert plain.with_transform(bijections.Inverse(both))().support.check(x).tolist() == [True, True, False]


def test_a_flow_of_standardised_contexts_has_the_support_of_the_flow_inside():
    inner = discrete.maf(1, context=2).with_transform(bijections.Inverse(bijections.Exp(1)))
    flow = StandardisedContext(inner, bijections.Standardise(2, 1.0, 2.0))
    assert flow(torch.zeros(2)).support.check(torch.tensor([[2.0], [-1.0]])).tolist() == [True, False]
    assert flow.log_prob(torch.tensor([[-1.0]]), torch.zeros(2)) == -math.inf


def test_coordinates_without_bounds_of_a_chain(generator, float64):
    """``biject_to``, which Pyro's chains and guides use: round trips, and log-determinants against autograd."""
    positive = bijections.Standardise(2, 0.5, 2.0), bijections.Inverse(bijections.Exp(2))
    support = discrete.maf(2).with_transform(*positive)().support
    onto = biject_to(support)
    u = torch.randn(3, 4, 2, generator=generator)
    x = onto(u)
    assert support.check(x).all()
    torch.testing.assert_close(onto.inv(x), u)
    torch.testing.assert_close(x, 0.5 + 2 * u.exp())
    jacobian = torch.autograd.functional.jacobian(onto, u[0, 0])
    torch.testing.assert_close(onto.log_abs_det_jacobian(u, x)[0, 0], torch.linalg.slogdet(jacobian).logabsdet)
    rounded = discrete.maf(2).with_transform(bijections.Dequantise(2), bijections.Logit(2))
    with pytest.raises(NotImplementedError, match="a map draws, rounds or reads a context"):
        biject_to(rounded().support)


def test_a_support_moves_no_random_state(generator):
    images = discrete.maf(2).with_transform(bijections.Dequantise(2, 4), bijections.Logit(2, 0.05))
    before = torch.get_rng_state()
    assert images().support.check(torch.tensor([[0.0, 3.0], [0.5, 1.0], [0.0, 4.0]])).tolist() == [True, False, False]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_distribution_names_values_outside_its_support(monkeypatch):
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)  # zuko turns it off on import
    with pytest.raises(ValueError, match="support"):
        log_normal()().log_prob(torch.tensor([-1.0]))


def test_importance_weights_take_densities_of_zero(generator):
    """A target on the positive half line, a proposal on the whole one: half of the weights are zero."""
    target = log_normal()
    x = 2 * torch.randn(400, 1, generator=generator)
    found = metrics.importance(target.log_prob(x) - bases.Normal(1, 0.0, 2.0).log_prob(x))
    assert torch.equal(found.weights == 0, x[:, 0] < 0)
    assert found.log_evidence.value == pytest.approx(0.0, abs=5 * found.log_evidence.standard_error)


@pytest.mark.parametrize("name", discrete.PRESETS)
@pytest.mark.parametrize("context", [0, 2])
def test_presets_as_they_come_have_numbers_far_out(name, context):
    """With layers and weights of the default size, drawn where they start at zero."""
    torch.manual_seed(0)
    flow = discrete.PRESETS[name](3, context)
    with torch.no_grad():
        for each in flow.parameters():
            if each.numel() and not each.any():
                each.normal_(std=0.1)
    near = torch.randn(3, 3)
    cflow.testing.far.check_far(flow, near, lambda each, x: each.log_prob(x, x.new_ones(context) if context else None))


class Careless(bases.Normal):
    def log_prob(self, x, context=None, *, mask=None):
        return torch.logaddexp(x, x - 1).sum(-1) - torch.logaddexp(x, -x).sum(-1) * 2


def test_the_suites_find_a_density_that_is_no_number():
    with pytest.raises(AssertionError):
        check_base(Careless(2))
    flow = log_normal()
    flow.base.log_prob = lambda z: z.exp().sum(-1) - z.exp().sum(-1)
    with pytest.raises(AssertionError, match="far from the data|infinity"):
        cflow.testing.far.check_far(flow, torch.ones(3, 1), lambda each, x: each._log_prob(x, None, None))


def test_data_transforms_conform_with_points_far_out():
    check_flow(log_normal().with_transform(bijections.Exp(1)))
    for transform in (bijections.Inverse(bijections.Exp(2)), bijections.Logit(2), bijections.Arcsinh(2)):
        check_flow(discrete.maf(2, layers=2, hidden=(8,)).with_transform(transform), density=False)
