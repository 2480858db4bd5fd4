"""What a user tries first: it works, or the error holds the right call."""

import numpy
import pytest
import torch

import cflow
from cflow import bases, discrete, fields, paths, solvers
from cflow.keywords import CALLS, FLOWS


@pytest.fixture(scope="module")
def labelled():
    return cflow.ContinuousFlow(fields.MLP(2, classes=4, hidden=(8,)), bases.Normal(2), path=paths.Linear())


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        (fields.MLP(2, classes=4), ()),
        (fields.MLP(2, context=3), (3,)),
        (fields.MLP(2), None),
        (torch.nn.Identity(), None),
        (fields.UNet(1, 8, width=32, classes=10), ()),
    ],
)
def test_the_shape_of_a_context_follows_from_the_field(field, shape):
    base = bases.Normal((1, 8, 8) if isinstance(field, fields.UNet) else 2)
    found = cflow.ContinuousFlow(field, base).context_shape
    assert found == (None if shape is None else torch.Size(shape))


def test_numbers_and_lists_are_contexts(labelled):
    draw = lambda context: labelled.sample((3,), context, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(3), draw(torch.tensor(3)))
    assert torch.equal(draw([3, 1]), draw(torch.tensor([3, 1])))
    assert labelled(2).batch_shape == ()
    assert labelled([2, 0]).batch_shape == (2,)
    x = torch.zeros(2)
    assert torch.equal(labelled.log_prob(x, 1), labelled.log_prob(x, torch.tensor(1)))
    assert torch.equal(draw(numpy.int64(3)), draw(3))
    one = discrete.maf(2, context=1, layers=1)
    torch.nn.init.normal_(one.bijection[0].conditioner.layers[-1].weight)
    assert torch.equal(one.log_prob(x, 3.0), one.log_prob(x, torch.tensor([3.0])))
    assert not torch.equal(one.log_prob(x, 3.0), one.log_prob(x, 2.0))
    assert one.sample((2,), context=3.0).shape == (2, 2)
    vector = discrete.maf(2, context=2, layers=1)
    assert torch.equal(vector.log_prob(x, [0.5, 1.0]), vector.log_prob(x, torch.tensor([0.5, 1.0])))
    with pytest.raises(ValueError, match="labels from 7 to 7"):
        labelled.sample((), 7)
    with pytest.raises(ValueError, match="unconditional"):
        discrete.maf(2).sample((), 3)


def test_a_flow_that_is_called_with_data_names_log_prob(labelled):
    for flow, x in (
        (discrete.maf(2), torch.zeros(5, 2)),
        (discrete.maf(2, context=3), torch.zeros(5, 2)),
        (labelled, torch.zeros(5, 2)),
    ):
        with pytest.raises(ValueError, match=r"flow\(x of shape \[5, 2\]\).*call flow.log_prob\(x\)"):
            flow(x)
    assert discrete.maf(2, context=2)(torch.zeros(5, 2)).batch_shape == (5,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 5}, r"flow.sample\(\(16,\)\)"),
        ({"num_samples": 5}, r"flow.sample\(\(16,\)\)"),
        ({"condition": 1}, r"pass context=\.\.\."),
        ({"steps": 8}, r"solver=solvers.Heun\(steps=20\)"),
        ({"guidance_scale": 2.0}, r"ClassifierFree\(2.0\)"),
        ({"seed": 0}, r"manual_seed\(0\)"),
        ({"sovler": 0}, "did you mean 'solver'"),
        ({"solver": "heun"}, r"by_name\('heun'"),
        ({"guidance": 2.0}, r"ClassifierFree\(2.0\)"),
    ],
)
def test_calls_of_other_libraries_get_the_right_one(labelled, options, message):
    with pytest.raises(TypeError, match=message):
        labelled.sample((2,), context=1, **options)


@pytest.mark.parametrize("option", [{"solver": "heun"}, {"steps": 8}, {"method": "euler"}])
def test_a_flow_without_an_equation_says_that_it_needs_no_solver(option):
    with pytest.raises(TypeError, match=r"no such option; this flow needs no solver"):
        discrete.nice(2).sample((2,), **option)
    with pytest.raises(TypeError, match="this flow has no guidance; it takes generator"):
        discrete.nice(2).sample((2,), guidance_scale=2.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: fields.MLP(2, hidden_features=[64]),
            r"MLP\(.*did you mean 'hidden'\? .* hidden=\(64,\)\) MLP",
        ),
        (lambda: fields.MLP(dim=2), "MLP.dim=2.: no such option; did you mean 'features'"),
        (lambda: fields.ConcatSquash(2, act="tanh"), "did you mean 'activation'"),
        (lambda: fields.UNet(1, 8, num_classes=3), "UNet.num_classes=3.: .*did you mean 'classes'"),
        (lambda: fields.Potential(2, quux=3), "Potential.quux=3.: no such option; Potential takes"),
    ],
)
def test_networks_name_the_keyword_that_was_meant(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_what_the_hints_name_is_there(labelled):
    """Every target of the tables is a keyword of some preset, and no preset has a keyword that the tables redirect."""
    import inspect

    known = {"hidden", "activation", "residual", "inverse"}
    for make in discrete.PRESETS.values():
        own = {name for name, each in inspect.signature(make).parameters.items() if each.kind is not each.VAR_KEYWORD}
        known |= own
        assert not own & {name for name in FLOWS if FLOWS[name] in own and name != FLOWS[name]}
    assert set(FLOWS.values()) <= known
    assert not set(CALLS) & set(labelled.options_of("sample_and_log_prob"))
    assert solvers.by_name("heun", steps=20) == solvers.Heun(steps=20)
