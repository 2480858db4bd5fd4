"""What every network promises as a field, asked of each."""

import pytest
import torch
from field_members import NETWORKS
from torch import nn

from cflow.fields import MLP, NULL, Adapted, ConcatSquash, Field, Potential, UNet
from cflow.registry import build, configuration

CONDITIONAL = [name for name in NETWORKS if "with" in name]


@pytest.fixture
def make(generator, float64):
    """Builds a field by name, every parameter moved so that no layer is zero, and inputs for it."""

    def built(name, batch=3):
        field = NETWORKS[name]()
        with torch.no_grad():
            for parameter in field.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        x = torch.randn(batch, *field.event_shape, generator=generator)
        t = torch.rand(batch, generator=generator)
        context = None
        if field.context_shape is not None:
            context = torch.randn(batch, *field.context_shape, generator=generator)
            context = torch.arange(batch) % 4 if field.classes else context
        return field, t, x, context

    return built


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_result_is_like_x_for_every_dtype(name, make, batch):
    field, t, x, context = make(name, batch)
    exact = field(t, x, context)
    assert exact.shape == x.shape
    assert exact.dtype == torch.float64
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        field.to(dtype)
        rough = field(t, x.float(), context)  # the state keeps its precision, whatever the network's
        assert rough.dtype == torch.float32
        assert field(t, x.to(dtype), context).dtype == dtype
        if batch:
            assert (rough - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_an_untrained_field_stands_still(name):
    field = NETWORKS[name]()
    context = None
    if field.context_shape is not None:
        context = torch.zeros(2, *field.context_shape, dtype=torch.long if field.classes else None)
    assert (field(0.3, torch.ones(2, *field.event_shape), context) == 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shared_time_may_be_given_in_every_form(name, make):
    field, _, x, context = make(name)
    expected = field(torch.full((3,), 0.3), x, context)
    for time in (torch.tensor(0.3), torch.tensor(0.3).expand(3), 0.3):
        torch.testing.assert_close(field(time, x, context), expected)
    assert (field(torch.tensor(0.9), x, context) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_do_not_see_each_other(name, make):
    field, t, x, context = make(name)
    batch = field(t, x, context)
    for row in range(3):
        alone = field(t[row], x[row, None], None if context is None else context[row, None])
        torch.testing.assert_close(alone[0], batch[row])


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter(name, make):
    field, t, x, context = make(name)
    if context is not None:
        context = torch.cat([context[:2], field.null_context(context[2:])])
    field(t, x, context).square().sum().backward()
    for key, parameter in field.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", NETWORKS)
def test_divergence_agrees_in_reverse_and_forward_mode(name, make):
    field, t, x, context = make(name)
    x.requires_grad_()
    size = field.event_shape.numel()
    v = field(t, x, context)
    eye = torch.eye(size).reshape(size, 1, *field.event_shape).expand(size, *x.shape)
    (rows,) = torch.autograd.grad(v, x, eye, is_grads_batched=True, create_graph=True)
    jacobian = rows.reshape(size, 3, size).transpose(0, 1)

    def one(x, t, *context):
        return field(t[None], x[None], *(c[None] for c in context))[0].flatten()

    arguments = (x.detach(), t) if context is None else (x.detach(), t, context)
    forward = torch.func.vmap(torch.func.jacfwd(one))(*arguments)
    torch.testing.assert_close(jacobian, forward.reshape(3, size, size))
    # A training loss of the trace differentiates twice.
    jacobian.diagonal(dim1=1, dim2=2).sum().backward()
    still = [key.removeprefix("field.") for key, p in field.named_parameters() if p.grad is None or not p.grad.any()]
    # A shift of all outputs, and what this batch does not use.
    assert set(still) <= {"output.bias", "slope", "condition.null", "null", "patches.output.bias", "embedding.null"}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_derivative_in_time_is_that_of_differences(name, make):
    field, t, x, context = make(name)
    _, tangent = torch.func.jvp(lambda t: field(t, x, context), (t,), (torch.ones_like(t),))
    step = 1e-6
    differences = (field(t + step, x, context) - field(t - step, x, context)) / (2 * step)
    assert (tangent - differences).norm() < 1e-6 * tangent.norm()


@pytest.mark.parametrize("name", ["mlp with classes", "unet with classes"])
def test_a_tangent_passes_through_vmap(name, make):
    field, t, x, context = make(name)
    direction = torch.ones_like(x)
    _, tangent = torch.func.jvp(lambda x: field(t, x, context), (x,), (direction,))
    single = torch.func.vmap(lambda t, x, c: field(t[None], x[None], c[None])[0])
    _, mapped = torch.func.jvp(lambda x: single(t, x, context), (x,), (direction,))
    torch.testing.assert_close(mapped, tangent)


def test_rows_of_an_expanded_time_keep_their_own_gradients(make):
    field, _, x, _ = make("mlp")
    weights = torch.tensor([1.0, 2.0, 3.0])[:, None]
    gradients = []
    for t in (torch.tensor(0.3).expand(3), torch.full((3,), 0.3)):
        t = t.detach().requires_grad_()
        gradients += torch.autograd.grad((weights * field(t, x)).sum(), t)
    torch.testing.assert_close(*gradients)
    assert gradients[0].unique().numel() == 3


@pytest.mark.parametrize("name", CONDITIONAL)
def test_no_condition_differs_from_every_condition(name, make):
    field, t, x, context = make(name)
    null = field.null_context(context)
    assert null.shape == context.shape
    assert null.dtype == context.dtype
    assert (null == (4 if field.classes else NULL)).all()
    assert (field(t, x, null) - field(t, x, context)).flatten(1).norm(dim=1).min() > 1e-2
    # Rows are recognised one by one.
    mixed = torch.cat([context[:1], null[1:]])
    expected = torch.cat([field(t, x, context)[:1], field(t, x, null)[1:]])
    torch.testing.assert_close(field(t, x, mixed), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_condition_is_recognised_in_low_precision(dtype, make):
    field, t, x, context = make("mlp with context")
    low = field.null_context(context.to(dtype))
    assert low.dtype == dtype
    torch.testing.assert_close(field(t, x, low), field(t, x, field.null_context(context)))


@pytest.mark.parametrize("name", [name for name in NETWORKS if "with context" in name])
def test_a_nan_in_a_context_is_no_missing_condition(name, make):
    field, t, x, context = make(name)
    context[1, 0] = torch.nan
    result = field(t, x, context)
    assert result[1].isnan().all()
    assert result[[0, 2]].isfinite().all()


@pytest.mark.parametrize("name", [name for name in NETWORKS if "with context" in name])
def test_gradients_of_a_null_context_are_finite(name, make):
    field, t, x, context = make(name)
    null = field.null_context(context).requires_grad_()
    field(t, x, null).sum().backward()
    assert (null.grad == 0).all()
    assert all(p.grad.isfinite().all() for p in field.parameters())


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_missing_context_is_refused(name, make):
    field, t, x, _ = make(name)
    with pytest.raises(ValueError, match=r"without context.*null_context"):
        field(t, x)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "with" not in name])
def test_a_context_too_many_is_refused(name, make):
    field, t, x, _ = make(name)
    with pytest.raises(ValueError, match="unconditional"):
        field(t, x, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="unconditional"):
        field.null_context(torch.zeros(3, 2))


@pytest.mark.parametrize("name", NETWORKS)
def test_wrong_shapes_are_refused(name, make):
    field, t, x, context = make(name)
    for wrong in (x[0], x[None], x[:, :-1]):
        with pytest.raises(ValueError, match=r"x of shape \[.*pass x of shape"):
            field(t, wrong, context)
    with pytest.raises(ValueError, match=r"t of shape \[2\]"):
        field(t[:2], x, context)
    with pytest.raises(ValueError, match=r"t of shape \[3, 1\]"):
        field(t[:, None], x, context)
    with pytest.raises(TypeError, match="two_times"):
        field(t, x, context, s=t)
    if context is not None:
        with pytest.raises(ValueError, match="context of shape"):
            field(t, x, context[:1])


@pytest.mark.parametrize("name", [name for name in NETWORKS if "with classes" in name])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_labels_that_are_not_integers_are_refused(name, dtype, make):
    field, t, x, context = make(name)
    with pytest.raises(TypeError, match="class labels"):
        field(t, x, context.to(dtype))
    with pytest.raises(TypeError, match="class labels"):
        field.null_context(context.to(dtype))
    torch.testing.assert_close(field(t, x, context.to(torch.uint8)), field(t, x, context))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_field_is_rebuilt_from_its_configuration(name, make):
    field, t, x, context = make(name)
    again = build(type(field), configuration(field))
    again.load_state_dict(field.state_dict())
    assert (again(t, x, context) == field(t, x, context)).all()
    assert configuration(again) == configuration(field)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "with classes" in name])
