import pytest
import torch
from divergence_members import BY_PRODUCTS
from torch import nn
from torch.nn import functional as F

from cflow.divergence import Exact, Hutchinson, HutchPlusPlus, XTrace
from cflow.registry import configuration, lookup
from cflow.solvers import RK4, Dopri5


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, t, x):
        return self.last(F.silu(self.norm(self.first(x)))) * torch.cos(t)[:, None, None, None]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.project, self.out = nn.LayerNorm(3), nn.Linear(3, 24), nn.Linear(8, 3)

    def forward(self, t, x):
        q, k, v = self.project(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2)) + t[:, None, None]


class Perceptron(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size + 1, 8), nn.Tanh(), nn.Linear(8, size))

    def forward(self, t, x):
        return self.layers(torch.cat((x, t[:, None]), 1))


def fields():
    torch.manual_seed(0)
    return [(Convolutions(), (2, 3, 4)), (Attention(), (4, 3)), (Perceptron(3), (3,)), (Perceptron(1), (1,))]


def jacobians(f, t, x):
    """Computes every sample's Jacobian as a matrix, one sample and one output at a time."""
    size = x[0].numel()
    return torch.stack(
        [
            torch.autograd.functional.jacobian(lambda z, i=i: f(t[i : i + 1], z), x[i : i + 1]).reshape(size, size)
            for i in range(len(x))
        ]
    )


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("chunk", [None, 1, 2, 5, 1000])
def test_exact_is_the_trace_of_the_jacobian(float64, generator, index, chunk):
    f, event = fields()[index]
    x, t = torch.randn(3, *event, generator=generator), torch.rand(3, generator=generator)
    matrices = jacobians(f, t, x)
    v, div, frobenius = Exact(chunk)(f, t, x, None)
    torch.testing.assert_close(v, f(t, x).detach())
    torch.testing.assert_close(div, matrices.diagonal(dim1=1, dim2=2).sum(1))
    torch.testing.assert_close(frobenius, matrices.square().sum((1, 2)))


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("divergence", [Hutchinson(probes=3), Hutchinson("gaussian", 2)], ids=str)
def test_hutchinson_is_the_quadratic_form_of_the_jacobian(float64, generator, index, divergence):
    f, event = fields()[index]
    x, t = torch.randn(3, *event, generator=generator), torch.rand(3, generator=generator)
    probe = divergence.begin(x, generator)
    assert probe.shape == (3, divergence.probes, *event)
    matrices, e = jacobians(f, t, x), probe.flatten(2)
    v, div, frobenius = divergence(f, t, x, probe)
    forms = torch.einsum("bki,bij,bkj->bk", e, matrices, e)
    torch.testing.assert_close(v, f(t, x).detach())
    torch.testing.assert_close(div, forms.mean(1))
    torch.testing.assert_close(frobenius, torch.einsum("bki,bij->bkj", e, matrices).square().sum(2).mean(1))
    torch.testing.assert_close(divergence.estimates(f, t, x, probe)[1], forms)


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
@pytest.mark.parametrize("probes", [1, 4])
def test_hutchinson_has_the_mean_and_variance_of_theory(float64, generator, law, probes):
    matrix = torch.randn(3, 3, generator=generator)
    symmetric = (matrix + matrix.T) / 2
    variance = 2 * symmetric.square().sum()
    if law == "rademacher":
        variance = variance - 2 * symmetric.diagonal().square().sum()
    count = 40_000
    divergence, x = Hutchinson(law, probes), torch.zeros(count, 3)
    f = lambda t, x: x @ matrix.T
    _, div, frobenius = divergence(f, torch.zeros(count), x, divergence.begin(x, generator))
    # Four standard errors each: one of the three fails in about 5,000 seeds.
    assert (div.mean() - matrix.trace()).abs() < 4 * (variance / probes / count).sqrt()
    spread = ((div - div.mean()) ** 2).var().sqrt() / count**0.5
    assert (div.var() - variance / probes).abs() < 4 * spread
    assert (frobenius.mean() - matrix.square().sum()).abs() < 4 * frobenius.std() / count**0.5


