"""Maps in front of a flow and inside one: what its density means, shapes, contexts, draws."""

import math

import pytest
import torch
from map_standins import NoisyDouble, RandomTrace, ShiftByContext
from torch import nn

import cflow
from cflow import bases, bijections, discrete, fields, paths, solvers
from cflow.integrations.export import LogProb
from cflow.testing import check_flow


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def discrete_flow(features=4, context=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [discrete.Coupling(discrete.Affine(), features, context=context, hidden=(8,)) for _ in range(2)]
        for each in (part for layer in layers for part in layer.parameters()):
            nn.init.normal_(each, std=0.2)
        chain = discrete.Compose(layers[0], discrete.Permute.reverse(features), layers[1])
    return discrete.NormalizingFlow(chain, bases.Normal(features))


def continuous_flow(features=4, context=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        field = fields.MLP(features, hidden=(8,), context=context)
        nn.init.normal_(field.output.weight, std=0.3)
    return cflow.ContinuousFlow(
        field,
        bases.Normal(features),
        path=paths.Linear(),
        solver=solvers.RK4(steps=12),
        context_shape=(context,) if context else None,
    )


FLOWS = {"discrete": discrete_flow, "continuous": continuous_flow}


@pytest.mark.parametrize("place", ["inside", "in front", "in front of a continuous one"])
def test_a_random_log_determinant_makes_an_estimate(place, generator):
    if place == "inside":
        flow = discrete.NormalizingFlow(discrete.Compose(RandomTrace(2), discrete.LULinear(2)), bases.Normal(2))
    else:
        flow = (discrete_flow if place == "in front" else continuous_flow)(2).with_transform(RandomTrace(2))
    assert (flow.likelihood, flow.has_rsample) == ("estimate", True)
    x = torch.randn(5, 2, generator=generator)
    with torch.no_grad():
        values = [flow.log_prob(x, generator=seeded()) for _ in range(2)]
        assert torch.equal(*values)
        assert not torch.equal(values[0], flow.log_prob(x, generator=seeded(2)))
        value, error = flow.log_prob_estimate(x, draws=60, generator=seeded())
        assert (error > 0).all()
        exact = torch.stack([flow.log_prob(x, generator=seeded(k)) for k in range(60)]).mean(0)
        z, _ = flow.encode(x, generator=seeded())
        assert z.isfinite().all()
        assert ((value - exact).abs() < 6 * error * math.sqrt(2)).all()
        before = torch.get_rng_state()
        for method in (flow.sample, flow.sample_and_log_prob, flow.rsample_and_log_prob):
            one, other = (method((3,), generator=seeded()) for _ in range(2))
            assert all(torch.equal(a, b) for a, b in zip(one, other))
        latents = [flow.decode(z, generator=seeded())[1] for _ in range(2)]
        assert torch.equal(*latents)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("flow", [discrete_flow(2), continuous_flow(2)], ids=["discrete", "continuous"])
def test_flows_with_maps_that_draw_conform(flow):
    check_flow(flow.with_transform(RandomTrace(2)))
    check_flow(flow.with_transform(bijections.Dequantise(2, 8), bijections.Logit(2)))


def test_the_likelihoods_of_parts_meet_in_the_weakest():
    noisy, dequantise = (lambda: NoisyDouble(2)), (lambda: bijections.Dequantise(2, 8))
    for flow in (discrete_flow(2), continuous_flow(2)):
        assert flow.likelihood == "exact"
        assert flow.with_transform(noisy()).likelihood == "estimate"
        assert flow.with_transform(dequantise(), noisy()).likelihood == "bound"
    estimated = continuous_flow(2)
    estimated.divergence = cflow.divergence.Hutchinson()
    assert estimated.with_transform(noisy()).likelihood == "estimate"
    assert estimated.with_transform(dequantise()).likelihood == "bound"
    empirical = discrete.NormalizingFlow(noisy(), bases.Empirical(torch.randn(5, 2)))
    assert empirical.likelihood == "none"
    conditional = cflow.StandardisedContext(
        discrete_flow(2, context=1).with_transform(noisy()), bijections.Standardise(1)
    )
    assert conditional.likelihood == "estimate"
    assert conditional.with_transform(dequantise()).likelihood == "bound"


def test_a_surjection_inside_makes_a_bound_without_a_way_back(generator):
    inside = discrete.NormalizingFlow(
        discrete.Compose(bijections.Dequantise(2, 4), bijections.Logit(2)), bases.Normal(2)
    )
    assert (inside.likelihood, inside.has_rsample) == ("bound", False)
    x = torch.randint(4, (7, 2), generator=generator)
    assert torch.equal(inside.log_prob(x, generator=seeded()), inside.log_prob(x, generator=seeded()))
    outside = discrete.NormalizingFlow(bijections.Logit(2), bases.Normal(2)).with_transform(bijections.Dequantise(2, 4))
    torch.testing.assert_close(inside.log_prob(x, generator=seeded()), outside.log_prob(x, generator=seeded()))
    drawn, bound = inside.sample_and_log_prob((50,), generator=seeded())
    assert torch.equal(drawn, drawn.round())
    assert bound.isfinite().all()
    assert (inside.log_prob_estimate(x, generator=seeded())[1] > 0).all()
    for call in (lambda: inside.rsample((2,)), lambda: inside.decode(torch.zeros(1, 2))):
        with pytest.raises(ValueError, match="Dequantise rounds or loses"):
            call()


@pytest.mark.parametrize("kind", FLOWS)
def test_transforms_read_the_context_of_the_flow(kind, generator):
    plain = FLOWS[kind](2, context=2)
    flow = plain.with_transform(ShiftByContext(2))
    x, context = torch.randn(6, 2, generator=generator), 5 + torch.randn(6, 2, generator=generator)
    torch.testing.assert_close(flow.log_prob(x, context), plain.log_prob(x - context, context))
    for method in ("sample", "rsample"):
        shifted = getattr(flow, method)((3,), context, generator=seeded())
        torch.testing.assert_close(shifted, getattr(plain, method)((3,), context, generator=seeded()) + context)
    z, _ = flow.encode(x, context)
    torch.testing.assert_close(flow.decode(z, context)[0], x, rtol=1e-4, atol=1e-4)
    check_flow(flow, context[0], density=False)
    if kind == "continuous":
        states = flow.trajectory(x, context, times=[1.0, 0.4, 0.0])
        torch.testing.assert_close(states[0], x)
        inner = plain.trajectory(x - context, context, times=[1.0, 0.4, 0.0])
        torch.testing.assert_close(states, inner + context, rtol=1e-4, atol=1e-4)


def test_a_context_that_the_flow_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"reads contexts of shape \(2,\), the flow reads no context"):
        discrete_flow(2).with_transform(ShiftByContext(2))
    with pytest.raises(ValueError, match=r"the flow reads contexts of shape \(3,\)"):
        continuous_flow(2, context=3).with_transform(ShiftByContext(2))


@pytest.mark.parametrize("kind", FLOWS)
def test_a_transform_may_change_the_shape(kind, generator, tmp_path):
    plain = FLOWS[kind]()
    flow = plain.with_transform(
        bijections.Standardise((1, 2, 2), 1.0, 2.0), bijections.Reshape((1, 2, 2), 4), bijections.LULinear(4)
    )
    assert (flow.event_shape, flow.model_shape, flow.latent_shape) == ((1, 2, 2), (4,), (4,))
    x = 1 + torch.randn(3, 5, 1, 2, 2, generator=generator)
    inner = ((x - 1) / 2).reshape(3, 5, 4)
    torch.testing.assert_close(flow.log_prob(x), plain.log_prob(inner) - 4 * math.log(2.0), rtol=1e-4, atol=1e-4)
    z, ladj = flow.encode(x)
    assert (z.shape, ladj.shape) == ((3, 5, 4), (3, 5))
    torch.testing.assert_close(flow.decode(z)[0], x, rtol=1e-4, atol=1e-4)
    for method in ("sample", "rsample"):
        drawn = getattr(flow, method)((2, 3), generator=seeded())
        wanted = getattr(plain, method)((2, 3), generator=seeded()).reshape(2, 3, 1, 2, 2) * 2 + 1
        torch.testing.assert_close(drawn, wanted)
    u, _ = flow.preprocess(x[0])
    assert u.shape == (5, 4)
    assert flow.postprocess(u)[0].shape == (5, 1, 2, 2)
    assert flow().event_shape == (1, 2, 2)
    assert cflow.load(cflow.save(flow, tmp_path / "model")).event_shape == (1, 2, 2)
    check_flow(flow, density=False)


def test_a_trajectory_goes_through_a_change_of_shape(generator):
    flow = continuous_flow().with_transform(bijections.Reshape((2, 2), 4))
    x = torch.randn(3, 5, 2, 2, generator=generator)
    backwards = flow.trajectory(x, times=[1.0, 0.5, 0.0])
    assert backwards.shape == (3, 3, 5, 2, 2)
    torch.testing.assert_close(backwards[0], x)
    latents = backwards[-1].reshape(3, 5, 4)
    forwards = flow.trajectory(latents, times=[0.0, 0.5, 1.0])
    assert forwards.shape == (3, 3, 5, 2, 2)
    torch.testing.assert_close(forwards[-1], x, rtol=1e-4, atol=1e-4)
    solution = flow.transport(latents, 0.0, 1.0, at=[0.0, 1.0], ladj=True)
    assert (solution.y.shape, solution.trajectory.shape) == ((3, 5, 4), (2, 3, 5, 4))
    assert flow.velocity(0.3, latents).shape == (3, 5, 4)
    assert flow.score(0.3, latents).shape == (3, 5, 4)


@pytest.mark.parametrize("kind", FLOWS)
def test_shapes_that_do_not_follow_are_refused_at_construction(kind):
    flow = FLOWS[kind]()
    with pytest.raises(ValueError, match=r"return shape \(3,\), the flow takes \(4,\)"):
        flow.with_transform(bijections.Standardise(3))
    with pytest.raises(ValueError, match=r"return shape \(2, 2\)"):
        flow.with_transform(bijections.Inverse(bijections.Reshape((2, 2), 4)))
    shaped = flow.with_transform(bijections.Reshape((2, 2), 4))
    with pytest.raises(ValueError, match=r"returns \[4\], item 1"):
        shaped.with_transform(bijections.Standardise(4))
    assert shaped.with_transform(bijections.Rescale((2, 2))).event_shape == (2, 2)
    with pytest.raises(TypeError, match="not a bijections.Map"):
        flow.with_transform(nn.Identity())


def test_transforms_are_one_chain_that_is_saved_with_the_flow(tmp_path, generator):
    flow = discrete_flow(2).with_transform(bijections.Standardise(2, 3.0, 2.0)).with_transform(NoisyDouble(2))
    assert isinstance(flow.transform, bijections.Compose)
    assert [type(each).__name__ for each in flow.transform.maps] == ["NoisyDouble", "Standardise"]
    again = discrete.NormalizingFlow(flow.bijection, flow.base, transform=flow.transform)
    assert again.transform is flow.transform
    alone = discrete.NormalizingFlow(flow.bijection, flow.base, transform=bijections.Rescale(2))
    assert len(alone.transform) == 1
    assert len(discrete_flow(2).transform) == 0
    x = torch.randn(4, 2, generator=generator)
    loaded = cflow.load(cflow.save(flow, tmp_path / "model"))
    assert torch.equal(loaded.log_prob(x, generator=seeded()), flow.log_prob(x, generator=seeded()))


def test_densities_with_transforms_compile_whole(generator):
    x = torch.randn(6, 2, generator=generator)
    standardise = bijections.Standardise(2, 1.0, 3.0, learned=True)
    noisy = discrete.NormalizingFlow(bijections.Compose(bijections.LULinear(2), NoisyDouble(2)), bases.Normal(2))
    for flow in (discrete_flow(2).with_transform(standardise), noisy.with_transform(bijections.Arcsinh(2))):
        torch._dynamo.reset()
        compiled = torch.compile(flow.log_prob, backend="eager", fullgraph=True)
        torch.manual_seed(0)
        found = compiled(x)
        torch.manual_seed(0)
        torch.testing.assert_close(found, flow.log_prob(x))


def test_densities_with_transforms_are_exported_for_any_batch(generator):
    flow = discrete_flow().with_transform(
        bijections.Rescale((2, 2)),
        bijections.Standardise((2, 2), 1.0, 2.0),
        bijections.Reshape((2, 2), 4),
        bijections.Inverse(bijections.Standardise(4, learned=True)),
    )
    x = torch.randn(5, 2, 2, generator=generator)
    program = torch.export.export(LogProb(flow), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    again = torch.randn(9, 2, 2, generator=generator)
    torch.testing.assert_close(program.module()(again), flow.log_prob(again))