def test_networks_run_under_autocast(name, make):
    field, t, x, context = make(name)
    field, t, x = field.float(), t.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        rough = field(t, x, context)
    exact = field(t, x, context)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() < 0.1 * exact.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compile_without_a_graph_break(name, make):
    field, t, x, context = make(name)
    compiled = torch.compile(field, fullgraph=True, backend="aot_eager")
    for time in (t, t[0]):
        torch.testing.assert_close(compiled(time, x, context), field(time, x, context))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"features": 0}, "sizes must be positive"),
        ({"features": 2, "hidden": ()}, "at least one hidden layer"),
        ({"features": 2, "activation": "relu"}, "silu, gelu"),
        ({"features": 2, "classes": 2, "context": 2}, "at most one"),
        ({"features": 2, "time_width": 5}, "even width"),
    ],
)
def test_mlp_refuses_what_cannot_be(arguments, match):
    with pytest.raises(ValueError, match=match):
        MLP(**arguments)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: ConcatSquash(0), "sizes must be positive"),
        (lambda: ConcatSquash(2, hidden=()), "at least one hidden layer"),
        (lambda: ConcatSquash(2, activation="relu"), "silu, gelu"),
        (lambda: ConcatSquash(2, classes=2, context=2), "at most one"),
        (lambda: Potential(2, width=0), "sizes must be positive"),
        (lambda: Potential(2, layers=0), "sizes must be positive"),
        (lambda: Potential(2, rank=0), "sizes must be positive"),
        (lambda: Potential(2, classes=-1), "at most one"),
    ],
)
def test_concat_squash_and_potential_refuse_what_cannot_be(build, match):
    with pytest.raises(ValueError, match=match):
        build()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"size": 10, "multipliers": (1, 2, 2)}, "divisible by 4"),
        ({"size": 12}, "pass multipliers"),
        ({"size": 8, "width": 30}, "divisible by 4"),
        ({"size": 8, "width": 32, "heads": 3}, "heads"),
        ({"size": 8, "attention": (16,)}, "8, 4"),
        ({"size": 8, "multipliers": ()}, "at least one"),
        ({"size": 8, "classes": -1}, "at most one"),
    ],
)
def test_unet_refuses_what_cannot_be(arguments, match):
    with pytest.raises(ValueError, match=match):
        UNet(1, **arguments)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_unet_fits_every_size(size):
    field = UNet(3, size, width=8, heads=2, blocks=1)
    assert field(0.5, torch.randn(1, 3, size, size)).shape == (1, 3, size, size)
    assert field.attention == {8: (8,), 16: (16, 8), 32: (16, 8), 64: (16, 8)}[size]


