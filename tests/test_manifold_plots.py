"""Pictures of spheres and tori: places are where they belong, and the mass on the picture is the integral."""

import math

import pytest
import torch

import cflow
from cflow import bases, bijections, fields, manifolds, paths, plot
from cflow.cli import main
from cflow.plot.maps import degrees_of

SPHERE, TORUS = manifolds.Sphere(2), manifolds.FlatTorus(2)


def title(figure):
    return figure.axes[0].get_title()


def dots(axis):
    return torch.as_tensor(axis.collections[-1].get_offsets().data)


def test_degrees_of_unit_vectors_are_those_of_lat_lon(generator):
    z = SPHERE.uniform((50,), generator=generator, dtype=torch.float64)
    expected = bijections.LatLon().decode(z)[0]
    assert torch.allclose(degrees_of("", z), expected, atol=1e-10)
    turned = expected + torch.tensor([0.0, 360.0])
    assert torch.allclose(degrees_of("", turned), expected, atol=1e-10)


def test_a_map_shows_points_and_the_integral_of_a_density():
    kappa = 20.0
    log_c = math.log(kappa / (2 * math.pi * -math.expm1(-2 * kappa)))
    at = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, 0.5]), dim=0)
    fisher = lambda x: kappa * (x @ at - 1) + log_c
    places = torch.tensor([[30.0, -60.0], [-45.0, 170.0]])
    figure = plot.sphere(fisher, samples=places, resolution=40)
    assert title(figure) == "probability on this map: 100.0%"
    assert torch.allclose(dots(figure.axes[0]).flip(1), torch.deg2rad(places.double()))
    half = plot.sphere(lambda x: fisher(x) - math.log(2), scale="linear", resolution=40, title="half")
    assert title(half) == "half\nprobability on this map: 50.0%"


def test_a_square_shows_classes_of_angles_and_the_integral_of_a_density():
    uniform = manifolds.Uniform(TORUS)
    figure = plot.torus(uniform, samples=torch.tensor([[math.pi / 2, 2 * math.pi - 1]]), resolution=8)
    assert title(figure) == "probability on this square: 100.0%"
    assert torch.allclose(dots(figure.axes[0]), torch.tensor([[90.0, -math.degrees(1)]], dtype=torch.float64))
    turns = plot.torus(torch.tensor([[0.25, 0.75, 1.5]]), period=1.0, names=("phi", "psi", "chi1"))
    assert [axis.get_xlabel() for axis in turns.axes] == ["phi, degrees", "psi, degrees"]
    assert dots(turns.axes[1]).tolist() == [[-90.0, -180.0]]
    axis = plot.new_figure(3, 3).subplots()
    assert plot.torus(torch.zeros(3, 2), ax=axis) is axis.figure


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.sphere(torch.ones(4, 4)), "unit vectors"),
        (lambda: plot.sphere(torch.ones(4, 3)), "divide by them"),
        (lambda: plot.sphere(torch.tensor([[100.0, 10.0]])), "latitude, then longitude"),
        (lambda: plot.sphere(lambda x: x), "one value per point"),
        (lambda: plot.sphere(lambda x: x[:, 0] * torch.nan, resolution=3), "NaN"),
        (lambda: plot.sphere(lambda x: x[:, 0], scale="cubic"), "no such scale"),
        (lambda: plot.sphere(lambda x: x[:, 0], resolution=1), "two rows"),
        (lambda: plot.torus(torch.ones(4, 1)), "two angles"),
        (lambda: plot.torus(torch.ones(4, 3), ax=plot.new_figure(3, 3).subplots()), "one axis shows two angles"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.parametrize(
    ("manifold", "transform", "figure"),
    [
        (SPHERE, (bijections.LatLon(),), "sphere"),
        (SPHERE, (), "sphere"),
        (manifolds.FlatTorus(3), (bijections.Standardise(3, scale=180 / math.pi),), "torus"),
        (manifolds.FlatTorus(2, period=1.0), (), "torus"),
    ],
)
def test_samples_are_drawn_on_their_manifold(manifold, transform, figure, tmp_path, monkeypatch):
    field = fields.MLP(manifold.event_shape[0], hidden=(4,))
    flow = cflow.ContinuousFlow(field, manifolds.Uniform(manifold), path=paths.Geodesic()).with_transform(*transform)
    cflow.save(flow, tmp_path / "model")
    drawn = []
    original = getattr(plot, figure)
    monkeypatch.setattr(plot, figure, lambda x, *rest, **options: drawn.append(x) or original(x, *rest, **options))
    main(["sample", str(tmp_path / "model"), "--num", "5", "--output", str(tmp_path / "x.png")])
    assert (tmp_path / "x.png").stat().st_size > 1000
    assert drawn[0].shape == (5, *manifold.event_shape)
    assert manifold.holds(drawn[0]).all()


def test_a_plane_and_a_sphere_of_many_dimensions_have_other_pictures(tmp_path):
    assert manifolds.Sphere(3).picture is None
    assert manifolds.FlatTorus(1).picture is None
    assert bases.Normal(2).manifold is None
