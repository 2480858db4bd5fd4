"""The contract holds for all four kinds of flow, on the smallest honest member of each."""

import math

import pytest
import torch
from torch import nn

import cflow
from cflow import bases, fields, guidance, objectives, paths, solvers
from cflow.bijections import Dequantise, Standardise
from cflow.flow import BaseFlow, Flow
from cflow.invertible_flow import BaseInvertibleFlow, InvertibleFlow
from cflow.testing import check_flow


@cflow.register
class AffineFlow(BaseInvertibleFlow):
    """Discrete time: one scale and shift, the shift from the context."""

    def __init__(self, features, context_shape=None, transform=()):
        super().__init__(features, context_shape, transform)
        self.features = features
        self.base = bases.Normal(features)
        self.log_scale = nn.Parameter(torch.full((features,), 0.3))
        self.shift = nn.Parameter(torch.zeros(features))

    def _shift(self, context):
        return self.shift if context is None else self.shift + context.sum(-1, keepdim=True)

    def _encode(self, x, context, generator):
        return (x - self._shift(context)) * torch.exp(-self.log_scale), -self.log_scale.sum().expand(len(x))

    def _decode(self, z, context, generator, *, ladj=True):
        return z * torch.exp(self.log_scale) + self._shift(context), self.log_scale.sum().expand(len(z))


@cflow.register
class CategoricalFlow(BaseFlow):
    """Discrete state: independent tokens, with a bound (here tight) instead of a density."""

    has_rsample = False
    likelihood = "bound"

    def __init__(self, length, vocabulary, context_shape=None, transform=()):
        super().__init__(length, context_shape, transform)
        self.length, self.vocabulary = length, vocabulary
        self.logits = nn.Parameter(torch.randn(length, vocabulary, generator=torch.Generator().manual_seed(0)))

    def _sample(self, count, context, generator):
        noise = torch.rand(count, self.length, self.vocabulary, generator=generator, dtype=self.logits.dtype)
        return (self.logits - torch.log(-torch.log(noise))).argmax(-1)

    def _log_prob(self, x, context, generator):
        return self.logits.log_softmax(-1).expand(len(x), -1, -1).gather(2, x[..., None]).sum((1, 2))


@cflow.register
class PartsFlow(BaseFlow):
    """Joint: independent normals of named parts, each with a density."""

    has_rsample = False
    likelihood = "exact"

    def __init__(self, event_shape, context_shape=None, transform=()):
        super().__init__(event_shape, context_shape, transform)
        self.parts = nn.ModuleDict({name: bases.Normal(tuple(part)) for name, part in self.event_shape.items()})

    def _sample(self, count, context, generator):
        return {name: part.sample((count,), generator=generator) for name, part in self.parts.items()}

    def _log_prob(self, x, context, generator):
        return sum(part.log_prob(x[name]) for name, part in self.parts.items())


@cflow.register
class PairFlow(BaseFlow):
    """Joint: two named parts at once."""

    has_rsample = False
    likelihood = "none"

    def __init__(self, context_shape=None, transform=()):
        super().__init__({"position": (4, 3), "kind": (4,)}, context_shape, transform)

    def _sample(self, count, context, generator):
        kind = torch.randint(5, (count, 4), generator=generator)
        return {"position": torch.randn(count, 4, 3, generator=generator), "kind": kind}


def continuous(**options):
    options = {"solver": solvers.Dopri5(rtol=1e-7, atol=1e-7), "path": paths.Linear()} | options
    return cflow.ContinuousFlow(fields.MLP(2, hidden=(16, 16)), bases.Normal(2), **options)


def test_a_discrete_time_flow_conforms():
    check_flow(AffineFlow(2))
    check_flow(AffineFlow(3, context_shape=2), torch.tensor([0.5, -1.0]))
    assert isinstance(AffineFlow(2), InvertibleFlow)


