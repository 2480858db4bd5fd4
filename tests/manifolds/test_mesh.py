"""Meshes against flat geometry, unfolded cubes, the eigenvalues of the sphere and a search over all triangles."""

import copy
import math

import pytest
import torch
from meshes import cube, sphere, square

import cflow
from cflow import ContinuousFlow, fields, manifolds
from cflow.manifolds.mesh.closest import closest_weights


def tangents(mesh, x, length, generator):
    u = mesh.to_tangent(x, torch.randn(x.shape, generator=generator, dtype=x.dtype))
    return length * u / u.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def ball():
    return manifolds.Mesh(*sphere(3), eigenpairs=15)


@pytest.fixture(scope="module")
def plate():
    return manifolds.Mesh(*square(8), eigenpairs=10)


def test_eigenvalues_are_those_of_sphere_and_square(ball):
    expected = torch.tensor([float(n * (n + 1)) for n in range(1, 4) for _ in range(2 * n + 1)], dtype=torch.float64)
    torch.testing.assert_close(ball.eigenvalues, expected, rtol=0.02, atol=0)
    # Second order: the error of a mesh with edges half as long is a quarter.
    coarse = manifolds.Mesh(*sphere(2), eigenpairs=15)
    ratio = (coarse.eigenvalues[8:] - 12).mean() / (ball.eigenvalues[8:] - 12).mean()
    assert 3.5 < float(ratio) < 4.5
    # No flux across the boundary: cosines.
    flat = manifolds.Mesh(*square(20), eigenpairs=5)
    expected = math.pi**2 * torch.tensor([1.0, 1, 2, 4, 4], dtype=torch.float64)
    torch.testing.assert_close(flat.eigenvalues, expected, rtol=0.02, atol=0)


def test_sparse_and_dense_eigenfunctions_are_the_same_and_orthonormal():
    points, faces = square(20)
    points = points * torch.tensor([1.0, 1.3, 1.0], dtype=torch.float64)  # no eigenvalue twice
    few, many = manifolds.Mesh(points, faces, eigenpairs=6), manifolds.Mesh(points, faces, eigenpairs=221)
    torch.testing.assert_close(few.eigenfunctions, many.eigenfunctions[:, :6], rtol=1e-7, atol=1e-7)
    mass = torch.zeros(len(points), dtype=torch.float64)
    mass.index_add_(0, faces.reshape(-1), few._integrals(torch.ones_like(mass)).reshape(-1))
    gram = few.eigenfunctions.T @ (mass.unsqueeze(1) * few.eigenfunctions)
    torch.testing.assert_close(gram, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-10)


