"""Values and divergences in closed form, against the whole Jacobian by autograd."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cflow.fields import MLP, ConcatSquash, Potential, traces
from cflow.fields.activations import ACTIVATIONS, value_and_slope

HIDDEN = [(5,), (5, 6), (5, 6, 4), (9, 8, 7, 10), (3, 2, 9)]
CONDITIONS = [{}, {"context": 3}, {"classes": 4}]
MEMBERS = {
    **{f"mlp {h} {c}": lambda d, h=h, c=c: MLP(d, h, **c) for h, c in itertools.product(HIDDEN, CONDITIONS)},
    **{f"mlp {a}": lambda d, a=a: MLP(d, (5, 6), activation=a) for a in ACTIVATIONS},
    **{
        f"squash {h} {c}": lambda d, h=h, c=c: ConcatSquash(d, h, **c) for h, c in itertools.product(HIDDEN, CONDITIONS)
    },
    **{f"squash {a}": lambda d, a=a: ConcatSquash(d, (5, 6), activation=a) for a in ACTIVATIONS},
    "squash skip": lambda d: ConcatSquash(d, (5, 6), skip=True),
    "squash autonomous": lambda d: ConcatSquash(d, (5, 6), autonomous=True, skip=True),
    "squash autonomous context": lambda d: ConcatSquash(d, (5, 6), autonomous=True, context=2),
    **{
        f"potential {layers} {c}": lambda d, layers=layers, c=c: Potential(d, 6, layers, **c)
        for layers, c in itertools.product((1, 2, 3, 4), CONDITIONS)
    },
    "potential autonomous": lambda d: Potential(d, 6, autonomous=True),
    "potential autonomous context": lambda d: Potential(d, 6, autonomous=True, context=2),
    "potential rank 1": lambda d: Potential(d, 6, rank=1),
}
FEW = ["mlp (5, 6) {'context': 3}", "squash (5, 6, 4) {'classes': 4}", "squash skip", "potential 3 {'context': 3}"]


def filled(name, size, generator, batch=4):
    """Builds a field with every parameter random, and inputs for it."""
    field = MEMBERS[name](size)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    x, t = torch.randn(batch, size, generator=generator), torch.rand(batch, generator=generator)
    context = None
    if field.context_shape is not None:
        context = torch.randn(batch, *field.context_shape, generator=generator)
        context = torch.arange(batch) % 4 if field.classes else context
    return field, t, x, context


def jacobian_trace(field, t, x, context):
    """Sums the diagonal of the Jacobian, one derivative of one output at a time."""
    x = x.detach().requires_grad_()
    v = field(t, x, context)
    return sum(torch.autograd.grad(v[:, d].sum(), x, retain_graph=True)[0][:, d] for d in range(x.shape[1]))


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_trace_is_that_of_the_jacobian(name, size, float64, generator):
    field, t, x, context = filled(name, size, generator)
    for time in (t, t[0], t[:1].expand(4)):
        v, divergence = field.value_and_divergence(time, x, context)
        assert torch.equal(v, field(time, x, context))
        torch.testing.assert_close(divergence, jacobian_trace(field, time, x, context), rtol=1e-10, atol=1e-10)
    if context is not None:
        null = torch.cat([context[:2], field.null_context(context[2:])])
        divergence = field.value_and_divergence(t, x, null)[1]
        torch.testing.assert_close(divergence, jacobian_trace(field, t, x, null), rtol=1e-10, atol=1e-10)


class Closed(nn.Module):
    """Calls the method where a module is called."""

    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, t, x, context):
        return self.field.value_and_divergence(t, x, context)


@pytest.mark.parametrize("name", FEW)
def test_first_and_second_derivatives_are_right(name, float64, generator):
    field, t, x, context = filled(name, 2, generator, batch=2)
    closed = Closed(field)
    parameters = {key: each for key, each in closed.named_parameters() if "null" not in key and "table" not in key}
    inputs = [t, x] + [context] * (context is not None and not field.classes)

    def compute(*values):
        given = dict(zip(parameters, values[len(inputs) :]))
        c = values[2] if len(inputs) == 3 else context
        return torch.func.functional_call(closed, given, (*values[:2], c))

    leaves = [each.detach().clone().requires_grad_() for each in (*inputs, *parameters.values())]
    assert torch.autograd.gradcheck(compute, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(compute, leaves, fast_mode=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes_are_derivatives(activation, float64):
    a = torch.linspace(-50, 50, 401).requires_grad_()
    expected = ACTIVATIONS[activation]()(a)
    h, slope = value_and_slope(activation, a)
    assert torch.equal(h, expected)
    torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), a)[0], rtol=1e-12, atol=1e-12)
    h, slope = value_and_slope(activation, a.bfloat16())
    assert (h.dtype, slope.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("hidden", [(4,), (4, 5), (4, 5, 6), (6, 2, 5, 3), (2, 6, 5, 7), (5, 7, 6, 2, 4)])
@pytest.mark.parametrize("size", [1, 3, 9])
@pytest.mark.parametrize("together", [2**24, 40, 1])
def test_tangents_start_anywhere_and_go_in_pieces(hidden, size, together, float64, generator, monkeypatch):
    monkeypatch.setattr(traces, "TOGETHER", together)
    weights = [torch.randn(b, a, generator=generator) for a, b in itertools.pairwise((size, *hidden, size))]
    slopes = [torch.randn(3, width, generator=generator) for width in hidden]
    product = weights[0].expand(3, -1, -1)
    for slope, weight in zip(slopes, weights[1:]):
        product = weight @ (slope.unsqueeze(2) * product)
    expected = product.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(traces.layers_trace(weights, slopes), expected, rtol=1e-10, atol=1e-10)


def test_two_hidden_layers_cost_one_product_and_more_start_where_it_is_narrow():
    def multiplications(hidden, size, batch):
        weights = [torch.ones(b, a) for a, b in itertools.pairwise((size, *hidden, size))]
        with FlopCounterMode(display=False) as counter:
            traces.layers_trace(weights, [torch.ones(batch, width) for width in hidden])
        return counter.get_total_flops() // 2

    assert multiplications((64, 32), 40, 100) == 64 * 32 * 40 + 100 * 64 * 32
    assert multiplications((64, 64, 64), 5, 100) == 5 * 100 * 2 * 64 * 64
    assert multiplications((64, 8, 64), 40, 100) == 64 * 64 * 40 + 8 * 100 * 64 * 64


@pytest.mark.parametrize("name", FEW)
def test_half_precision_parameters_give_single_precision_traces(name, generator):
    field, t, x, context = filled(name, 3, generator)
    exact = field.value_and_divergence(t, x, context)[1]
    v, divergence = field.bfloat16().value_and_divergence(t, x, context)
    assert v.dtype == divergence.dtype == torch.float32
    assert 0 < (divergence - exact).norm() < 0.1 * exact.norm()
    # A trace computed in bf16 would have no digit beyond it.
    assert (divergence != divergence.bfloat16().float()).any()


@pytest.mark.parametrize("name", FEW)
def test_autocast_leaves_the_trace_in_single_precision(name, generator):
    field, t, x, context = filled(name, 3, generator)
    exact = field.value_and_divergence(t, x, context)[1]
    with torch.autocast("cpu", torch.bfloat16):
        v, divergence = field.value_and_divergence(t, x, context)
        assert torch.equal(v, field(t, x, context))
    assert v.dtype == divergence.dtype == torch.float32
    assert 0 < (divergence - exact).norm() < 0.1 * exact.norm()
    assert (divergence != divergence.bfloat16().float()).any()


@pytest.mark.parametrize("name", FEW)
def test_the_method_compiles_without_a_graph_break(name, generator):
    field, t, x, context = filled(name, 3, generator)
    compiled = torch.compile(Closed(field), fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(t, x, context), field.value_and_divergence(t, x, context)):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", FEW)
def test_the_method_refuses_what_the_field_refuses(name, generator):
    field, t, x, context = filled(name, 3, generator)
    with pytest.raises(ValueError, match="pass x of shape"):
        field.value_and_divergence(t, x[:, :2], context)
    with pytest.raises(ValueError, match=r"t of shape \[2\]"):
        field.value_and_divergence(t[:2], x, context)


@pytest.mark.parametrize("build", [lambda: MLP(3, (4, 4, 4)), lambda: ConcatSquash(3), lambda: Potential(3)])
def test_an_empty_batch_has_an_empty_trace(build):
    v, divergence = build().value_and_divergence(torch.zeros(0), torch.zeros(0, 3))
    assert (v.shape, divergence.shape) == ((0, 3), (0,))


def test_two_heads_have_no_trace():
    with pytest.raises(ValueError, match=r"MLP\(outputs=2\).*2 outputs.*Exact"):
        MLP(2, outputs=2).value_and_divergence(torch.tensor(0.5), torch.zeros(3, 2))


def test_a_forward_of_its_own_does_not_inherit_the_closed_form():
    class Doubled(MLP):
        def forward(self, t, x, context=None, *, s=None):
            return 2 * super().forward(t, x, context, s=s)

    class Renamed(MLP):
        pass

    class Written(Doubled):
        def value_and_divergence(self, t, x, context=None):
            return tuple(2 * each for each in MLP.value_and_divergence(self, t, x, context))

    with pytest.raises(TypeError, match="Doubled has no divergence in closed form"):
        Doubled(2).value_and_divergence(torch.tensor(0.5), torch.ones(1, 2))
    assert Renamed.value_and_divergence is MLP.value_and_divergence
    assert Written(2).value_and_divergence(0.5, torch.ones(1, 2))[0].shape == (1, 2)


@pytest.mark.parametrize("name", ["squash autonomous", "squash autonomous context", "potential autonomous"])
def test_an_autonomous_field_does_not_see_the_time(name, generator):
    field, t, x, context = filled(name, 2, generator)
    assert torch.equal(field(t, x, context), field(1 - t, x, context))
    assert field(t, 2 * x, context).ne(field(t, x, context)).any()


def test_gates_of_a_shared_time_are_one_row(generator):
    field, t, x, _ = filled("squash (5, 6) {}", 2, generator)
    seen = []
    field.time.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    for time in (t, t[0], t[:1].expand(4)):
        field.value_and_divergence(time, x)
    assert seen == [4, 1, 1]


def test_concat_squash_is_the_formula_of_its_docstring(float64, generator):
    field, t, x, _ = filled("squash (5, 6) {}", 2, generator)
    numbers = field.time(t[:, None])
    gates, shifts = numbers[:, :17].sigmoid(), numbers[:, 17:]
    (w1, b1), (w2, b2) = ((layer.weight, layer.bias) for layer in field.layers)
    h = torch.tanh((x @ w1.T + b1) * gates[:, :5] + shifts[:, :5])
    h = torch.tanh((h @ w2.T + b2) * gates[:, 5:11] + shifts[:, 5:11])
    expected = (h * gates[:, 11:]) @ field.output.weight.T + shifts[:, 11:]
    torch.testing.assert_close(field(t, x), expected)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_a_potential_is_the_formula_of_its_docstring_and_the_field_its_slope(layers, float64, generator):
    field, t, x, _ = filled(f"potential {layers} {{}}", 3, generator)
    x.requires_grad_()
    s = torch.cat([x, t[:, None]], 1)
    u = torch.log(2 * torch.cosh(field.opening(s)))
    for layer in field.residual:
        u = u + torch.log(2 * torch.cosh(layer(u))) / (layers - 1)
    squares = s @ field.squares.weight.T
    expected = u @ field.weight + 0.5 * (squares**2) @ field.curvature + x @ field.slope
    found = field.potential(t, x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(field(t, x), -torch.autograd.grad(found.sum(), x)[0])


def test_a_fresh_potential_has_a_gradient_in_all_that_is_zero(generator):
    field = Potential(2)
    x, t = torch.randn(5, 2, generator=generator), torch.rand(5, generator=generator)
    (field(t, x) - x).square().sum().backward()
    assert all(each.grad.any() for each in (field.weight, field.curvature, field.slope))


def test_the_residual_of_hamilton_jacobi_and_bellman_can_be_trained_on(generator):
    field, t, x, _ = filled("potential 2 {}", 2, generator)
    t.requires_grad_()
    (slope,) = torch.autograd.grad(field.potential(t, x).sum(), t, create_graph=True)
    (slope - 0.5 * field(t, x).square().sum(1)).abs().mean().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in field.parameters())