def test_a_token_flow_conforms():
    check_flow(CategoricalFlow(5, 7))
    assert isinstance(CategoricalFlow(5, 7), Flow)
    assert not isinstance(CategoricalFlow(5, 7), InvertibleFlow)


def test_a_joint_flow_with_a_density_conforms():
    check_flow(PartsFlow({"position": (4, 3), "charge": 4}))


def test_the_suite_finds_a_joint_flow_whose_rows_know_their_neighbours():
    @cflow.register("tests.Neighbours")
    class Neighbours(PartsFlow):
        def _log_prob(self, x, context, generator):
            return super()._log_prob({name: part - part.mean(0) for name, part in x.items()}, context, generator)

    with pytest.raises(AssertionError, match="does not depend on the others"):
        check_flow(Neighbours({"position": (4, 3), "charge": 4}))


def test_the_suite_finds_a_joint_flow_that_ignores_its_generator():
    @cflow.register("tests.Careless")
    class Careless(PartsFlow):
        def _sample(self, count, context, generator):
            return super()._sample(count, context, None)

    with pytest.raises(AssertionError, match="a generator reproduces samples"):
        check_flow(Careless({"position": (4, 3), "charge": 4}))


def test_the_name_mask_is_reserved_for_members():
    assert PartsFlow({"position": (4, 3), "mask": 4}).event_shape["mask"] == (4,)
    with pytest.raises(ValueError, match="'mask' marks the members of a set"):
        PartsFlow({"position": (4, 3), "mask": 5})
    with pytest.raises(ValueError, match="part 'mask' marks"):
        AffineFlow(2, context_shape={"mask": (3,), "size": ()})


def test_options_belong_to_methods():
    """A sampler is no option of a density, and a divergence none of samples."""

    class Sampled(PartsFlow):
        options = {"sample": ("sampler",), "log_prob": ("terms",)}

        def _sample(self, count, context, generator, sampler=None):
            return super()._sample(count, context, generator)

        def _log_prob(self, x, context, generator, terms=None):
            return super()._log_prob(x, context, generator)

    flow = Sampled({"position": (4, 3)})
    x = flow.sample((2,), sampler="fast")
    assert flow.log_prob(x, terms=3).shape == (2,)
    assert flow.sample_and_log_prob((2,), sampler="fast", terms=3)[1].shape == (2,)
    with pytest.raises(TypeError, match=r"flow.log_prob\(sampler=...\).*it takes generator, terms"):
        flow.log_prob(x, sampler="fast")
    with pytest.raises(TypeError, match=r"flow.sample\(terms=...\)"):
        flow.sample((2,), terms=3)
    with pytest.raises(TypeError, match=r"flow.sample\(divergence=...\).*it takes generator, solver, guidance"):
        continuous().sample((2,), divergence=None)


def test_no_condition_is_refused_where_it_was_never_trained():
    net = fields.MLP(2, hidden=(8,), classes=3)
    flow = cflow.ContinuousFlow(net, bases.Normal(2), path=paths.Linear(), context_shape=())
    labels = torch.arange(3)
    assert flow.classes == 3
    assert torch.equal(flow.null_context(labels), torch.full((3,), 3))  # nothing is known of its training
    flow.record(objectives.FlowMatching())
    guide = guidance.ClassifierFree(2.0)
    for ask in (lambda: flow.null_context(labels), lambda: flow.sample((), labels, guidance=guide)):
        with pytest.raises(ValueError, match='"no condition" was not trained .*condition_dropout=0.1'):
            ask()
    assert flow.sample((), labels, guidance=guidance.ClassifierFree(1.0)).shape == (3, 2)
    flow.record(objectives.FlowMatching(condition_dropout=0.1))
    assert flow.sample((), labels, guidance=guide).shape == (3, 2)
    with pytest.raises(ValueError, match="unconditional"):
        continuous().null_context(labels)


