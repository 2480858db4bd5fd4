"""What networks on tokens promise beyond the suite; what every field does is in test_field_conformance.py."""

import copy
import itertools

import pytest
import torch
from field_members import DENOISERS, token_conv, token_dit

from cflow.fields import MLP, Adapted, EndTime, FieldWrapper, TokenConv, TokenDiT, as_field
from cflow.fields.transformer import attend, rotate
from cflow.guidance import ClassifierFree
from cflow.registry import build, configuration
from cflow.testing import check_denoiser

NETWORKS = [name for name in DENOISERS if name.startswith("token")]


@pytest.fixture
def make(generator, float64):
    """Builds a denoiser by name, every parameter moved so that no layer is zero, and inputs for it."""

    def built(name, batch=3):
        field = DENOISERS[name]() if isinstance(name, str) else name
        with torch.no_grad():
            for parameter in field.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        x = torch.randint(5, (batch, *field.event_shape), generator=generator)
        t = torch.rand(batch, generator=generator)
        context = None
        if field.context_shape is not None:
            context = torch.randn(batch, *field.context_shape, generator=generator)
            context = torch.arange(batch) % 4 if field.classes else context
        return field, t, x, context

    return built


@pytest.mark.parametrize("name", NETWORKS)
def test_an_untrained_denoiser_is_uniform(name):
    field = DENOISERS[name]()
    context = None
    if field.context_shape is not None:
        context = torch.zeros(2, *field.context_shape, dtype=torch.long if field.classes else None)
    logits = field(0.3, torch.full((2, 5), 4), context)
    assert logits.shape == (2, 5, 4)
    assert (logits == 0).all()


def test_published_size():
    with torch.device("meta"):
        field = TokenDiT(1024, 50258, 50257, width=768, depth=12, heads=12, reads_time=False)
    blocks = {name: each.numel() for name, each in field.blocks.named_parameters() if "modulation" not in name}
    assert sum(blocks.values()) == pytest.approx(85.05e6, rel=1e-3)  # GPT-2 without its tables


@pytest.mark.parametrize("causal", [False, True])
def test_attention_depends_on_differences_of_positions(causal, make, generator):
    field, *_ = make(TokenDiT(12, 5, 4, width=16, depth=1, heads=2, causal=causal))
    cos, sin = field.turns()
    assert cos.shape == (12, 4)
    q, k = torch.randn(2, 8, generator=generator)
    products = rotate(q.expand(12, 8), (cos, sin)) @ rotate(k.expand(12, 8), (cos, sin)).T
    for shift in range(-11, 12):
        diagonal = products.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    first = products[0]
    assert (first[:, None] - first).abs().fill_diagonal_(1.0).min() > 1e-6  # all distances are told apart
    # Equal tokens have equal results wherever they stand: nothing but differences of positions enters.
    logits = field(0.5, torch.full((1, 12), 2))
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits))


def test_no_weight_depends_on_the_length(make):
    long, t, x, _ = make(TokenDiT(9, 5, 4, width=8, depth=2, heads=2, causal=True))
    short = build(TokenDiT, {**configuration(long), "length": 6})
    short.load_state_dict(long.state_dict())
    torch.testing.assert_close(short(t, x[:, :6]), long(t, x)[:, :6])


def test_positions_matter(make):
    for network in (token_dit(), token_conv()):
        field, t, x, _ = make(network)
        x[:] = torch.arange(5)
        assert (field(t, x.flip(1)) - field(t, x).flip(1)).norm() > 1e-2 * field(t, x).norm()


@pytest.mark.parametrize("name", [name for name in NETWORKS if "causal" in name])
def test_a_causal_network_sees_no_later_token(name, make):
    field, t, x, context = make(name)
    logits = field(t, x, context)
    for j, step in itertools.product(range(5), (1, 2)):
        changed = x.clone()
        changed[:, j] = (x[:, j] + step) % 5
        moved = field(t, changed, context)
        assert (moved[:, :j] - logits[:, :j]).abs().sum() < 1e-12
        assert ((moved[:, j:] - logits[:, j:]).abs().amax(-1) > 1e-9).all()  # itself and all later ones do
    both = copy.deepcopy(field)
    both.causal = False
    assert (both(t, x, context) - logits)[:, 0].norm() > 1e-3


def test_both_kinds_of_causal_attention_agree(generator, float64):
    q, k, v = torch.randn(3, 2, 3, 5, 8, generator=generator)
    torch.testing.assert_close(attend(q, k, v, True, True), attend(q, k, v, False, True))
    assert (attend(q, k, v, True, True) - attend(q, k, v, True, False)).norm() > 1e-2


@pytest.mark.parametrize("name", [name for name in NETWORKS if DENOISERS[name]().reads_time])
def test_the_derivative_in_time_is_that_of_differences(name, make):
    field, t, x, context = make(name)
    _, tangent = torch.func.jvp(lambda t: field(t, x, context), (t,), (torch.ones_like(t),))
    step = 1e-6
    differences = (field(t + step, x, context) - field(t - step, x, context)) / (2 * step)
    assert (tangent - differences).norm() < 1e-6 * tangent.norm()
    assert tangent.norm() > 1e-3


