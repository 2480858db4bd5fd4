import copy

import pytest
import torch

import cflow
from cflow import bases, bijections, discrete, fields, objectives, paths, solvers, training
from cflow.standardised_context import StandardisedContext


@pytest.fixture
def units():
    return bijections.Standardise(2, loc=torch.tensor([290.0, -5.0]), scale=torch.tensor([8.0, 0.5]))


@pytest.fixture
def inner(generator):
    flow = discrete.maf(3, context=2, layers=2, hidden=(8,))
    for each in flow.parameters():
        torch.nn.init.normal_(each, std=0.3, generator=generator)
    return flow.double()


def test_a_context_as_measured_gives_what_the_inner_flow_gives_in_its_units(inner, units, generator):
    flow = StandardisedContext(inner, units.double())
    x, seen = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (3, 2))
    context = seen * units.scale + units.loc
    assert torch.allclose(flow.log_prob(x, context), inner.log_prob(x, seen), rtol=1e-9)
    z, ladj = flow.encode(x, context)
    assert torch.allclose(z, inner.encode(x, seen)[0])
    back, other = flow.decode(z, context)
    assert torch.allclose(back, x, atol=1e-9)
    assert torch.allclose(ladj, -other, atol=1e-9)
    draws = [
        each.sample((4,), given, generator=torch.Generator().manual_seed(1))
        for each, given in ((flow, context), (inner, seen))
    ]
    assert draws[0].shape == (4, 5, 3)
    assert torch.allclose(*draws)
    drawn, logp = flow.sample_and_log_prob((2,), context, generator=generator)
    assert torch.allclose(flow.log_prob(drawn, context), logp)


def test_transforms_within_and_outside_count_once(inner, units, generator):
    shift = bijections.Standardise(3, loc=1.0, scale=4.0).double()
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    context = units.loc.expand(6, 2).double()
    outside = StandardisedContext(inner, units.double()).with_transform(shift)
    within = StandardisedContext(inner.with_transform(shift), units.double())
    assert torch.allclose(outside.log_prob(x, context), within.log_prob(x, context))
    for one, other in zip(outside.decode(*[x, context]), within.decode(x, context)):
        assert torch.allclose(one, other)
    assert StandardisedContext(inner.with_transform(bijections.Dequantise(3, 8)), units).likelihood == "bound"
    assert outside.likelihood == "exact"
    assert outside.has_rsample


def test_it_is_saved_and_options_pass_through(units, tmp_path, generator):
    flow = cflow.ContinuousFlow(fields.MLP(3, context=2), bases.Normal(3), context_shape=2)
    flow = cflow.load(cflow.save(StandardisedContext(flow, units), tmp_path / "flow"))
    x, context = torch.randn(4, 3, generator=generator), units.loc.expand(4, 2)
    assert flow.solver == flow.flow.solver
    assert flow.log_prob(x, context, solver=solvers.RK4(steps=2)).shape == (4,)
    assert flow.sample((), context, solver=solvers.Euler(steps=2), generator=generator).shape == (4, 3)
    with pytest.raises(TypeError, match="no such option"):
        flow.log_prob(x, context, slover=None)
    sample = flow.rsample((), context.clone().requires_grad_(), solver=solvers.Euler(steps=2), generator=generator)
    assert sample.requires_grad


def test_shapes_that_do_not_fit_are_refused(units):
    with pytest.raises(ValueError, match=r"context_shape=None.*the shapes differ"):
        StandardisedContext(discrete.maf(3), units)
    with pytest.raises(ValueError, match=r"context_shape=\(5,\)"):
        StandardisedContext(discrete.maf(3, context=5), units)


def test_the_flow_inside_keeps_the_same_record_when_a_run_is_resumed_or_fails(units, tmp_path):
    flow = StandardisedContext(discrete.maf(3, context=2, layers=1, hidden=(8,)), units)
    x, context = torch.zeros(16, 3), torch.zeros(16, 2)

    class Fails(objectives.MaximumLikelihood):
        def loss(self, flow, batch):
            return super().loss(flow, batch) * float("nan")

    settings = {"batch_size": 8, "lr": 1e-3, "seed": 0, "progress": False}
    with pytest.raises(FloatingPointError):
        training.fit(flow, Fails(), (x, context), steps=2, **settings)
    assert (flow.trained_by, flow.flow.trained_by) == ((), ())
    start = copy.deepcopy(flow)
    training.fit(flow, objectives.MaximumLikelihood(), (x, context), steps=2, out=tmp_path, **settings)
    training.fit(start, objectives.MaximumLikelihood(), (x, context), steps=3, out=tmp_path, resume=True, **settings)
    assert len(start.trained_by) == 1
    assert start.flow.trained_by == start.trained_by == flow.trained_by


def test_flow_matching_trains_the_flow_inside():
    inner = cflow.ContinuousFlow(fields.MLP(2, context=1), bases.Normal(2), path=paths.Linear())
    wrapped = StandardisedContext(inner, bijections.Standardise(1, loc=290.0, scale=8.0))
    with pytest.raises(ValueError, match="train it before it is put into another flow"):
        objectives.FlowMatching()(wrapped, torch.zeros(4, 2), torch.full((4, 1), 290.0))