def test_distances_are_the_sums_that_they_name(ball, generator):
    x, y = ball.uniform((2, 7), generator=generator, dtype=torch.float64)
    difference = ball.interpolate(ball.eigenfunctions, x) - ball.interpolate(ball.eigenfunctions, y)
    for distance, weight in (
        (manifolds.Biharmonic(), lambda value: value**-2),
        (manifolds.CommuteTime(), lambda value: 1 / value),
        (manifolds.Diffusion(0.1), lambda value: (-0.2 * value).exp()),
    ):
        mesh = manifolds.Mesh(ball.vertices, ball.faces, ball.eigenpairs, distance)
        expected = (weight(ball.eigenvalues) * difference.square()).sum(1)
        torch.testing.assert_close(mesh.dist(x, y).square(), expected)
        torch.testing.assert_close(mesh.cost(x, y).diagonal(), expected)
    with pytest.raises(ValueError, match="positive"):
        manifolds.Diffusion(0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_projection_is_the_closest_of_all_triangles(ball, dtype, generator):
    mesh = manifolds.Mesh(ball.vertices.to(dtype), ball.faces, ball.eigenpairs)
    on = mesh.uniform((300,), generator=generator, dtype=dtype)
    torch.testing.assert_close(mesh.project(on), on, rtol=0, atol=10 * torch.finfo(dtype).eps)
    off = on + 0.03 * torch.randn(on.shape, generator=generator, dtype=dtype)
    square = closest_weights(off.unsqueeze(1), mesh.vertices[mesh.faces])[1].min(1).values
    torch.testing.assert_close((mesh.project(off) - off).norm(dim=1), square.sqrt(), rtol=1e-4, atol=1e-6)
    far = mesh.project(torch.tensor([[9.0, 9.0, 9.0], [0.0, 0.0, 0.1]], dtype=dtype))
    torch.testing.assert_close(mesh.deviation(far), torch.zeros(2, dtype=dtype), rtol=0, atol=1e-6)


def test_projection_differentiates_to_that_onto_the_plane(ball, generator):
    x = ball.uniform((5,), generator=generator, dtype=torch.float64)
    x = torch.cat((x, ball.vertices[:1]))  # a corner of several triangles
    jacobian = torch.stack([torch.autograd.functional.jacobian(ball.project, each) for each in x])
    frame = ball.frame(x)
    torch.testing.assert_close(jacobian, frame.mT @ frame)
    u = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    ahead = torch.func.jvp(ball.project, (x,), (u,))[1]
    torch.testing.assert_close(ahead, (jacobian @ u.unsqueeze(-1)).squeeze(-1))


def test_lines_on_a_flat_mesh_are_straight_and_slide_along_its_boundary(plate, generator):
    x, y = plate.uniform((2, 200), generator=generator, dtype=torch.float64)
    torch.testing.assert_close(plate.exp(x, y - x), y, rtol=0, atol=1e-12)
    beyond = plate.exp(torch.tensor([0.5, 0.3, 0.0]).double(), torch.tensor([0.3, 0.9, 0.0]).double())
    torch.testing.assert_close(beyond, torch.tensor([0.8, 1.0, 0.0]).double())
    corner = plate.exp(torch.tensor([0.5, 0.3, 0.0]).double(), torch.tensor([3.0, 2.0, 0.0]).double())
    torch.testing.assert_close(corner, torch.tensor([1.0, 1.0, 0.0]).double())


def test_lines_unfold_at_edges(generator):
    box = manifolds.Mesh(*cube())
    x = torch.tensor([0.3, 0.2, 1.0], dtype=torch.float64)
    around = box.exp(x, torch.tensor([4.0, 0.0, 0.0]).double())
    torch.testing.assert_close(around, x)
    # Down the side x = 1, which continues the top at the same y.
    side = box.exp(x, torch.tensor([1.2, 0.4, 0.0]).double())
    torch.testing.assert_close(side, torch.tensor([1.0, 0.6, 0.5]).double())
    # A line from near a corner is reversible.
    x = box.uniform((100,), generator=generator, dtype=torch.float64)
    u = tangents(box, x, 0.7, generator)
    y = box.exp(x, u)
    assert torch.allclose(box.deviation(y), torch.zeros(100).double(), atol=1e-12)


def test_lines_on_a_fine_sphere_are_near_great_circles(ball, generator):
    round_ball = manifolds.Sphere(2)
    x = ball.uniform((100,), generator=generator, dtype=torch.float64)
    u = tangents(ball, x, 0.5, generator)
    start = round_ball.project(x)
    expected = round_ball.exp(start, round_ball.to_tangent(start, u))
    assert float((ball.exp(x, u) - expected).norm(dim=1).max()) < 0.03


def test_a_line_has_the_derivatives_of_unfolded_planes(plate, generator):
    x, y = plate.uniform((2, 1), generator=generator, dtype=torch.float64)
    expected = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    slopes = torch.autograd.functional.jacobian(plate.exp, (x[0], y[0] - x[0]))
    for slope in slopes:
        torch.testing.assert_close(slope, expected)
    u = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    ahead = torch.func.jvp(plate.exp, (x, y - x), (u, u))[1]
    torch.testing.assert_close(ahead, 2 * u @ expected)


def test_tangent_vectors_lie_in_the_triangle_and_are_continuous_at_edges(ball):
    """What leaves a triangle through an edge is what enters the next, up to the square of the angle between them."""
    face = torch.arange(len(ball.faces))
    corners = ball.vertices[ball.faces]
    middle = corners[:, 1:].mean(1)
    across = ball._face[3 * face]
    inside = [middle + 1e-9 * (corners.mean(1)[each] - middle) for each in (face, across)]
    vectors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    edge = corners[:, 2] - corners[:, 1]
    inward = -ball._slopes[:, 0] / ball._slopes[:, 0].norm(dim=1, keepdim=True)
    entry = torch.gather(ball._slopes[across], 1, ball._entry[3 * face].reshape(-1, 1, 1).expand(-1, 1, 3)).squeeze(1)
    onward = entry / entry.norm(dim=1, keepdim=True)
    out, into = (ball.to_tangent(each, vectors) for each in inside)
    normal = torch.linalg.cross(edge, inward)
    assert float((out * normal).sum(1).abs().max()) < 1e-7
    gap = (out * inward).sum(1) - (into * onward).sum(1)
    plain = ((inward - onward) @ vectors).abs()  # of projections onto the triangles
    assert float(gap.abs().max()) < 0.1 * float(plain.max())


def test_transport_keeps_lengths_and_follows_an_edge(ball, generator):
    x, y = ball.uniform((2, 50), generator=generator, dtype=torch.float64)
    u = tangents(ball, x, 1.0, generator)
    v = ball.transport(x, y, u)
    torch.testing.assert_close((ball.frame(y) @ v.unsqueeze(-1)).norm(dim=1).squeeze(-1), torch.ones(50).double())
    torch.testing.assert_close(v.norm(dim=1), torch.ones(50).double())
    box = manifolds.Mesh(*cube())
    top, side = torch.tensor([0.5, 0.5, 1.0]).double(), torch.tensor([1.0, 0.5, 0.5]).double()
    turned = box.transport(top, side, torch.tensor([1.0, 2.0, 0.0]).double())
    torch.testing.assert_close(turned, torch.tensor([0.0, 2.0, -1.0]).double())


def test_draws_have_the_density_that_is_stated(plate, generator):
    """Mean and second moments of a density ~ 1 + x + 3 y on the square; fails once in 10,000 seeds."""
    values = 1 + plate.vertices[:, 0] + 3 * plate.vertices[:, 1]
    x = plate.draw(values, (40_000,), generator=generator, dtype=torch.float64)
    expected = torch.tensor([(0.5 + 1 / 3 + 0.75) / 3, (0.5 + 0.25 + 1.0) / 3], dtype=torch.float64)
    error = (x[:, :2].mean(0) - expected) / x[:, :2].std(0) * 200
    assert float(error.abs().max()) < 4.2
    torch.testing.assert_close(plate.log_density(values, x), ((1 + x[:, 0] + 3 * x[:, 1]) / 3).log())
    assert plate.log_volume == pytest.approx(0.0)
    box = manifolds.Mesh(*cube())
    assert box.log_volume == pytest.approx(math.log(6))
    sides = (box.uniform((6000,), generator=generator)[:, :, None] - torch.tensor([0.0, 1.0])).abs() < 1e-6
    assert float((sides.sum(0) - 1000).abs().max()) < 5 * 29


def test_a_mesh_is_saved_with_its_flow_and_casts_without_loss(tmp_path, plate):
    mesh = manifolds.Mesh(plate.vertices.float(), plate.faces, 4, manifolds.Diffusion(0.2))
    flow = ContinuousFlow(fields.MLP(3, (8,)), manifolds.Uniform(mesh))
    assert flow.manifold is flow.base.manifold is mesh
    again = cflow.load(cflow.save(flow, tmp_path / "flow"))
    loaded = again.manifold
    assert loaded is again.base.manifold
    assert sum("eigenvalues" in name for name in again.state_dict()) == 1
    x = flow.sample((3,))
    assert torch.allclose(again.log_prob(x), torch.zeros(3), atol=1e-5)
    ours, theirs = mesh.state_dict(), loaded.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.equal(one, two) for one, two in zip(mesh.buffers(), loaded.buffers()))
    assert loaded.distance == mesh.distance
    half = copy.deepcopy(mesh).bfloat16()
    assert all(torch.equal(one, two) for one, two in zip(mesh.buffers(), half.buffers()))
    assert torch.equal(mesh.double().vertices, loaded.vertices.double())
    fresh = manifolds.Mesh(loaded.vertices.double(), loaded.faces, mesh.eigenpairs)
    assert torch.equal(mesh._slopes, fresh._slopes)