def test_a_convolution_sees_its_taps(make):
    field, t, x, _ = make(TokenConv(30, 5, 4, width=8, depth=2, kernel=3, dilations=(2, 5)))
    logits = field(t, x)
    changed = x.clone()
    changed[:, 15] = (x[:, 15] + 1) % 5
    seen = ((field(t, changed) - logits).abs().amax((0, 2)) > 1e-9).nonzero().flatten().tolist()
    assert seen == sorted(15 + a + b for a in (-2, 0, 2) for b in (-5, 0, 5))


def test_dilations_fit_the_length():
    assert TokenConv(3, 5, 4).dilations == (1,)
    assert TokenConv(40, 5, 4).dilations == (1, 4, 16)
    assert TokenConv(65, 5, 4).dilations == (1, 4, 16, 64)


# Dtypes


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_have_at_least_single_precision(name, make):
    field, t, x, context = make(name)
    exact = field(t, x, context)
    assert exact.dtype == torch.float64
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        field.to(dtype)
        rough = field(t, x, context)
        assert rough.dtype == torch.float32
        assert (rough - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_denoisers_run_under_autocast(name, make):
    field, t, x, context = make(name)
    field, t = field.float(), t.float()
    previous = {"previous": torch.zeros(3, 5, 4)} if field.self_conditioned else {}
    with torch.autocast("cpu", torch.bfloat16):
        rough = field(t, x, context, **previous)
    exact = field(t, x, context, **previous)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() < 0.1 * exact.norm()


def test_positions_survive_low_precision(make):
    field, t, x, _ = make(TokenDiT(64, 5, 4, width=16, depth=1, heads=2))
    field.bfloat16()
    again = TokenDiT(64, 5, 4, width=16, depth=1, heads=2)
    again.load_state_dict(field.state_dict())
    assert torch.equal(field.double()(t, x), again(t, x))  # cast and back, or saved and loaded


def test_a_time_may_be_a_number_of_any_kind(make):
    field, _, x, _ = make("token dit")
    expected = field(torch.full((3,), 0.3), x.to(torch.uint8))
    torch.testing.assert_close(field(0.3, x.to(torch.uint8)), expected)
    torch.testing.assert_close(field(1, x), field(torch.ones(3), x))
    assert (field(1, x) - field(0, x)).abs().max() > 1e-3
    field.bfloat16()  # times stay precise
    assert (field(0.5, x) - field(0.5005, x)).abs().max() > 0


@pytest.mark.parametrize("name", [NETWORKS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in NETWORKS[1:])])
def test_denoisers_compile_without_a_graph_break(name, make):
    field, t, x, context = make(name)
    torch.compiler.reset()  # all networks have one forward, and torch compiles one function eight times at most
    compiled = torch.compile(field, fullgraph=True, backend="aot_eager")
    for time in (t, t[0]):
        torch.testing.assert_close(compiled(time, x, context), field(time, x, context))


# Self-conditioning


@pytest.mark.parametrize("build", [token_dit, token_conv])
def test_earlier_logits_change_nothing_before_training(build, generator, float64):
    field = build(self_conditioning=True)
    torch.nn.init.normal_(field.output.weight, generator=generator)
    x, previous = torch.randint(5, (3, 5), generator=generator), torch.randn(3, 5, 4, generator=generator)
    logits = field(0.3, x, previous=previous)
    assert torch.equal(logits, field(0.3, x))
    logits.square().sum().backward()
    assert field.guess.weight.grad.any()


@pytest.mark.parametrize("build", [token_dit, token_conv])
def test_earlier_logits_are_read_as_probabilities(build, make, generator):
    field, t, x, _ = make(build(self_conditioning=True))
    previous = torch.randn(3, 5, 4, generator=generator)
    logits = field(t, x, previous=previous)
    torch.testing.assert_close(field(t, x, previous=previous + 7.0), logits)
    # Certain of one value: what its column of the layer adds to the table.
    certain = torch.full((3, 5, 4), -torch.inf)
    certain[..., 2] = 0.0
    expected = copy.deepcopy(field)
    with torch.no_grad():
        expected.table.weight += field.guess.weight[:, 2]
    torch.testing.assert_close(field(t, x, previous=certain), expected(t, x))
    # Without earlier logits every parameter is in the graph.
    field(t, x).sum().backward()
    assert field.guess.weight.grad is not None
    assert not field.guess.weight.grad.any()


