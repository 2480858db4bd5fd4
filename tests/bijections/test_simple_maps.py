"""What members promise besides the conformance suite: scores, second derivatives, devices, casts."""

import copy

import pytest
import torch
from map_members import functions, linears, normalisations, pushes

from cflow import bijections, discrete


def members():
    found = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for group in (linears, normalisations, functions, pushes):
            for name, bijection, arguments in group():
                if bijection.event_shape.numel() <= 5:
                    found[name] = bijection.double(), arguments
        for bijection, _ in found.values():
            for each in bijection.parameters():
                if not each.any():
                    torch.nn.init.normal_(each, std=0.5)
    return found


MEMBERS = members()
FINER = bijections.Standardise  # in the dtype of what was measured


def points_of(name, count=3):
    bijection, arguments = MEMBERS[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, *bijection.event_shape, generator=generator, dtype=torch.float64)
    x = arguments.get("points", x)[:count]
    context = None
    if bijection.context_shape is not None:
        context = torch.randn(count, *bijection.context_shape, generator=generator, dtype=torch.float64)
    return bijection, x, context


@pytest.mark.parametrize("name", MEMBERS)
def test_scores_by_vmap_are_those_of_the_batch(name):
    bijection, x, context = points_of(name)
    if bijection.reads_values:  # which vmap cannot
        return

    def density(row, given):
        z, ladj = bijection.encode(row[None], None if given is None else given[None])
        return (ladj - z.reshape(len(z), -1).square().sum(1) / 2).squeeze(0)

    point = x.clone().requires_grad_()
    z, ladj = bijection.encode(point, context)
    (wanted,) = torch.autograd.grad((ladj - z.reshape(len(z), -1).square().sum(1) / 2).sum(), point)
    dims = (0, None if context is None else 0)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(density), in_dims=dims)(x, context), wanted)


@pytest.mark.parametrize("name", MEMBERS)
def test_first_and_second_derivatives(name):
    bijection, x, context = points_of(name, 2)
    z = bijection.encode(x, context)[0].detach()
    parameters = [each for each in bijection.parameters() if each.numel()]
    for method, value in ((bijection.encode, x), (bijection.decode, z)):
        call = lambda value, *_, method=method: method(value, context)
        inputs = (value.clone().requires_grad_(), *parameters)
        assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("name", MEMBERS)
def test_autocast_changes_nothing(name):
    bijection, x, context = points_of(name)
    for dtype in (torch.float32, torch.float64):
        wanted = bijection.encode(x.to(dtype), context)
        with torch.autocast("cpu", torch.bfloat16):
            found = bijection.encode(x.to(dtype), context)
            back = bijection.decode(found[0], context)
        for one, other in zip((*found, *back), (*wanted, *bijection.decode(wanted[0], context))):
            assert one.dtype == (torch.float64 if type(bijection) is FINER else dtype)
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_cast_in_mid_life_keeps_the_map(name):
    bijection, x, context = points_of(name)
    wanted = bijection.encode(x, context)
    narrow = None if context is None else context.float()
    single = copy.deepcopy(bijection).float()
    assert single.encode(x.float(), narrow)[0].dtype == torch.float32
    for one, other in zip(single.double().encode(x, context), wanted):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    half = bijection.encode(x.bfloat16(), context)
    assert half[0].dtype == half[1].dtype == (torch.float64 if type(bijection) is FINER else torch.float32)


CONSTRUCTORS = [
    lambda: bijections.Permute([1, 0]),
    lambda: bijections.Permute.random(3, torch.Generator().manual_seed(0)),
    lambda: bijections.Permute.reverse(3),
    lambda: bijections.LULinear(3),
    lambda: bijections.Householder(3),
    lambda: bijections.Orthogonal(3),
    lambda: bijections.LowRank(3, 1),
    lambda: bijections.Conv1x1((2, 3, 3)),
    lambda: bijections.ActNorm(3),
    lambda: bijections.BatchNorm(3),
    lambda: bijections.Exp(3),
    lambda: bijections.Standardise(3, 1.0, 2.0, learned=True),
    lambda: discrete.Planar(3, context=1),
    lambda: discrete.Radial(3),
    lambda: discrete.Sylvester(3, 2),
]


@pytest.mark.parametrize("make", CONSTRUCTORS)
def test_layers_are_built_on_the_default_device(make):
    with torch.device("meta"):
        layer = make()
    assert all(each.is_meta for each in (*layer.parameters(), *layer.buffers()))
    real = make()
    layer.to_empty(device="cpu").load_state_dict(real.state_dict())
    x = torch.randn(4, *real.event_shape)
    context = None if real.context_shape is None else torch.zeros(4, *real.context_shape)
    z, _ = real.eval().encode(x, context)
    assert torch.equal(layer.eval().encode(x, context)[0], z)
    torch.testing.assert_close(layer.decode(z, context)[0], x, rtol=1e-4, atol=1e-4)
