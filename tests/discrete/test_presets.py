"""Whole flows by name."""

import copy

import numpy
import pytest
import torch

import cflow
from cflow import discrete
from cflow.integrations.export import LogProb
from cflow.testing import check_flow

SMALL = {
    "nsf": {"bins": 4},
    "flowpp": {"components": 3},
    "gf": {"components": 3},
    "naf": {"units": 4},
    "unaf": {"integrand": (8,)},
}
COUPLINGS = {"nice", "realnvp", "nsf", "flowpp"}
NO_NETWORK = {"planar", "radial", "sylvester"}


def flow_of(name, features, context=0, **options):
    torch.manual_seed(0)
    options = {"layers": 2, **SMALL.get(name, {}), **options}
    if name not in NO_NETWORK:
        options.setdefault("hidden", (8, 8))
    flow = discrete.PRESETS[name](features, context, **options)
    for parameter in flow.parameters():
        if parameter.numel() and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return flow


@pytest.mark.parametrize("name", discrete.PRESETS)
@pytest.mark.parametrize("context", [0, 2])
def test_presets_conform(name, context):
    check_flow(flow_of(name, 2, context), torch.ones(context) if context else None, density=not context)


@pytest.mark.parametrize("name", discrete.PRESETS)
def test_one_feature_will_do(name, generator):
    flow = flow_of(name, 1).double()
    x = torch.linspace(-30, 30, 20_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        mass = torch.trapezoid(flow.log_prob(x).exp(), x[:, 0])
        samples = flow.sample((5,), generator=generator)
        assert torch.allclose(flow.decode(flow.encode(samples)[0])[0], samples, atol=1e-8)
    assert float(mass) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", discrete.PRESETS)
def test_the_integers_of_numpy_are_counts(name, tmp_path):
    count = numpy.int64
    options = {"layers": count(2), **({} if name in NO_NETWORK else {"hidden": numpy.array([8, 8])})}
    options |= {key: tuple(map(count, value)) if key == "integrand" else count(value)
                for key, value in SMALL.get(name, {}).items()}  # fmt: skip
    flow = discrete.PRESETS[name](count(2), count(2), **options)
    again = cflow.load(cflow.save(flow, tmp_path / "flow"))
    assert (again.event_shape, again.context_shape) == ((2,), (2,))
    assert {type(size) for size in (*flow.event_shape, *flow.context_shape)} == {int}
    labelled = discrete.PRESETS[name](count(2), classes=count(3), embedding=count(4), **options)
    assert labelled.classes == 3
    assert cflow.load(cflow.save(labelled, tmp_path / "labelled")).embedding.width == 4


@pytest.mark.parametrize("name", sorted(COUPLINGS))
def test_a_single_feature_moves_as_the_context_says(name):
    flow = flow_of(name, 1, 2)
    x, contexts = torch.zeros(2, 1), torch.tensor([[0.0, 0.0], [5.0, -5.0]])
    assert flow.log_prob(x, contexts).unique().numel() == 2


@pytest.mark.parametrize("name", discrete.PRESETS)
@pytest.mark.parametrize("features", [0, -1, 2.0, (2,), True])
def test_presets_count_features(name, features):
    with pytest.raises(ValueError, match=rf"{name}\(features=.*pass for example {name}\(2\)"):
        discrete.PRESETS[name](features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bins": 8}, "did you mean 'bins'?"),
        ({"tail_bound": 3.0}, "did you mean 'bound'?"),
        ({"hidden_units": 32}, r"did you mean 'hidden'\? \(a width for every layer: hidden=\(32, 32\)\)"),
        ({"hidden_features": (64, 32)}, r"every layer: hidden=\(64, 32\)\) nsf takes"),
        ({"hidden_features": [64]}, r"every layer: hidden=\(64,\)\) nsf takes"),
        ({"labels": 3}, "did you mean 'classes'?"),
        ({"num_layers": 3}, "did you mean 'layers'?"),
        ({"n_conditional_inputs": 3}, "did you mean 'context'?"),
        ({"layer": 3}, "did you mean 'layers'?"),
        ({"quux": 1}, "no such option; nsf takes layers, bins"),
        ({"layers": 0}, "one layer or more"),
        ({"hidden": 64}, r"pass hidden=\(64, 64\)"),
        ({"hidden": "wide"}, r"pass hidden=\(64, 64\)"),
        ({"hidden": (8, 2.5)}, "as integers; pass hidden="),
        ({"context": -1}, "width of a context vector"),
    ],
)
def test_unknown_keywords_name_the_one_that_was_meant(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        discrete.nsf(2, **options)


@pytest.mark.parametrize("name", discrete.PRESETS)
def test_a_flow_without_features_says_so_and_a_wrong_keyword_comes_first(name):
    with pytest.raises(TypeError, match=rf"^{name}\(\): the number of features is missing; pass .*{name}\(2\)"):
        discrete.PRESETS[name]()
    with pytest.raises(TypeError, match=rf"^{name}\(num_layers=8\): .*did you mean 'layers'"):
        discrete.PRESETS[name](num_layers=8)
    with pytest.raises(TypeError, match=rf"^{name}\(dim=2\): .*did you mean 'features'"):
        discrete.PRESETS[name](dim=2)


@pytest.mark.parametrize("name", discrete.PRESETS)
def test_presets_start_near_the_base(name, generator):
    torch.manual_seed(0)
    x = torch.randn(500, 3, generator=generator)
    flow = discrete.PRESETS[name](3)
    with torch.no_grad():
        assert (
            float((flow.log_prob(x) - flow.base.log_prob(x)).mean().abs()) < 0.6
        )  # logistic functions are not quite straight


@pytest.mark.parametrize("name", discrete.PRESETS)
def test_presets_compile_without_a_break_export_and_give_scores(name, generator):
    flow = flow_of(name, 3, 2).double()
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    context = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    torch._dynamo.reset()
    log_prob = torch.compile(flow.log_prob, backend="eager", fullgraph=True, dynamic=False)
    assert torch.allclose(log_prob(x, context), flow.log_prob(x, context))
    sample = torch.compile(lambda: flow.sample((5,), context[0]), backend="eager", fullgraph=True, dynamic=False)
    assert sample().shape == (5, 3)
    batch = {0: torch.export.Dim("batch", min=2)}
    program = torch.export.export(LogProb(flow), (x, context), dynamic_shapes=(batch, batch))
    assert torch.allclose(program.module()(x[:3], context[:3]), flow.log_prob(x[:3], context[:3]))
    score = torch.func.vmap(torch.func.grad(lambda x, c: flow.log_prob(x, c)))(x, context)
    point = x.clone().requires_grad_()
    wanted = torch.autograd.grad(flow.log_prob(point, context).sum(), point)[0]
    assert torch.allclose(score, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", discrete.PRESETS)
def test_presets_in_single_precision_and_under_autocast(name, generator):
    flow = flow_of(name, 3)
    far = 5.0 if name == "sospf" else 40.0  # two polynomials of degree nine in a row leave float32 soon
    x = torch.cat((2 * torch.randn(100, 3, generator=generator), torch.full((1, 3), far)))
    with torch.no_grad():
        exact = copy.deepcopy(flow).double().log_prob(x.double())
        assert torch.allclose(flow.log_prob(x).double(), exact, rtol=1e-3, atol=1e-3)
        with torch.autocast("cpu", torch.bfloat16):
            logp = flow.log_prob(x)
            drawn, own = flow.sample_and_log_prob((20,), generator=generator)
    assert logp.dtype == drawn.dtype == own.dtype == torch.float32
    assert logp.isfinite().all()
    assert own.isfinite().all()


def test_what_layers_take_is_handed_on_and_nothing_is_swallowed():
    flow = discrete.maf(3, hidden=(5, 5, 5), residual=True, activation="silu", inverse=discrete.Jacobi())
    assert flow.bijection[0].conditioner.residual
    assert flow.cost() == (5, 15, 15)
    with pytest.raises(TypeError, match="hiden"):
        discrete.nsf(3, hiden=(5,))
