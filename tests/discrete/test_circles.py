"""Columns that are circles: no density jumps where a circle closes."""

import math

import pytest
import torch

from cflow import bases, discrete
from cflow.discrete.structure.circles import Circles
from cflow.testing import check_bijection

BOX = math.pi


def randomised(layer):
    torch.manual_seed(0)
    with torch.no_grad():
        for each in layer.parameters():
            each.normal_(std=0.25)
    return layer.double()


def circular(bins=4):
    return discrete.RationalQuadratic(bins, BOX, tails="circular")


def autoregressive(**options):
    return discrete.Autoregressive(circular(), 3, hidden=(16, 16), **options)


LAYERS = {
    "coupling": lambda: discrete.Coupling(circular(), 3, hidden=(16,)),
    "coupling, mask": lambda: discrete.Coupling(circular(), 3, mask=[True, False, True], hidden=(16,), context=2),
    "autoregressive": autoregressive,
    "autoregressive, order": lambda: autoregressive(order=[2, 0, 1], context=2),
    "Jacobi": lambda: autoregressive(inverse=discrete.Jacobi(tolerance=0.0)),
    "residual": lambda: autoregressive(residual=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_density_does_not_jump_at_the_seam(name):
    layer = randomised(LAYERS[name]())
    flow = discrete.NormalizingFlow(layer, bases.Uniform(3, -BOX, BOX)).double()
    context = None if layer.context_shape is None else torch.ones(2).double()
    generator = torch.Generator().manual_seed(1)
    x = BOX * (2 * torch.rand(200, 3, generator=generator, dtype=torch.float64) - 1)
    for column in range(3):
        left, right = x.clone(), x.clone()
        left[:, column], right[:, column] = -BOX + 1e-9, BOX - 1e-9
        with torch.no_grad():
            gap = (flow.log_prob(left, context) - flow.log_prob(right, context)).abs().max()
        assert gap < 1e-5, column
    assert flow.log_prob(x, context).std() > 0.1  # there is something that could jump


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_circles_conform(name):
    layer = LAYERS[name]()
    points = 2 * torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).double() - 1
    context = None if layer.context_shape is None else torch.ones(2)
    check_bijection(layer, context, points=points, harsh=(0.3,))


def test_circles_and_lines_side_by_side():
    """A coupling of lines whose known column is an angle, and an autoregressive layer of three lines and a circle."""
    for layer in (
        discrete.Coupling(discrete.Affine(), 2, hidden=(16,), periods=[2 * BOX, None]),
        discrete.Autoregressive(discrete.Affine(), 4, hidden=(16,), periods=[None, 2 * BOX, None, None]),
    ):
        layer = randomised(layer)
        x = torch.zeros(2, layer.features).double()
        angle = 0 if layer.features == 2 else 1
        x[0, angle], x[1, angle] = -BOX, BOX
        others = [i for i in range(layer.features) if i != angle]
        z, _ = layer.encode(x)
        torch.testing.assert_close(z[0, others], z[1, others], rtol=0, atol=1e-12)
        torch.testing.assert_close(layer.decode(z)[0], x, rtol=0, atol=1e-10)


def test_what_a_network_sees():
    x = torch.tensor([[2.0, 0.5, -1.0]])
    seen = Circles([None, 2.0, None])(x)
    torch.testing.assert_close(seen, torch.tensor([[2.0, 1.0, 0.0, -1.0]]), rtol=0, atol=1e-6)
    assert Circles([None, None, None])(x) is x
    for wrong in ([1.0], [0.0, None, None], [math.inf, None, None], [True, None, None], 2 * BOX, "abc", ["a", 1, 2]):
        for layer in (discrete.Coupling, discrete.Autoregressive):
            with pytest.raises(ValueError, match=r"periods=.*not one period or None per feature"):
                layer(discrete.Affine(), 3, periods=wrong)


def test_what_moves_on_a_circle_is_seen_on_the_same():
    for wrong in ([None, None, BOX], [None, None, None]):
        for layer in (discrete.Coupling, discrete.Autoregressive):
            with pytest.raises(ValueError, match=r"has period 6.283185 for feature \d, not"):
                layer(circular(), 3, periods=wrong)
    # What stays is not a circle of the family, and may be a line.
    layer = discrete.Coupling(circular(), 3, mask=[False, True, True], periods=[None, 2 * BOX, 6.2831853])
    assert layer.circles.width == 1