def test_unet_reaches_the_size_of_the_published_networks():
    with torch.device("meta"):
        field = UNet(3, 32, width=116, attention=(16,))
    assert sum(p.numel() for p in field.parameters()) == pytest.approx(35.2e6, rel=1e-3)


def foreign(network, t, x, context):
    label = torch.zeros_like(t) if context is None else context.to(x.dtype)
    return network(torch.cat([x, t[:, None], label[:, None]], -1))


def test_an_adapted_network_is_called_as_it_wants(generator):
    network = nn.Linear(4, 2)
    field = Adapted(network, foreign, event_shape=[2], context_shape=(), null=-1)
    x, labels = torch.randn(3, 2, generator=generator), torch.tensor([0, 1, 2])
    expected = network(torch.cat([x, torch.full((3, 1), 0.5), labels[:, None]], -1))
    torch.testing.assert_close(field(torch.tensor(0.5), x, labels), expected)
    assert field.null_context(labels).tolist() == [-1, -1, -1]
    assert list(field.parameters()) == list(network.parameters())
    kept = {"network", "call", "event_shape", "context_shape", "null", "outputs", "reads_time"}
    assert set(configuration(field)) == kept


@pytest.mark.parametrize(
    "build",
    [lambda k: MLP(2, hidden=(8,), outputs=k), lambda k: UNet(2, 4, width=8, multipliers=(1,), heads=2, outputs=k)],
    ids=["mlp", "unet"],
)
def test_more_heads_are_more_tensors_like_the_event(build, generator):
    one, two = build(1), build(2)
    x = torch.randn(3, *one.event_shape, generator=generator)
    assert one(torch.tensor(0.5), x).shape == x.shape
    assert two(torch.tensor(0.5), x).shape == (3, 2, *one.event_shape)
    # The last layer's second half is the second head.
    last = two.output
    with torch.no_grad():
        last.bias.copy_(torch.cat([torch.zeros(2), torch.ones(2)]))
    heads = two(torch.tensor(0.5), x)
    assert not heads[:, 0].any()
    assert (heads[:, 1] == 1).all()
    with pytest.raises(ValueError, match="outputs=0"):
        build(0)


