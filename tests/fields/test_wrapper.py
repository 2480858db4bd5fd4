"""A wrapper that only forwards behaves as the field that it wraps, bit for bit, wherever a field is asked for."""

import copy
import re
from pathlib import Path

import pytest
import torch
from field_members import FIELDS
from torch import nn

import cflow
from cflow import bases, objectives, paths, solvers
from cflow.divergence import Analytic, Hutchinson
from cflow.fields import MLP, EndTime, FieldContract, FieldWrapper, as_field, two_times
from cflow.guidance import AutoGuidance, ClassifierFree, Guided
from cflow.paths import Rescheduled
from cflow.registry import configuration, parameters


class Same(FieldWrapper):
    """Only forwards."""


def moved(field, generator):
    """Moves every parameter, so that no layer is zero."""
    with torch.no_grad():
        for each in field.parameters():
            each.add_(0.2 * torch.randn(each.shape, generator=generator))
    return field


@pytest.fixture(params=FIELDS)
def pair(request, generator):
    """A field and the same field wrapped, with inputs for it."""
    field = moved(FIELDS[request.param](), generator)
    x = torch.randn(4, *field.event_shape, generator=generator)
    context = None
    if field.context_shape is not None:
        context = torch.randn(4, *field.context_shape, generator=generator)
        context = torch.arange(4) % field.classes if field.classes else context
    return field, Same(field), x, context


def outcome(call, *arguments):
    """What a call returns, or how it fails."""
    try:
        return call(*arguments)
    except (TypeError, ValueError) as error:
        return type(error), str(error)


def same(first, second):
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def agree(call, one, other):
    """Whether a call of both gives the same numbers, or fails alike."""
    return same(outcome(call, one), outcome(call, other))


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def test_it_answers_all_that_a_field_is_asked(pair, generator):
    field, wrapped, x, context = pair
    asked = [name for name, value in vars(FieldContract).items() if not name.startswith("_") and not callable(value)]
    assert asked == [*FieldContract.__annotations__]
    assert asked[-2:] == ["reads_time", "self_conditioned"]
    assert [getattr(wrapped, name) for name in asked] == [getattr(field, name) for name in asked]
    t, s = torch.rand(2, 4, generator=generator)
    assert agree(lambda each: each(t, x, context), field, wrapped)
    assert agree(lambda each: each(t, x, context, s=s), field, wrapped)
    assert agree(lambda each: each.null_context(context), field, wrapped)
    assert agree(lambda each: each.value_and_divergence(t, x, context), field, wrapped)
    copied = copy.deepcopy(wrapped)
    assert torch.equal(copied(t, x, context), wrapped(t, x, context))


def test_no_other_file_probes_what_a_field_is_asked():
    asked = "|".join([*FieldContract.__annotations__, "null_context", "value_and_divergence"])
    probe = re.compile(rf"(getattr|hasattr)\([^()]*(\([^()]*\))?[^()]*, \"({asked})\"")
    assert probe.search('getattr(getattr(flow, "field", None), "classes", 0)')
    folder = Path(cflow.__file__).parent
    found = [
        f"{path.relative_to(folder)}: {line.strip()}"
        for path in folder.rglob("*.py")
        for line in path.read_text().splitlines()
        if probe.search(line) and not re.search(r"\((base|flow|problem\.f), ", line)  # which are not fields
    ]
    assert not found


def flows(pair):
    field, wrapped, x, context = pair
    path = paths.Linear()
    if isinstance(field, Rescheduled) or hasattr(field, "path"):
        path = field.path
    elif field.outputs == 2:
        path = paths.BrownianBridge(predict="score")
    elif isinstance(field, EndTime):
        path = None
    options = {"path": path, "solver": solvers.Heun(steps=3), "context_shape": field.context_shape}
    make = lambda each: cflow.ContinuousFlow(each, bases.Normal(field.event_shape), **options)
    return make(field), make(wrapped), x, context


def test_samples_and_densities_are_equal(pair):
    one, other, x, context = flows(pair)
    draw = lambda flow, **options: flow.sample((2,), context, generator=seeded(), **options)
    assert torch.equal(draw(one), draw(other))
    adaptive = solvers.Dopri5(rtol=1e-3, atol=1e-3)
    assert torch.equal(draw(one, solver=adaptive), draw(other, solver=adaptive))
    assert (one.interval, one.likelihood) == (other.interval, other.likelihood)
    density = lambda flow, divergence: flow.log_prob(x, context, generator=seeded(), divergence=divergence)
    assert torch.equal(density(one, Hutchinson()), density(other, Hutchinson()))
    assert agree(lambda flow: density(flow, Analytic()), one, other)
    whole = lambda flow: draw(flow, solver=solvers.FlowMap(steps=2))
    assert agree(whole, one, other)
    assert isinstance(outcome(whole, other), torch.Tensor) == one.field.two_times
    if context is not None:
        assert agree(lambda flow: draw(flow, guidance=ClassifierFree(2.0)), one, other)
        assert agree(lambda flow: flow.sample((2,)), one, other)
    if one.field.classes:
        assert agree(lambda flow: flow.sample((2,), torch.tensor([9])), one, other)
        with pytest.raises(ValueError, match="class labels from 9 to 9"):
            other.sample((2,), torch.tensor([9]))


