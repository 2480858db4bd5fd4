import math

import pytest
import torch

from cflow.manifolds import Euclidean, FlatTorus, Power, Product, Sphere

STARS = Product({"place": Sphere(2), "angle": FlatTorus(1), "frame": Euclidean((2, 2))}, {"place": 4.0, "frame": 0.25})


def test_join_is_the_inverse_of_split(generator):
    x = torch.randn(4, 3, 8, generator=generator)
    parts = STARS.split(x)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {
        "place": (4, 3, 3),
        "angle": (4, 3, 1),
        "frame": (4, 3, 2, 2),
    }
    assert torch.equal(STARS.join(parts), x)
    one = STARS.join({**parts, "frame": torch.zeros(2, 2)})
    assert torch.equal(one[..., :4], x[..., :4])
    assert not one[..., 4:].any()
    with pytest.raises(ValueError, match="the parts are place, angle, frame"):
        STARS.join({"place": x})


def test_weights_scale_squared_distances_and_volumes(generator, float64):
    u = torch.randn(2, 6, 8, generator=generator)
    x, y = STARS.exp(STARS.origin(), STARS.to_tangent(STARS.origin(), u))
    parts = {name: each.dist(STARS.split(x)[name], STARS.split(y)[name]) for name, each in STARS.parts.items()}
    expected = 4 * parts["place"].square() + parts["angle"].square() + 0.25 * parts["frame"].square()
    torch.testing.assert_close(STARS.dist(x, y).square(), expected)
    # Radius 2 for the sphere: four times the area. Four flat dimensions at half the length.
    assert Product({"a": Sphere(2)}, {"a": 4.0}).log_volume == pytest.approx(math.log(16 * math.pi))
    assert float(STARS.log_volume_element(x)[0]) == pytest.approx(2 * math.log(2) - 4 * math.log(2))
    assert STARS.injectivity == math.pi
    assert STARS.log_volume == math.inf


def test_only_a_product_of_flat_parts_is_flat():
    assert Product({"a": Euclidean(2), "b": Euclidean(3)}).flat
    assert not STARS.flat
    assert Power(Euclidean(3), 5).flat
    assert not Power(Sphere(2), 5).flat


def test_sets_of_different_sizes(generator, float64):
    """A set of two points in an array of three is the set of two points."""
    three, two = Power(Sphere(2), 3), Power(Sphere(2), 2)
    x, y, z = three.uniform((3, 4), generator=generator)
    u = three.to_tangent(x, z)
    mask = torch.tensor([True, True, False]).reshape(3, 1).expand(3, 3)
    cut = lambda each: each[:, :2]
    torch.testing.assert_close(three.dist(x, y, mask=mask), two.dist(cut(x), cut(y)))
    torch.testing.assert_close(three.inner(x, u, u, mask=mask), two.inner(cut(x), cut(u), cut(u)))
    xt, ut = three.geodesic(x, y, torch.tensor(0.3), mask=mask)
    for found, expected in zip((xt, ut), two.geodesic(cut(x), cut(y), torch.tensor(0.3))):
        torch.testing.assert_close(cut(found), expected)
    assert torch.equal(xt[:, 2], x[:, 2])
    assert not ut[:, 2].any()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="there are no parts"):
        Product({})
    with pytest.raises(ValueError, match="no part has this name; use a"):
        Product({"a": Sphere(2)}, {"b": 1.0})
    with pytest.raises(ValueError, match="a weight is positive"):
        Product({"a": Sphere(2)}, {"a": 0.0})
    for make in (Euclidean, lambda shape: Power(Sphere(2), shape)):
        with pytest.raises(ValueError, match="sizes must be positive"):
            make((2, 0))