def test_wrappers_tell_whether_they_pass_earlier_logits_on(make, generator):
    class Same(FieldWrapper):
        pass

    class Halved(FieldWrapper):
        def forward(self, t, x, context=None, *, s=None):
            return super().forward(t, x, context, s=s) / 2

    class Doubled(FieldWrapper):
        def forward(self, t, x, context=None, *, s=None, previous=None):
            return super().forward(t, x, context, s=s, previous=previous) * 2

    field, t, x, labels = make(token_dit(self_conditioning=True, reads_time=False, classes=4))
    previous = torch.randn(3, 5, 4, generator=generator)
    logits = field(t, x, labels, previous=previous)
    assert [each(field).self_conditioned for each in (Same, Halved, Doubled)] == [True, False, True]
    assert not any(each(field).reads_time for each in (Same, Halved, Doubled))
    assert torch.equal(Same(field)(t, x, labels, previous=previous), logits)
    assert torch.equal(Doubled(field)(t, x, labels, previous=previous), logits * 2)
    assert not ClassifierFree(2.0)(field).self_conditioned
    assert not Same(MLP(2)).self_conditioned
    assert not EndTime(MLP(2)).self_conditioned


def test_what_a_foreign_denoiser_declares_is_read():
    class Foreign(torch.nn.Module):
        reads_time, self_conditioned = False, True

    view = as_field(Foreign())
    assert (view.reads_time, view.self_conditioned) == (False, True)


# What is refused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_tokens_are_integers(dtype, make):
    field, t, x, _ = make("token dit")
    with pytest.raises(TypeError, match=r"integers from 0 to 4; pass x.long\(\)"):
        field(t, x.to(dtype))


def test_wrong_earlier_logits_are_refused(make):
    field, t, x, _ = make("token dit")
    with pytest.raises(TypeError, match="self_conditioning=True"):
        field(t, x, previous=torch.zeros(3, 5, 4))
    field, t, x, _ = make("token dit of earlier logits")
    with pytest.raises(ValueError, match=r"of shape \[3, 5, 4\]"):
        field(t, x, previous=torch.zeros(3, 5, 5))
    with pytest.raises(ValueError, match=r"x of shape \[3, 4\]"):
        field(t, x[:, 1:])


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: TokenDiT(5, 5, 4, width=12, heads=3, depth=0), "all must be positive"),
        (lambda: TokenDiT(5, 5, 4, width=12, heads=4), "divisible by 2 \\* heads"),
        (lambda: TokenDiT(0, 5, 4), "TokenDiT\\(length=0\\)"),
        (lambda: TokenDiT(5, 5.0, 4), "TokenDiT\\(states=5.0\\)"),
        (lambda: TokenConv(5, 5, 0), "TokenConv\\(vocabulary=0\\)"),
        (lambda: TokenConv(5, 5, 4, classes=2, context=2), "at most one"),
        (lambda: TokenConv(5, 5, 4, kernel=4), "odd kernel"),
        (lambda: TokenConv(5, 5, 4, dilations=()), "positive integers"),
        (lambda: TokenConv(5, 5, 4, dilations=(1, 0)), "positive integers"),
    ],
)
def test_networks_refuse_what_cannot_be(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_an_adapted_network_returns_a_logit_for_each_value():
    wrong = Adapted(torch.nn.Embedding(5, 4), lambda net, t, x, c: net(x).argmax(-1), event_shape=5)
    with pytest.raises(ValueError, match=r"tokens of shape \[3, 5\]; return one logit"):
        wrong(0.5, torch.zeros(3, 5, dtype=torch.long))


# The suite finds what is wrong


class Wrong(TokenDiT):
    """A denoiser with a fault."""

    def __init__(self, fault, **options):
        super().__init__(5, 5, 4, width=8, depth=1, heads=2, **options)
        self.fault = fault

    def forward(self, t, x, context=None, *, s=None, previous=None):
        logits = super().forward(t, x, context, s=s, previous=None if self.fault == "deaf" else previous)
        if self.fault == "rows":
            return logits + logits.mean(0)
        if self.fault == "half":
            return logits if self.output.weight.dtype == torch.float64 else logits.bfloat16()
        if self.fault == "bytes":
            return logits + (x.dtype == torch.uint8)
        return logits[..., :-1] if self.fault == "short" else logits


@pytest.mark.parametrize(
    ("fault", "options", "match"),
    [
        ("rows", {}, "does not depend on the others"),
        ("half", {}, "in float32 the result is float32"),
        ("bytes", {}, "torch.uint8 and int64 return the same"),
        ("short", {}, "the result has shape"),
        ("deaf", {"self_conditioning": True}, "no gradient reaches|depends on the logits"),
    ],
)
def test_the_suite_finds_a_fault(fault, options, match):
    with pytest.raises(AssertionError, match=match):
        check_denoiser(Wrong(fault, **options), 5, 4, saved=False)


def test_the_suite_finds_wrong_claims():
    field = token_dit()
    field.reads_time = False
    with pytest.raises(AssertionError, match="does not depend on the time"):
        check_denoiser(field, 5, 4, saved=False)
    field = token_dit(reads_time=False)
    field.reads_time = True
    with pytest.raises(AssertionError, match="depends on the time"):
        check_denoiser(field, 5, 4, saved=False)
