"""Masked networks and autoregressive layers, beyond what the conformance suite asks of every bijection."""

import pytest
import torch
from torch import nn

from cflow import discrete
from cflow.discrete.structure.masked import MaskedConditioner, levels_of
from cflow.testing.solvers.operations import Operations

DAG = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)


def randomised(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.double()


def made(features=5, size=2, adjacency=None, **options):
    adjacency = torch.ones(features, features).tril(-1).bool() if adjacency is None else adjacency
    return randomised(MaskedConditioner(adjacency, size, **options))


@pytest.mark.parametrize("options", [{}, {"hidden": (7, 30)}, {"hidden": (16, 16, 16), "residual": True}])
@pytest.mark.parametrize("adjacency", [None, DAG])
def test_raw_numbers_depend_on_what_the_adjacency_names_and_on_all_of_it(options, adjacency, generator):
    torch.manual_seed(0)
    network = made(adjacency=adjacency, activation="tanh", **options)
    x = torch.randn(network.features, generator=generator, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x[None])[0], x)  # [features, size, features]
    wanted = torch.ones(5, 5).tril(-1).bool() if adjacency is None else adjacency
    assert ((jacobian.abs() > 0).all(1) == wanted).all()


def test_levels_are_the_longest_chains():
    assert levels_of(DAG).tolist() == [0, 1, 1, 2]
    blocks = torch.zeros(6, 6, dtype=torch.bool)
    blocks[3:, :3] = True
    assert levels_of(blocks).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_circle_is_named():
    with pytest.raises(ValueError, match=r"features \[1, 2\] depend on one another"):
        levels_of(torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=torch.bool))


@pytest.mark.parametrize("features", [2, 3, 16, 17])
@pytest.mark.parametrize("gradient", [False, True])
def test_the_pass_level_by_level_agrees_with_the_pass_at_once(features, gradient, generator):
    torch.manual_seed(1)
    layer = randomised(discrete.Autoregressive(discrete.Affine(), features, context=2, hidden=(40, 24)))
    x = torch.randn(3, features, generator=generator, dtype=torch.float64)
    context = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    with torch.set_grad_enabled(gradient):
        z, ladj = layer.encode(x, context)
        before = [each.clone() for each in layer.parameters()]
        back, inverse = layer.decode(z, context)
    assert torch.allclose(back, x, atol=1e-9)
    assert torch.allclose(inverse, -ladj, atol=1e-9)
    assert all(torch.equal(*pair) for pair in zip(before, layer.parameters()))


class Multiplications(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the multiplications in matrix products."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("addmm", "addmm_", "mm"):
            left, right = args[-2:]
            self.count += left.shape[0] * left.shape[1] * right.shape[1]
        return function(*args, **(kwargs or {}))


def test_the_incremental_inverse_does_no_more_arithmetic_than_one_pass():
    layer = discrete.Autoregressive(discrete.Affine(), 32, hidden=(64, 64))
    x = torch.randn(10, 32)
    with torch.no_grad():
        with Multiplications() as once:
            layer.encode(x)
        with Multiplications() as stepwise:
            layer.decode(x)
    assert 0.3 * once.count < stepwise.count <= once.count


def test_decoding_takes_operations_in_proportion_to_levels_and_reads_nothing():
    counts = []
    for features in (16, 32):
        layer = discrete.Autoregressive(discrete.Affine(), features, hidden=(64, 64))
        z = torch.randn(4, features)
        with torch.no_grad(), Operations() as operations:
            layer.decode(z)
        assert operations.reads == 0
        counts.append(operations.counts.total())
    assert counts[1] < 2 * counts[0]
    assert counts[1] / 32 < 24  # operations per level


def test_jacobi_ends_early_and_within_its_tolerance(generator):
    torch.manual_seed(0)
    layer = discrete.Autoregressive(
        discrete.Affine(), 20, hidden=(32,), inverse=discrete.Jacobi(tolerance=1e-9)
    ).double()
    nn.init.normal_(layer.conditioner.layers[-1].weight, std=0.02)  # hardly dependent: few iterations
    x = torch.randn(50, 20, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        z, ladj = layer.encode(x)
        calls = []
        handle = layer.conditioner.register_forward_hook(lambda *_: calls.append(1))
        back, inverse = layer.decode(z)
        handle.remove()
    assert len(calls) < 12
    assert torch.allclose(back, x, atol=1e-8)
    assert torch.allclose(inverse, -ladj, atol=1e-8)


def test_jacobi_survives_iterates_that_overflow():
    """Far features may overflow before those they depend on are right; masked weights times infinity are NaN."""
    torch.manual_seed(0)
    layer = discrete.Autoregressive(discrete.Affine(torch.inf), 6, hidden=(16,), inverse=discrete.Jacobi(0.0))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=2.0)
    x = torch.randn(400, 6)
    with torch.no_grad():
        z, _ = layer.encode(x)
        kept = z.isfinite().all(1) & (z.abs() < 1e6).all(1)
        back, _ = layer.decode(z[kept])
    assert kept.sum() > 50
    assert back.isfinite().all()


def test_gradients_of_jacobi_are_those_of_the_incremental_inverse(generator):
    torch.manual_seed(0)
    layer = randomised(discrete.Autoregressive(discrete.Affine(), 6, hidden=(16,), activation="tanh"))
    z = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    gradients = []
    for inverse in (discrete.Incremental(), discrete.Jacobi(0.0), discrete.Jacobi(1e-12, blocks=2)):
        layer.inverse = inverse
        point = z.clone().requires_grad_()
        x, ladj = layer.decode(point)
        gradients.append(torch.autograd.grad((x**3).sum() + ladj.sum(), [point, *layer.parameters()]))
    for other in gradients[1:]:
        assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(gradients[0], other))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"order": [0, 0, 1]}, "not a permutation"),
        ({"adjacency": torch.zeros(2, 2)}, "square adjacency"),
        ({"order": [0, 1, 2], "adjacency": torch.zeros(3, 3)}, "not both"),
        ({"hidden": ()}, "hidden layers must have positive width"),
        ({"hidden": (4, 5), "residual": True}, "of one width"),
        ({"activation": "step"}, "pass one of"),
    ],
)
def test_what_makes_no_layer_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        discrete.Autoregressive(discrete.Affine(), 3, **arguments)
    with pytest.raises(TypeError, match="Incremental"):
        discrete.Autoregressive(discrete.Affine(), 3, inverse="jacobi")
    with pytest.raises(ValueError, match="must not be negative"):
        discrete.Jacobi(tolerance=-1.0)