def test_an_adapted_network_says_how_many_heads_it_has():
    call = lambda net, t, x, c: net(x).reshape(-1, 2, 2)
    two = Adapted(nn.Linear(2, 4), call, event_shape=2, outputs=2)
    assert two(torch.tensor(0.5), torch.zeros(3, 2)).shape == (3, 2, 2)
    with pytest.raises(ValueError, match=r"outputs=1\): the network returned shape \[3, 2, 2\]"):
        Adapted(nn.Linear(2, 4), call, event_shape=2)(torch.tensor(0.5), torch.zeros(3, 2))


def test_an_adapted_network_repeats_a_null_tensor():
    null = torch.tensor([1.0, 2.0])
    field = Adapted(nn.Identity(), foreign, event_shape=(2,), context_shape=(2,), null=null)
    assert field.null_context(torch.zeros(3, 2)).tolist() == [[1.0, 2.0]] * 3
    assert "null" in field.state_dict()


def test_adapted_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="without context_shape"):
        Adapted(nn.Identity(), foreign, event_shape=(2,), null=0)
    with pytest.raises(ValueError, match="null of shape"):
        Adapted(nn.Identity(), foreign, event_shape=(2,), context_shape=(2,), null=torch.zeros(3))
    field = Adapted(nn.Linear(4, 3), foreign, event_shape=(2,), context_shape=())
    with pytest.raises(ValueError, match=r"shape \[3, 3\]"):
        field(0.5, torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="null="):
        field.null_context(torch.zeros(3))
    with pytest.raises(ValueError, match="unconditional"):
        Adapted(nn.Linear(4, 2), foreign, event_shape=(2,)).null_context(torch.zeros(3))


def test_a_field_without_a_forward_is_refused():
    with pytest.raises(NotImplementedError, match="Field has no forward"):
        Field(2)(torch.tensor(0.5), torch.zeros(3, 2))