def test_wrong_tables_are_named(plate):
    points, faces = plate.vertices, plate.faces
    wrong = {
        "indices from": (points, faces + 5),
        "pass points": (points[:, :2], faces),
        "NaN": (points * torch.nan, faces),
        "no area": (points, torch.cat((faces, torch.tensor([[0, 1, 1]])))),
        "3 faces": (points, torch.cat((faces, faces[:1].roll(1, 1)))),
        "opposite orientations": (points, torch.cat((faces[:1].flip(1), faces[1:]))),
        "2 separate pieces": (torch.cat((points, points + 2)), torch.cat((faces, faces + len(points)))),
    }
    for message, tables in wrong.items():
        with pytest.raises(ValueError, match=message):
            manifolds.Mesh(*tables)
    with pytest.raises(ValueError, match="from 1 to 80"):
        manifolds.Mesh(points, faces, eigenpairs=81)
    with pytest.raises(ValueError, match="eigenfunctions \\[81, K\\]"):
        manifolds.Mesh(points, faces, eigenpairs=(torch.ones(3), torch.ones(5, 3)))
    with pytest.raises(TypeError, match="Premetric"):
        plate.log(points[0], points[1])
    unused = manifolds.Mesh(torch.cat((points, points[:1] + 9)), faces, eigenpairs=1)
    assert len(unused.vertices) == len(points)