def objectives_for(flow, context):
    if flow.path is None:
        return [objectives.FFJORD(solver=solvers.Heun(steps=2))]
    if flow.path.adds_noise:
        return [objectives.BridgeMatching()]
    matching = objectives.FlowMatching(condition_dropout=0.0 if context is None else 0.5)
    return [matching, *([objectives.MeanFlow(), objectives.Shortcut(steps=4)] if flow.field.two_times else [])]


def test_losses_and_their_gradients_are_equal(pair):
    one, other, x, context = flows(pair)
    for objective in objectives_for(one, context):
        compute = lambda flow, objective=objective: objective(flow, x, context, generator=seeded())
        losses = [outcome(compute, flow) for flow in (one, other)]
        assert same(*losses)
        if isinstance(losses[0], tuple):  # of a network without a context for "no condition"
            assert "null_context: this network has no context" in losses[0][1]
            continue
        weights = list(one.field.parameters())
        if weights:
            gradients = [torch.autograd.grad(loss.sum(), weights, allow_unused=True) for loss in losses]
            assert all(a is b or torch.equal(a, b) for a, b in zip(*gradients))


@pytest.mark.parametrize("name", [name for name in FIELDS if "time" in name or name == "mlp"])
def test_a_second_time_is_given_to_the_field_inside(name, generator):
    field = moved(FIELDS[name](), generator)
    one, other = (outcome(two_times, each) for each in (field, Same(field)))
    if isinstance(one, nn.Module):
        assert isinstance(other, Same)
        assert other.two_times
        x, (t, s) = torch.randn(4, *field.event_shape, generator=generator), torch.rand(2, 4, generator=generator)
        assert torch.equal(one(t, x, s=s), other(t, x, s=s))
    else:
        assert one == other


def test_a_wrapper_that_reads_one_time_is_given_no_second():
    class Single(FieldWrapper):
        two_times = False

    with pytest.raises(TypeError, match=r"two_times\(Single\): this wrapper reads one time"):
        two_times(Single(MLP(2)))


def test_what_a_wrapper_overrides_is_its_own(generator):
    class Halved(FieldWrapper):
        interval = (0.0, 0.5)

        def forward(self, t, x, context=None, *, s=None):
            return super().forward(t, x, context, s=s) / 2

    field = moved(MLP(2, hidden=(8,)), generator)
    halved, x, t = Halved(field), torch.randn(3, 2, generator=generator), torch.rand(3, generator=generator)
    assert torch.equal(halved(t, x), field(t, x) / 2)
    assert halved.interval == (0.0, 0.5)
    assert cflow.ContinuousFlow(halved, bases.Normal(2)).interval == (0.0, 0.5)
    with pytest.raises(TypeError, match="Halved has no divergence in closed form"):
        halved.value_and_divergence(t, x)


# Foreign networks


class Foreign(nn.Module):
    """A network that knows nothing of the contract."""

    def __init__(self, context=0):
        super().__init__()
        self.layer = nn.Linear(3 + context, 2)

    def forward(self, t, x, context=None):
        parts = [x, t.expand(len(x))[:, None], *([] if context is None else [context])]
        return torch.tanh(self.layer(torch.cat(parts, 1)))


def test_a_foreign_network_stays_what_it_is(generator):
    network = Foreign()
    flow = cflow.ContinuousFlow(network, bases.Normal(2), path=paths.Linear())
    assert flow.field is network
    assert [name for name in flow.state_dict() if name.startswith("field")] == [
        "field.layer.weight",
        "field.layer.bias",
    ]
    view = as_field(network)
    assert (view.event_shape, view.context_shape, view.outputs) == (..., ..., ...)
    assert (view.classes, view.two_times, view.interval, view.converts) == (0, False, (0.0, 1.0), False)
    assert (view.reads_time, view.self_conditioned) == (True, False)
    with pytest.raises(ValueError, match=r"Foreign.null_context: this network has no context"):
        view.null_context(torch.zeros(2, 3))
    with pytest.raises(TypeError, match="Foreign has no divergence in closed form"):
        view.value_and_divergence(torch.zeros(1), torch.zeros(1, 2))
    wrapped = cflow.ContinuousFlow(Same(network), bases.Normal(2), path=paths.Linear())
    draw = lambda each: each.sample((5,), generator=torch.Generator().manual_seed(3))
    assert torch.equal(draw(flow), draw(wrapped))


