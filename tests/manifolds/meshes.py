"""Meshes of known geometry."""

import numpy as np
import torch


def square(count=8, dtype=torch.float64):
    """The unit square, of ``2 count^2`` triangles, whose diagonals have random directions."""
    side = np.linspace(0, 1, count + 1)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    x, y = np.divmod(np.arange(count * count), count)
    a = x * (count + 1) + y
    b, c, d = a + count + 1, a + count + 2, a + 1
    one = np.stack((a, b, c, a, c, d), -1).reshape(-1, 2, 3)
    other = np.stack((a, b, d, b, c, d), -1).reshape(-1, 2, 3)
    coin = np.random.default_rng(0).random(len(a)) < 0.5
    faces = np.where(coin[:, None, None], one, other).reshape(-1, 3)
    points = np.concatenate([grid, np.zeros((len(grid), 1))], 1)
    return torch.tensor(points, dtype=dtype), torch.tensor(faces)


def cube(dtype=torch.float64):
    """The surface of the unit cube, of 12 triangles."""
    points = torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=dtype)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return points, torch.tensor([corners for a, b, c, d in quads for corners in ((a, b, c), (a, c, d))])


def sphere(rounds=2, dtype=torch.float64):
    """The unit sphere: an icosahedron whose triangles are divided into four ``rounds`` times."""
    from scipy.spatial import ConvexHull

    golden = (1 + 5**0.5) / 2
    corners = [(0, s, t * golden) for s in (-1, 1) for t in (-1, 1)]
    points = np.array([np.roll(corner, k) for corner in corners for k in range(3)])
    for _ in range(rounds):
        faces = ConvexHull(points / np.linalg.norm(points, axis=1, keepdims=True)).simplices
        edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1), axis=0)
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
        points = np.concatenate([points, points[edges].mean(1)])
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    faces = ConvexHull(points).simplices.astype(np.int64)
    corner = points[faces]
    inward = np.linalg.det(corner) < 0
    faces[inward] = faces[inward][:, ::-1]
    return torch.tensor(points, dtype=dtype), torch.tensor(faces)