def test_a_joint_flow_conforms_and_has_no_distribution_view():
    flow = PairFlow()
    check_flow(flow)
    x = flow.sample((2, 3))
    assert x["position"].shape == (2, 3, 4, 3)
    assert x["kind"].shape == (2, 3, 4)
    with pytest.raises(ValueError, match=r"parts \['kind', 'position'\]"):
        flow()
    with pytest.raises(ValueError, match="PairFlow has no density; compare samples"):
        flow.log_prob(x)


def test_the_suite_finds_a_wrong_log_determinant():
    class Wrong(AffineFlow):
        def _encode(self, x, context, generator):
            z, ladj = super()._encode(x, context, generator)
            return z, ladj + 0.01

        def _decode(self, z, context, generator, *, ladj=True):
            x, change = super()._decode(z, context, generator)
            return x, change - 0.01

    cflow.register("tests.Wrong", Wrong)
    with pytest.raises(AssertionError, match="log-determinant against autograd"):
        check_flow(Wrong(2))


def test_the_suite_finds_an_inverse_that_is_none():
    class Wrong(AffineFlow):
        def _decode(self, z, context, generator, *, ladj=True):
            return z + 1, self.log_scale.sum().expand(len(z))

    cflow.register("tests.WrongInverse", Wrong)
    with pytest.raises(AssertionError, match="decode inverts encode"):
        check_flow(Wrong(2))


def test_densities_are_those_of_the_data_before_the_transform(float64):
    inner = AffineFlow(2)
    flow = inner.with_transform(Standardise(2, torch.tensor([10.0, -3.0]), torch.tensor([2.0, 0.5])))
    x = torch.randn(7, 2) + 3
    law = torch.distributions.Normal(
        torch.tensor([10.0, -3.0]), torch.tensor([2.0, 0.5]) * inner.log_scale.detach().exp()
    )
    assert torch.allclose(flow.log_prob(x), law.log_prob(x).sum(-1))
    assert flow.log_scale is inner.log_scale, "the transformed flow shares its parameters"
    check_flow(flow)


def test_dequantised_flows_give_a_bound_on_the_log_mass(generator):
    flow = AffineFlow(1).with_transform(Dequantise(1, levels=4), Standardise(1, 0.5, 0.3)).double()
    assert flow.likelihood == "bound"
    x = torch.arange(4)[:, None]
    estimate, error = flow.log_prob_estimate(x, draws=64, generator=generator)
    # The true mass of a level is the density's integral over its cell.
    edges = torch.linspace(0, 1, 4001, dtype=torch.float64)
    inner = AffineFlow(1).with_transform(Standardise(1, 0.5, 0.3)).double()
    density = inner.log_prob(((edges[1:] + edges[:-1]) / 2)[:, None]).exp()
    mass = density.reshape(4, 1000).mean(1) / 4
    assert (estimate < mass.log() + 5 * error).all()
    assert (estimate > mass.log() - 0.5).all()
    assert flow.sample((50,), generator=generator).unique().numel() <= 4
    for method in (flow.rsample, flow.rsample_and_log_prob):
        with pytest.raises(ValueError, match="Dequantise rounds"):
            method((2,))


def test_batches_of_data_and_contexts_broadcast():
    flow = AffineFlow(3, context_shape=2)
    x, context = torch.randn(5, 1, 3), torch.randn(4, 2)
    logp = flow.log_prob(x, context)
    assert logp.shape == (5, 4)
    assert torch.allclose(logp[2, 3], flow.log_prob(x[2, 0], context[3]))
    assert flow.sample((2, 6), context).shape == (2, 6, 4, 3)
    with pytest.raises(ValueError, match=r"batch shapes \(5,\) and \(4,\)"):
        flow.log_prob(torch.randn(5, 3), context)


