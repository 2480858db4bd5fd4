import math

import pytest
import scipy.special
import torch
from scipy.integrate import quad

from cflow.discrete import IntegratedNetwork, SigmoidalNetwork


def awake(generator, last: float = 1.0, **arguments) -> IntegratedNetwork:
    """Draws weights as layers usually do, and the last, which starts at zero, of a deviation."""
    family = IntegratedNetwork(**arguments).double()
    with torch.no_grad():
        for layer in family.layers:
            scale = layer.in_features**-0.5
            for each in layer.parameters():
                each.copy_(scale * (2 * torch.rand(each.shape, generator=generator, dtype=torch.float64) - 1))
        weight = family.layers[-1].weight
        weight.copy_(last * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return family


def test_sigmoidal_layers_are_those_of_the_paper(generator, float64):
    family = SigmoidalNetwork(units=3, layers=2, clamp=4.0, floor=0.02)
    x, raw = torch.randn(200, generator=generator), torch.randn(200, family.size, generator=generator)
    h = x.numpy()
    for layer in raw.reshape(200, 2, 3, 3).unbind(1):
        logits, slopes, shifts = layer.unbind(1)
        weights = scipy.special.softmax(logits.numpy(), -1)
        u = (4 * (slopes / 4).tanh()).exp().numpy() * h[:, None] + shifts.numpy() + [-1, 0, 1]
        h = 0.98 * scipy.special.logit((weights * scipy.special.expit(u)).sum(-1)) + 0.02 * h
    assert abs(h).max() < 15  # where the plain formula still has digits
    torch.testing.assert_close(family.encode(x, raw)[0], torch.from_numpy(h), rtol=1e-8, atol=1e-8)


def test_one_unit_is_affine(float64):
    family = SigmoidalNetwork(units=1, layers=1, floor=0.5)
    x = torch.linspace(-500, 500, 7)
    z, ladj = family.encode(x, torch.tensor([3.0, 0.0, 2.0]).expand(7, -1))
    torch.testing.assert_close(z, 0.5 * (x + 2) + 0.5 * x)
    torch.testing.assert_close(ladj, torch.zeros(7))


def test_sigmoidal_slopes_stay_within_their_bounds(generator, float64):
    family = SigmoidalNetwork(units=4, layers=3, clamp=2.0, floor=0.01)
    x = 10 * torch.randn(3000, generator=generator)
    _, ladj = family.encode(x, 100 * torch.randn(3000, family.size, generator=generator))
    assert float(ladj.min()) >= 3 * math.log(0.01)
    assert float(ladj.max()) <= 6


def test_units_part_from_the_start(float64):
    family = SigmoidalNetwork(units=5, layers=1)
    raw = torch.zeros(1, family.size, requires_grad=True)
    z, _ = family.encode(torch.tensor([0.7]), raw)
    (gradient,) = torch.autograd.grad(z.sum(), raw)
    assert all(len(part.unique()) == 5 for part in gradient[0].split(5))


def test_the_integral_is_that_of_the_slope(generator, float64):
    family = awake(generator, signal=3, hidden=(8, 8))
    raw = torch.randn(1, family.size, generator=generator)
    with torch.no_grad():
        slope = lambda u: family.encode(torch.tensor([u], dtype=torch.float64), raw)[1].exp().item()
        for x in (-5.0, -0.3, 0.0, 2.0, 8.0):
            z, _ = family.encode(torch.tensor([x]), raw)
            assert z.item() == pytest.approx(raw[0, 0].item() + quad(slope, 0, x, epsabs=1e-12)[0], abs=1e-9)


def test_the_network_is_the_slope(generator, float64):
    family = awake(generator, signal=2, hidden=(4,), activation="silu", floor=0.1)
    x, raw = torch.randn(20, generator=generator), torch.randn(20, 3, generator=generator)
    first, last = family.layers
    hidden = torch.nn.functional.silu(first(torch.cat((x[:, None], raw[:, 1:]), 1)))
    slope = 0.1 + 0.9 * (last(hidden)[:, 0] + math.log(math.e - 1)).exp().log1p()
    torch.testing.assert_close(family.encode(x, raw)[1], slope.log())


def test_decode_reaches_the_familys_own_parameters(generator, float64):
    """By the implicit function theorem dx = -(dz/dtheta) / f(x), and second derivatives by gradgradcheck."""
    family = awake(generator, signal=1, hidden=(3,), nodes=8)
    parameters = tuple(family.parameters())
    raw = torch.randn(1, 2, generator=generator)
    x, _ = family.decode(torch.tensor([1.7]), raw)
    z, ladj = family.encode(x.detach(), raw)
    for found, through in zip(torch.autograd.grad(x, parameters), torch.autograd.grad(z, parameters)):
        assert found.any()
        torch.testing.assert_close(found, -through * (-ladj.detach()).exp())

    names = [name for name, _ in family.named_parameters()]
    decode = lambda *values: torch.func.functional_call(_Decode(family), dict(zip(names, values)), (raw,))
    assert torch.autograd.gradgradcheck(decode, parameters, atol=1e-5)


class _Decode(torch.nn.Module):
    def __init__(self, family):
        super().__init__()
        self.layers, self.family = family.layers, [family]

    def forward(self, raw):
        return self.family[0].decode(torch.tensor([1.7], dtype=torch.float64), raw)


def test_quadrature_error_compares_with_finite_differences_and_falls_with_nodes(generator, float64):
    errors = []
    for nodes in (3, 6, 12, 24):
        family = awake(torch.Generator().manual_seed(1), 3.0, signal=1, hidden=(8, 8), nodes=nodes)
        x, raw = torch.tensor([4.0]), torch.tensor([[0.0, 1.0]])
        error = family.quadrature_error(x, raw)
        with torch.no_grad():
            slope = (family.encode(x + 1e-5, raw)[0] - family.encode(x - 1e-5, raw)[0]) / 2e-5
            expected = (slope / family.encode(x, raw)[1].exp() - 1).abs()
        torch.testing.assert_close(error, expected, rtol=1e-5, atol=1e-8)
        assert not error.requires_grad
        errors.append(error.item())
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-3 * errors[0]


def test_the_inverse_finds_roots_far_out(generator, float64):
    family = awake(generator, signal=2, hidden=(8,))
    x, raw = torch.tensor([-1e4, 300.0, 1e6]), torch.randn(3, 3, generator=generator)
    back, _ = family.decode(family.encode(x, raw)[0], raw)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=0)


def test_autocast_changes_nothing(generator):
    family = awake(generator, signal=2, hidden=(8,)).float()
    x, raw = torch.randn(50, generator=generator), torch.randn(50, 3, generator=generator)
    plain = *family.encode(x, raw), *family.decode(x, raw)
    with torch.autocast("cpu", torch.bfloat16):
        cast = *family.encode(x, raw), *family.decode(x, raw)
    assert all(torch.equal(left, right) for left, right in zip(plain, cast))


@pytest.mark.parametrize("make", [lambda: SigmoidalNetwork(0), lambda: SigmoidalNetwork(layers=0)])
def test_sigmoidal_refuses_impossible_arguments(make):
    with pytest.raises(ValueError, match="pass"):
        make()


@pytest.mark.parametrize("arguments", [{"signal": 0}, {"hidden": ()}, {"nodes": 0}, {"activation": "relu"}])
def test_integrated_refuses_impossible_arguments(arguments):
    with pytest.raises(ValueError, match="pass"):
        IntegratedNetwork(**arguments)
