import math

import pytest
import torch

from cflow import discrete
from cflow.discrete.pushes.planar import excess, log_slope, positive, undo_push
from cflow.testing.bijections import _jacobians as jacobians

STEEP = (-200.0, -40.0, -10.0, -1.0, -0.3, 0.0, 1e-4, 1.0, 5.0, 180.0, 1e4)


def test_parts_agree_with_their_formulas():
    raw = torch.linspace(-5, 5, 41, dtype=torch.float64)
    softplus = torch.log1p((raw + math.log(math.e - 1)).exp())
    torch.testing.assert_close(positive(raw), softplus, rtol=1e-14, atol=0)
    torch.testing.assert_close(excess(raw), softplus - 1, rtol=1e-12, atol=1e-15)
    a = torch.linspace(-3, 3, 41, dtype=torch.float64)
    torch.testing.assert_close(log_slope(a, raw), torch.log(1 + excess(raw) / a.cosh() ** 2), rtol=1e-10, atol=1e-13)
    small = torch.tensor([1e-9, -1e-9], dtype=torch.float64)
    torch.testing.assert_close(excess(small), (1 - 1 / math.e) * small, rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pushes_of_any_strength_are_undone(dtype):
    sizes = torch.cat((torch.zeros(1, dtype=dtype), torch.logspace(-12, 8, 201, dtype=dtype)))
    raw, target = torch.meshgrid(torch.tensor(STEEP, dtype=dtype), torch.cat((sizes, -sizes)), indexing="ij")
    a, ladj = undo_push(target, raw)
    assert a.isfinite().all()
    assert ladj.isfinite().all()
    reached = a.double() + (excess(raw.double()) * torch.tanh(a.double()))
    # A few roundings of the terms, and of those at a thousandth where a is smaller.
    allowed = 4 * torch.finfo(dtype).eps * (1e-3 + a.abs() + excess(raw).abs() * (1e-3 + torch.tanh(a).abs()))
    assert ((reached - target).abs() <= allowed.double()).all()
    torch.testing.assert_close(ladj, -log_slope(a, raw))


@pytest.mark.parametrize("strength", [-250.0, -20.0, 0.0, 20.0, 180.0, 250.0])
def test_planar_stays_finite_and_invertible_where_w_and_u_are_large(strength, generator):
    layer = discrete.Planar(3)
    with torch.no_grad():
        layer.u.copy_(strength * layer.w / layer.w.square().sum())
        layer.b.fill_(0.3)
    x = 2 * torch.randn(50, 3, generator=generator)
    z, ladj = layer.encode(x)
    back, inverse = layer.decode(z)
    for value in (
        z,
        ladj,
        back,
        inverse,
        *torch.autograd.grad(z.square().sum() - ladj.sum(), list(layer.parameters())),
    ):
        assert value.isfinite().all()
    slack = 1e-5 * (1 + (-ladj).exp().clamp(max=1e3))[:, None] * (1 + abs(strength) / 10)
    assert ((back - x).abs() < slack).all()


def test_planar_moves_along_u_by_the_projection_on_w(generator):
    layer = discrete.Planar(4).double()
    with torch.no_grad():
        layer.u.copy_(torch.randn(4, generator=generator, dtype=torch.float64))
        layer.b.fill_(0.5)
    w, u = layer.w.detach(), layer.u.detach()
    product = w @ u
    corrected = u + (math.log1p(math.exp(product + math.log(math.e - 1))) - 1 - product) * w / (w @ w)
    x = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    z, ladj = layer.encode(x)
    a = x @ w + 0.5
    torch.testing.assert_close(z, x + torch.tanh(a)[:, None] * corrected)
    torch.testing.assert_close(ladj, torch.log(1 + (w @ corrected) / a.cosh() ** 2))


def test_planar_without_a_direction_is_a_shift(generator):
    layer = discrete.Planar(3)
    with torch.no_grad():
        layer.w.zero_()
        layer.u.fill_(2.0)
        layer.b.fill_(1.0)
    x = torch.randn(5, 3, generator=generator)
    z, ladj = layer.encode(x)
    torch.testing.assert_close(z, x + 2 * math.tanh(1.0))
    assert not ladj.any()
    torch.testing.assert_close(layer.decode(z)[0], x)


def test_radial_agrees_with_the_paper(generator):
    layer = discrete.Radial(3).double()
    with torch.no_grad():
        layer.raw_reach.fill_(0.7)
        layer.raw_pull.fill_(-1.2)
    alpha, scaled = (float(positive(each)) for each in (layer.raw_reach.detach(), layer.raw_pull.detach()))
    beta = alpha * scaled - alpha
    assert -alpha < beta < 0
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    away = x - layer.center.detach()
    r = away.norm(dim=1, keepdim=True)
    torch.testing.assert_close(layer.encode(x)[0], x + beta / (alpha + r) * away)


@pytest.mark.parametrize("pull", [-100.0, -5.0, 0.0, 5.0, 100.0, 1e4])
@pytest.mark.parametrize("reach", [-100.0, -5.0, 0.0, 5.0, 100.0])
def test_radial_stays_finite_and_invertible_whatever_the_numbers(reach, pull, generator):
    layer = discrete.Radial(2)
    with torch.no_grad():
        layer.raw_reach.fill_(reach)
        layer.raw_pull.fill_(pull)
        layer.center.zero_()
    x = torch.randn(50, 2, generator=generator)
    z, ladj = layer.encode(x)
    back, inverse = layer.decode(z)
    for value in (
        z,
        ladj,
        back,
        inverse,
        *torch.autograd.grad(z.square().sum() - ladj.sum(), list(layer.parameters())),
    ):
        assert value.isfinite().all()
    # A latent that rounds to within a few units of the centre has lost its direction's digits, not its finiteness.
    error = (back - x).norm(dim=1) / x.norm(dim=1)
    condition = 1 + z.norm(dim=1) / (x.norm(dim=1) * (x.norm(dim=1) + 1)) * (-ladj).exp().clamp(max=1e6)
    assert (error < 1e-5 * condition).all()


def test_radial_at_its_centre():
    layer = discrete.Radial(3).double()
    with torch.no_grad():
        layer.raw_pull.fill_(1.0)
    x = layer.center.detach()[None].clone().requires_grad_()
    z, ladj = layer.encode(x)
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(ladj, torch.log(positive(layer.raw_pull)) * 3)
    assert torch.autograd.grad(z.sum() + ladj.sum(), x)[0].isfinite().all()
    assert torch.equal(layer.decode(z)[0], x)


@pytest.mark.parametrize("directions", [1, 3, 5])
def test_sylvester_agrees_with_the_paper(directions, generator):
    layer = discrete.Sylvester(5, directions).double()
    with torch.no_grad():
        for each in layer.parameters():
            each.copy_(torch.randn(each.shape, generator=generator, dtype=torch.float64))
        basis, outer, inner, b, _ = (
            each.detach() for each in layer._parts(torch.zeros(1, 5, dtype=torch.float64), None)
        )
    assert torch.equal(outer, outer.triu())
    assert torch.equal(inner, inner.triu())
    torch.testing.assert_close(basis.t() @ basis, torch.eye(directions, dtype=torch.float64))
    assert (outer.diagonal() * inner.diagonal() > -1).all()
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    z, ladj = layer.encode(x)
    torch.testing.assert_close(z, x + torch.tanh(x @ basis @ inner.t() + b) @ outer.t() @ basis.t())
    torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobians(layer.encode, x, None)).logabsdet)
    torch.testing.assert_close(layer.decode(z.detach())[0], x, rtol=1e-10, atol=1e-10)