def test_the_distribution_view_is_a_torch_distribution(monkeypatch):
    # The first torch.compile of a process switches the validation of all distributions off.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    flow = AffineFlow(2, context_shape=3)
    context = torch.randn(4, 3)
    law = flow(context)
    assert law.batch_shape == (4,)
    assert law.event_shape == (2,)
    assert law.has_rsample
    assert law.rsample((5,)).requires_grad
    assert not law.sample((5,)).requires_grad
    x = law.sample((6,))
    assert torch.allclose(law.log_prob(x), flow.log_prob(x, context))
    assert torch.distributions.Independent(law, 1).log_prob(x).shape == (6,)
    wide = flow(context[:1]).expand((4,))
    assert wide.batch_shape == (4,)
    assert torch.allclose(wide.log_prob(x), flow.log_prob(x, context[:1]))
    with pytest.raises(ValueError, match="within the support"):
        law.log_prob(torch.full((2,), math.nan))
    plain = AffineFlow(2)().expand((3, 4))
    assert plain.sample((2,)).shape == (2, 3, 4, 2)
    assert plain.log_prob(torch.zeros(2)).shape == (3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: continuous().log_prob(torch.zeros(5, 3)), ValueError, r"\[\.\.\., 2\]"),
        (lambda: continuous().log_prob([0.0, 0.0]), TypeError, "torch.Tensor of shape"),
        (lambda: continuous().sample((2,), torch.zeros(3)), ValueError, "unconditional"),
        (lambda: AffineFlow(2, 3).sample((2,)), ValueError, "the context is missing"),
        (lambda: AffineFlow(2, 3).sample((2,), torch.zeros(4)), ValueError, r"does not end in \(3,\)"),
        (lambda: continuous().sample((2,), sovler=solvers.Euler(2)), TypeError, "did you mean 'solver'"),
        (lambda: AffineFlow(2).log_prob(torch.zeros(2), guidance=1), TypeError, "it takes generator"),
        (lambda: continuous().with_transform(torch.nn.ReLU()), TypeError, "not a bijections.Map"),
        (lambda: continuous().sample((-1,)), ValueError, "non-negative"),
    ],
)
def test_bad_calls_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_label_of_no_condition_is_refused_where_it_was_never_trained():
    for flow in (
        cflow.ContinuousFlow(fields.MLP(2, classes=3), bases.Normal(2), path=paths.Linear(), context_shape=()),
        cflow.discrete.nsf(2, classes=3, layers=1, hidden=(8,)),
    ):
        unknown = torch.tensor([0, 3])
        flow.log_prob(torch.zeros(2, 2), unknown)  # nothing is known of its training
        flow.record(objectives.MaximumLikelihood())
        with pytest.raises(ValueError, match=r"label 3: \"no condition\" was not trained .*labels go from 0 to 2"):
            flow.log_prob(torch.zeros(2, 2), unknown)
        flow.record(objectives.MaximumLikelihood(condition_dropout=0.1))
        flow.log_prob(torch.zeros(2, 2), unknown)


@pytest.mark.parametrize("objective", [None, "FlowMatching", objectives.FlowMatching])
def test_only_objectives_are_recorded(objective):
    flow = continuous()
    with pytest.raises(TypeError, match="pass an object such as objectives.FlowMatching"):
        flow.record(objective)
    assert flow.trained_by == ()


def test_a_flow_of_few_steps_stays_on_its_path():
    flow = continuous()
    flow.with_path(paths.Cosine())
    flow.record(objectives.Distillation(1))
    with pytest.raises(ValueError, match="trained to few steps .* keeps its path"):
        flow.with_path(paths.Cosine())


def test_only_methods_that_take_options_are_asked_for_them():
    flow = continuous()
    assert flow.options_of("rsample") == ("solver", "guidance")
    assert set(flow.options_of("encode")) == {"solver", "guidance", "divergence"}
    with pytest.raises(ValueError, match=r"options_of\('nope'\).*choose from sample"):
        flow.options_of("nope")


def test_whole_numbers_are_no_points_of_a_trajectory():
    with pytest.raises(TypeError, match=r"x has dtype torch.int64.*x.float\(\)"):
        continuous().log_prob(torch.ones(2, 2, dtype=torch.int64))
