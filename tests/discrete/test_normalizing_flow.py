"""Flows made of bijections."""

import copy
import pickle

import pytest
import torch
from torch import nn

import cflow
from cflow import bases, discrete
from cflow.bijections import Standardise
from cflow.integrations.export import LogProb
from cflow.testing import check_flow


def affine_flow(features=2, context=0, kind=discrete.Coupling, layers=3):
    torch.manual_seed(0)
    members = []
    for _ in range(layers):
        members += [
            kind(discrete.Affine(), features, context=context, hidden=(16,)),
            discrete.Permute.reverse(features),
        ]
    return discrete.NormalizingFlow(discrete.Compose(*members), bases.Normal(features))


@pytest.mark.parametrize("kind", [discrete.Coupling, discrete.Autoregressive])
@pytest.mark.parametrize("context", [0, 3])
def test_flows_conform(kind, context):
    check_flow(affine_flow(context=context, kind=kind), torch.ones(context) if context else None)


def test_with_a_transform_and_another_base():
    flow = affine_flow().with_transform(Standardise(2, loc=3.0, scale=2.0))
    check_flow(flow)
    check_flow(discrete.NormalizingFlow(flow.bijection, bases.StudentT(2, df=5.0)))


class Counted(discrete.Coupling):
    calls = 0

    def encode(self, x, context=None, *, generator=None):
        Counted.calls += 1
        return super().encode(x, context)

    def decode(self, z, context=None, *, generator=None):
        Counted.calls += 1
        return super().decode(z, context)


def test_no_conditioner_is_asked_twice():
    members = [Counted(discrete.Affine(), 4, hidden=(8,)) for _ in range(4)]
    flow = discrete.NormalizingFlow(discrete.Compose(*members), bases.Normal(4))
    x = torch.randn(5, 4)
    for operation, wanted in (
        (lambda: flow.log_prob(x), flow.cost().log_prob),
        (lambda: flow.sample((5,)), flow.cost().sample),
        (lambda: flow.sample_and_log_prob((5,)), flow.cost().sample_and_log_prob),
        (lambda: flow.rsample_and_log_prob((5,)), flow.cost().sample_and_log_prob),
    ):
        Counted.calls = 0
        operation()
        assert Counted.calls == wanted == 4


def test_scores_of_a_batch_by_vmap(generator):
    flow = affine_flow(3, kind=discrete.Autoregressive).double()
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    scores = torch.func.vmap(torch.func.grad(lambda x: flow.log_prob(x)))(x)
    point = x.clone().requires_grad_()
    assert torch.allclose(scores, torch.autograd.grad(flow.log_prob(point).sum(), point)[0])


def test_log_prob_is_exported_and_both_directions_compile_whole(generator):
    flow = affine_flow()
    x = torch.randn(6, 2, generator=generator)
    program = torch.export.export(LogProb(flow), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    again = torch.randn(9, 2, generator=generator)
    assert torch.allclose(program.module()(again), flow.log_prob(again))
    compiled = torch.compile(flow.log_prob, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x), flow.log_prob(x))
    draw = torch.compile(lambda: flow.sample_and_log_prob((6,)), backend="eager", fullgraph=True)
    assert draw()[0].shape == (6, 2)


def test_copies_and_pickles(generator):
    flow = affine_flow()
    x = torch.randn(6, 2, generator=generator)
    for copied in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(copied.log_prob(x), flow.log_prob(x))


def test_default_devices_do_not_matter():
    with torch.device("meta"):
        flow = discrete.NormalizingFlow(discrete.Autoregressive(discrete.Affine(), 3), bases.Normal(3))
    assert flow.log_prob(torch.zeros(2, 3, device="meta")).shape == (2,)


def test_shapes_that_do_not_fit_are_refused():
    layer = discrete.Coupling(discrete.Affine(), 4)
    with pytest.raises(ValueError, match=r"bases.Normal\(\(4,\)\)"):
        discrete.NormalizingFlow(layer, bases.Normal(3))
    with pytest.raises(ValueError, match="omit event_shape"):
        discrete.NormalizingFlow(layer, bases.Normal(4), event_shape=3)
    with pytest.raises(TypeError, match="bijection"):
        discrete.NormalizingFlow(bases.Normal(4), layer)


def test_what_makes_no_composition_is_refused():
    layer = discrete.Coupling(discrete.Affine(), 4)
    with pytest.raises(ValueError, match=r"items 0 and 2 share the weights of a Coupling.*deepcopy"):
        discrete.Compose(layer, discrete.Permute.reverse(4), layer)
    family = discrete.Affine()
    with pytest.raises(ValueError, match="weights of a Affine"):
        discrete.Compose(discrete.Coupling(family, 4), discrete.Coupling(family, 4))
    with pytest.raises(ValueError, match="there are no maps"):
        discrete.Compose()
    with pytest.raises(TypeError, match="item 0 is not a bijections.Map"):
        discrete.Compose([layer])
    with pytest.raises(ValueError, match=r"returns \[4\], item 1"):
        discrete.Compose(layer, discrete.Permute.reverse(3))
    with pytest.raises(ValueError, match=r"\[2\] and \[3\]"):
        discrete.Compose(*(discrete.Coupling(discrete.Affine(), 4, context=c) for c in (2, 3)))


def test_saved_flows_are_themselves_again(tmp_path, generator):
    flow = affine_flow(4, context=2, kind=discrete.Autoregressive)
    x, context = torch.randn(5, 4, generator=generator), torch.randn(5, 2, generator=generator)
    loaded = cflow.load(cflow.save(flow, tmp_path / "model"))
    assert torch.equal(loaded.log_prob(x, context), flow.log_prob(x, context))
    assert loaded.bijection[0].hidden == (16,)