def test_rademacher_probes_are_signs_and_exact_for_diagonal_jacobians(float64, generator):
    divergence, x = Hutchinson(), torch.randn(5, 4, generator=generator)
    probe = divergence.begin(x, generator)
    assert set(probe.unique().tolist()) == {-1.0, 1.0}
    _, div, _ = divergence(lambda t, x: x**3, torch.zeros(5), x, probe)
    torch.testing.assert_close(div, (3 * x**2).sum(1))


def test_the_generator_decides_the_probe():
    x = torch.zeros(4, 3)
    for divergence in (Hutchinson(probes=2), Hutchinson("gaussian", 2)):
        first, second, other = (divergence.begin(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("divergence", BY_PRODUCTS, ids=str)
def test_gradients_reach_x_arguments_and_parameters(float64, generator, divergence):
    x, c = (torch.randn(2, 3, generator=generator).requires_grad_() for _ in range(2))
    matrix = torch.randn(3, 3, generator=generator).requires_grad_()
    probe, t = divergence.begin(x, generator), torch.rand(2, generator=generator)

    def compute(x, c, matrix):
        return divergence(lambda t, x, c: torch.sin(x @ matrix + c) * t[:, None] + x * c, t, x, probe, c)

    assert torch.autograd.gradcheck(compute, (x, c, matrix))


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("divergence", [Exact(), Exact(chunk=1), Exact(chunk=5), Hutchinson(probes=2)], ids=str)
def test_gradients_of_networks_are_right(float64, generator, index, divergence):
    f, event = fields()[index]
    x, t = torch.randn(2, *event, generator=generator), torch.rand(2, generator=generator)
    probe = divergence.begin(x, generator)
    parameter = next(iter(f.parameters()))
    _, div, frobenius = divergence(f, t, x, probe)
    (slope,) = torch.autograd.grad(div.sum() + frobenius.sum(), parameter)
    direction = torch.randn(parameter.shape, generator=generator)
    values = []
    for step in (-1e-5, 1e-5):
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            _, div, frobenius = divergence(f, t, x, probe)
            parameter.sub_(direction, alpha=step)
        values.append(div.sum() + frobenius.sum())
    torch.testing.assert_close((slope * direction).sum(), (values[1] - values[0]) / 2e-5, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("divergence", BY_PRODUCTS, ids=str)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_values_are_the_same_and_nothing_is_left_behind(generator, divergence, mode):
    f = Perceptron(3)
    x, t = torch.randn(4, 3, generator=generator), torch.rand(4, generator=generator)
    probe = divergence.begin(x, generator)
    expected = divergence(f, t, x, probe)
    assert all(value.requires_grad for value in expected)
    with mode():
        assert not torch.is_grad_enabled()
        found = divergence(f, t * 1, x * 1, probe * 1 if probe is not None else None)
        assert not torch.is_grad_enabled()
    for one, other in zip(expected, found):
        assert not other.requires_grad
        torch.testing.assert_close(one.detach(), other)
    assert all(parameter.grad is None for parameter in f.parameters())


def test_arguments_made_in_inference_mode_enter_the_graph(generator):
    with torch.inference_mode():
        c, x = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
        _, div, _ = Exact()(lambda t, x, c: torch.sin(x * c["c"]), torch.zeros(4), x, None, {"c": c, "none": None})
        torch.testing.assert_close(div, (torch.cos(x * c) * c).sum(1))


@pytest.mark.parametrize("divergence", BY_PRODUCTS, ids=str)
def test_x_among_the_arguments_is_a_constant(float64, generator, divergence):
    x = torch.randn(4, 3, generator=generator).requires_grad_()
    probe = divergence.begin(x, generator)
    _, div, _ = divergence(lambda t, x, start: 2 * x + start**2, torch.zeros(4), x, probe, x)
    if divergence != Hutchinson("gaussian", 2):
        torch.testing.assert_close(div.detach(), torch.full((4,), 6.0))


@pytest.mark.parametrize("divergence", BY_PRODUCTS, ids=str)
@pytest.mark.parametrize("outside", [True, False])
def test_a_field_that_ignores_x_has_no_divergence(divergence, outside):
    shift = torch.ones(3, requires_grad=True)
    x = torch.ones(4, 3)
    for f in (lambda t, x: torch.ones_like(x), lambda t, x: shift.expand(len(x), 3)):
        with torch.set_grad_enabled(outside):
            v, div, frobenius = divergence(f, torch.zeros(4), x, divergence.begin(x))
        assert torch.equal(v.detach(), torch.ones(4, 3))
        assert torch.equal(div.detach(), torch.zeros(4))
        assert torch.equal(frobenius.detach(), torch.zeros(4))


@pytest.mark.parametrize("divergence", BY_PRODUCTS, ids=str)
@pytest.mark.parametrize("shape", [(0, 3), (0, 2, 4, 4), (2, 0), (3, 1), (5,)])
def test_odd_shapes(divergence, shape):
    x = torch.ones(shape)
    v, div, frobenius = divergence(lambda t, x: 2 * x, torch.zeros(shape[0]), x, divergence.begin(x))
    assert v.shape == shape
    assert div.shape == frobenius.shape == shape[:1]
    if shape[1:].count(0) or divergence != Hutchinson("gaussian", 2):
        size = torch.Size(shape[1:]).numel()
        assert torch.equal(div, torch.full(shape[:1], 2.0 * size))


@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(), HutchPlusPlus(3), XTrace(4)], ids=str)
def test_half_precision_networks_give_single_precision_traces(divergence):
    x = torch.ones(2, 3)
    weight = torch.eye(3, dtype=torch.bfloat16)
    f = lambda t, x: x.to(torch.bfloat16) @ weight
    _, div, frobenius = divergence(f, torch.zeros(2), x, divergence.begin(x))
    assert div.dtype == frobenius.dtype == torch.float32
    assert div.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("solver", [RK4(20), Dopri5(1e-7, 1e-8)], ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(), HutchPlusPlus(3), XTrace(4)], ids=str)