def test_one_direction_of_sylvester_is_planar(generator):
    """Both hold the maps x + v tanh(w x + b) with v along w."""
    sylvester, planar = discrete.Sylvester(3, 1).double(), discrete.Planar(3).double()
    with torch.no_grad():
        sylvester.outer.fill_(1.3)
        sylvester.b.fill_(0.4)
        basis, _, inner, b, raw = sylvester._parts(torch.zeros(1, 3, dtype=torch.float64), None)
        planar.w.copy_(inner[0, 0] * basis[:, 0])
        planar.b.copy_(b[0])
        planar.u.copy_(raw * planar.w / planar.w.square().sum())
    x = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    for name in ("encode", "decode"):
        for one, other in zip(getattr(sylvester, name)(x), getattr(planar, name)(x)):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_context_moves_the_parameters_of_planar_and_radial(generator):
    for kind in (discrete.Planar, discrete.Radial):
        layer = kind(3, context=2).double()
        assert layer.context_shape == (2,)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
        context = torch.randn(2, generator=generator, dtype=torch.float64)
        plain = kind(3).double()
        raw = torch.cat([each.detach() for name, each in layer.named_parameters() if name != "weight"])
        raw = raw + layer.weight.detach() @ context
        with torch.no_grad():
            for each in plain.parameters():
                each.copy_(raw[: each.numel()])
                raw = raw[each.numel() :]
        x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        for one, other in zip(layer.encode(x, context.expand(4, 2)), plain.encode(x)):
            torch.testing.assert_close(one, other)


def test_arguments_that_make_no_layer_are_refused():
    for make in (
        lambda: discrete.Planar(0),
        lambda: discrete.Radial(2, context=-1),
        lambda: discrete.Sylvester(3, directions=4),
    ):
        with pytest.raises(ValueError, match="pass for example|omit directions"):
            make()
