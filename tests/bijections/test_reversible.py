"""Compositions that keep no activations: exact gradients, memory flat in depth."""

import pytest
import torch
from torch import nn

from cflow import bijections, discrete


def layers(count, features=4, context=2, hidden=(16,)):
    torch.manual_seed(0)
    masks = [[(i < features // 2) == bool(number % 2) for i in range(features)] for number in range(count)]
    made = [discrete.Coupling(discrete.Affine(), features, context=context, mask=m, hidden=hidden) for m in masks]
    for parameter in (each for layer in made for each in layer.parameters()):
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("name", ["encode", "decode"])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_those_of_the_composition(name, frozen, generator):
    members = [each.double() for each in (*layers(5), bijections.Permute([2, 0, 3, 1]), *layers(1))]
    if frozen:
        members[1].requires_grad_(False)
    value = torch.randn(7, 4, generator=generator, dtype=torch.float64).requires_grad_()
    context = torch.randn(7, 2, generator=generator, dtype=torch.float64).requires_grad_()
    wanted = [value, context, *(each for layer in members for each in layer.parameters() if each.requires_grad)]
    found = []
    for composition in (bijections.Compose(*members), bijections.Reversible(*members)):
        result, ladj = getattr(composition, name)(value, context)
        found.append((result, ladj, *torch.autograd.grad((result**3).sum() + (ladj**2).sum(), wanted)))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-10) for a, b in zip(*found))


def test_a_constant_log_determinant_and_a_context_without_gradient(generator):
    x, context = torch.randn(3, 4, generator=generator), torch.randn(3, 2, generator=generator)
    members = [discrete.Coupling(discrete.Additive(), 4, context=2, hidden=(8,)), bijections.Permute.reverse(4)]
    bijections.Reversible(*members).encode(x, context)[0].square().sum().backward()
    assert all(each.grad is not None for each in members[0].parameters())


def saved_bytes(composition, x):
    total = [0]

    def pack(tensor):
        total[0] += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        composition.encode(x)
    return total[0]


def test_what_is_saved_for_the_backward_pass_is_the_output_and_the_weights(generator):
    x = torch.randn(500, 4, generator=generator)
    growth = {}
    for kind in (bijections.Compose, bijections.Reversible):
        weights = lambda made: sum(4 * each.numel() for each in made.parameters())
        short, long = (kind(*layers(count, context=0)) for count in (2, 16))
        growth[kind] = saved_bytes(long, x) - saved_bytes(short, x) - (weights(long) - weights(short))
    assert growth[bijections.Reversible] == 0
    assert growth[bijections.Compose] > 14 * x.numel() * 4


def test_bfloat16_autocast_is_the_same_on_the_way_back(generator):
    x = torch.randn(50, 4, generator=generator)
    members = layers(4, context=0)
    found = []
    for kind in (bijections.Compose, bijections.Reversible):
        with torch.autocast("cpu", torch.bfloat16):
            z, ladj = kind(*members).encode(x)
        assert z.dtype == ladj.dtype == torch.float32
        found.append(torch.autograd.grad(z.square().sum() - ladj.sum(), members[0].conditioner.layers[0].weight)[0])
    assert torch.allclose(*found, rtol=2e-2, atol=2e-2)


def test_what_it_cannot_do_is_refused(generator):
    x = torch.randn(3, 4, generator=generator, requires_grad=True)
    z, _ = bijections.Reversible(*layers(2, context=0)).encode(x)
    (gradient,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()

    class Changing(bijections.Permute):
        changes = True

    members = [*layers(1, context=0), Changing([3, 2, 1, 0])]
    with pytest.raises(ValueError, match="depends on the batch"):
        bijections.Reversible(*members).encode(x)
    bijections.Reversible(*members).eval().encode(x)