def test_the_probe_travels_with_its_sample_through_a_solve(float64, generator, solver, divergence):
    # x' = A(t) x with A diagonal per sample: the log-determinant is the integral of the trace.
    rates = torch.randn(6, 3, generator=generator) * 3
    x = torch.randn(6, 3, generator=generator)
    probe = divergence.begin(x, generator)

    def augmented(t, x, probe, rates):
        field = lambda t, x, rates: rates * torch.cos(t)[:, None] * x
        v, div, _ = divergence(field, t, x, probe, rates)
        return v, {"ladj": div}

    solution = solver.solve(augmented, x, 0.0, 1.0, args=(probe, rates), quadratures={"ladj": None})
    angle = torch.sin(torch.tensor(1.0))
    torch.testing.assert_close(solution.y, x * torch.exp(rates * angle), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(solution.quadratures["ladj"], rates.sum(1) * angle, rtol=1e-5, atol=1e-6)


def test_options_are_kept_and_registered():
    assert Exact.exact is True
    assert Hutchinson.exact is False
    assert configuration(Exact(chunk=3)) == {"chunk": 3}
    assert configuration(Hutchinson("gaussian", 2)) == {"law": "gaussian", "probes": 2}
    assert lookup("divergence.Exact") is Exact
    assert lookup("divergence.Hutchinson") is Hutchinson


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Exact(chunk=0)
    with pytest.raises(ValueError, match="needs a probe"):
        Hutchinson(probes=0)
    with pytest.raises(ValueError, match=r"law=3.*pass 'rademacher' or 'gaussian', and the number of probes"):
        Hutchinson(3)
    with pytest.raises(ValueError, match="law='uniform'"):
        Hutchinson("uniform")
    x, t = torch.ones(2, 3), torch.zeros(2)
    for divergence in (Exact(), Hutchinson()):
        with pytest.raises(ValueError, match="equal shapes"):
            divergence(lambda t, x: x[:, :1], t, x, divergence.begin(x))
    with pytest.raises(ValueError, match="draw it with begin"):
        Hutchinson()(lambda t, x: x, t, x, None)
    with pytest.raises(ValueError, match="draw it with begin"):
        Hutchinson(probes=2)(lambda t, x: x, t, x, Hutchinson(probes=3).begin(x))
    with pytest.raises(ValueError, match="cannot be repeated"):
        Exact(chunk=3)(lambda t, x, c: x * c, t, x, None, torch.ones(1, 3))