def test_what_a_foreign_network_declares_is_read():
    class Labels(Foreign):
        context_shape, classes, interval = torch.Size([]), 3, (0.1, 1.0)

        def null_context(self, context):
            return torch.full_like(context, 3)

    view = as_field(Labels())
    assert (view.context_shape, view.classes, view.interval) == (torch.Size([]), 3, (0.1, 1.0))
    assert view.null_context(torch.tensor([0, 1])).tolist() == [3, 3]
    flow = cflow.ContinuousFlow(Labels(), bases.Normal(2), context_shape=())
    assert flow.interval == (0.1, 1.0)
    with pytest.raises(ValueError, match="class labels from 7 to 7"):
        flow.sample((2,), torch.tensor(7))


def test_parts_of_the_contract_may_be_left_unsaid(generator):
    class Some(Foreign):
        event_shape, outputs = torch.Size([2]), None

    length = EndTime(Some(3), initial=0.5)
    assert (length.event_shape, length.context_shape, length.outputs) == (torch.Size([2]), ..., ...)
    x, context = torch.randn(4, 2, generator=generator), torch.randn(4, 3, generator=generator)
    expected = 0.5 * length.field(torch.tensor(0.75), x, context)
    torch.testing.assert_close(length(torch.tensor(0.5), x, context), expected)
    flow = cflow.ContinuousFlow(length, bases.Normal(2), context_shape=3)
    assert flow.sample((), context, solver=solvers.Euler(steps=2)).shape == (4, 2)


def test_a_wrapper_keeps_contexts_of_several_parts(generator):
    class Parts(Foreign):
        event_shape, context_shape = torch.Size([2]), {"a": torch.Size([3]), "b": torch.Size([1])}

        def forward(self, t, x, context=None):
            return super().forward(t, x, context["a"]) * context["b"]

    length, context = EndTime(Parts(3)), {"a": torch.randn(4, 3), "b": torch.randn(4, 1)}
    x = torch.randn(4, 2, generator=generator)
    torch.testing.assert_close(length(0.5, x, context), length.field(torch.tensor(0.5), x, context))
    with pytest.raises(ValueError, match=r"context_shape=\{'a': \(3,\), 'b': \(1,\)\}"):
        length(0.5, x)


def test_a_conditional_foreign_network_is_read_on_another_path(generator):
    flow = cflow.ContinuousFlow(Foreign(3), bases.Normal(2), path=paths.Linear(), context_shape=(3,))
    other = flow.with_path(paths.Cosine())
    context = torch.randn(3, generator=generator)
    x0 = torch.randn(6, 2, generator=generator)
    ends = [each.transport(x0, 0.0, 1.0, context, solver=solvers.RK4(steps=50)).y for each in (flow, other)]
    torch.testing.assert_close(*ends, atol=2e-3, rtol=0)


def test_a_foreign_network_guides_as_the_weak_one(generator):
    weak, good = Foreign(), MLP(2, hidden=(8,))
    guided = AutoGuidance(weak, 2.0)(good)
    t, x = torch.tensor(0.3), torch.randn(3, 2, generator=generator)
    torch.testing.assert_close(guided(t, x), 2 * good(t, x) - weak(t, x))
    assert isinstance(guided, Guided)
    assert guided.classes == 0


def test_a_weak_flow_of_two_outputs_guides_by_its_velocity(generator):
    path = paths.BrownianBridge(predict="score")
    good, weak = (cflow.ContinuousFlow(MLP(2, hidden=(8,), outputs=2), bases.Normal(2), path=path) for _ in range(2))
    t, x = torch.full((3,), 0.3), torch.randn(3, 2, generator=generator)
    guided = good.velocity_field(AutoGuidance(weak, 2.0))
    torch.testing.assert_close(guided(t, x), 2 * good.velocity(t, x) - weak.velocity(t, x))
    with pytest.raises(ValueError, match="2 outputs is not a velocity"):
        AutoGuidance(weak.field, 2.0)(MLP(2))


def test_wrappers_of_the_package_keep_their_arguments():
    for name in ("end time", "rescheduled noise"):
        field = FIELDS[name]()
        assert configuration(field).keys() == parameters(type(field)).keys()
