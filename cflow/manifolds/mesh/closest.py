"""The closest point of a mesh: a grid of cells, each with the triangles that can be closest to its points."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["build_grid", "closest", "closest_weights"]

CELLS = 500_000  # the largest number of cells of the grid
PAIRS = 50_000  # points and triangles that are compared at once, while the grid is built
FEW, MORE = 8, 32  # candidates of the first and of the second round


def closest_weights(x: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the closest points of triangles: ``(weights [..., 3], squared distance [...])``.

    The weights of the corners are not negative and sum to one.

    Args:
        x: points ``[..., 3]``.
        corners: the corners of triangles ``[..., 3, 3]``, corner by corner.
    """
    a, b, c = corners.unbind(-2)
    u, v, p = b - a, c - a, x - a
    dot = lambda one, two: (one * two).sum(-1)
    uu, uv, vv, up, vp = dot(u, u), dot(u, v), dot(v, v), dot(u, p), dot(v, p)
    det = uu * vv - uv * uv
    wb, wc = (vv * up - uv * vp) / det, (uu * vp - uv * up) / det
    inside = (wb >= 0) & (wc >= 0) & (wb + wc <= 1)
    # The nearest points of the edges a-b, a-c and b-c.
    on_b, on_c = (up / uu).clamp(0, 1), (vp / vv).clamp(0, 1)
    on_bc = ((vp - up + uu - uv) / (uu + vv - 2 * uv)).clamp(0, 1)
    zero = torch.zeros_like(on_b)
    wbs = torch.stack((on_b, zero, 1 - on_bc, wb), -1)
    wcs = torch.stack((zero, on_c, on_bc, wc), -1)
    offsets = p.unsqueeze(-2) - wbs.unsqueeze(-1) * u.unsqueeze(-2) - wcs.unsqueeze(-1) * v.unsqueeze(-2)
    square = dot(offsets, offsets)
    square = torch.cat((square[..., :3], torch.where(inside, square[..., 3], math.inf).unsqueeze(-1)), -1)
    square, which = square.min(-1, keepdim=True)
    wb, wc = wbs.gather(-1, which), wcs.gather(-1, which)
    return torch.cat((1 - wb - wc, wb, wc), -1), square.squeeze(-1)


def build_grid(corners: Tensor) -> dict[str, Tensor]:
    """Builds the grid, for :func:`closest`.

    Near the surface the candidates of a cell contain the closest triangle of every point in it, in the order of their
    distances from the centre of the cell: a triangle is omitted if it is farther from the centre than the closest one
    by more than the diameter of the cell. A cell farther away has the candidates of the nearest such cell.

    Args:
        corners: the corners ``[F, 3, 3]``, in float64 on the CPU.

    Returns:
        ``origin [3]``, ``size []`` and ``shape [3]`` of the grid; ``row``, one number for each cell; and by row
        ``centre [R, 3]`` and ``start [R + 1]``, the place of its first candidate in ``candidates`` and ``distances``.
    """
    from scipy.ndimage import distance_transform_edt

    triangles = corners.numpy()
    area = 0.5 * np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
    low, high = triangles.min(1), triangles.max(1)
    extent = (high.max(0) - low.min(0)).max()
    size = max(0.8 * math.sqrt(area.mean()), extent / 400)
    size = max(size, float(np.prod(np.ptp(triangles, (0, 1)) + 4 * size) / CELLS) ** (1 / 3))
    origin = low.min(0) - 2 * size
    shape = np.ceil((high.max(0) - origin) / size).astype(np.int64) + 2
    radius = size * math.sqrt(3) / 2 * (1 + 1e-6)
    table = np.full(int(np.prod(shape)), -1)
    # First the cells that may touch the surface, then the triangles that may be closest in those.
    face, cell, far = _pairs(corners, low, high, radius, origin, size, shape, table < 0)
    table[cell[far <= radius]] = 0
    face, cell, far = _pairs(corners, low, high, 3 * radius, origin, size, shape, table == 0)
    order = np.lexsort((far, cell))
    face, cell, far = face[order], cell[order], far[order]
    cells, first, row = np.unique(cell, return_index=True, return_inverse=True)
    good = far <= far[first][row] + 2 * radius
    table[cells] = np.arange(len(cells))
    table = table.reshape(shape)
    places = distance_transform_edt(table < 0, return_distances=False, return_indices=True)
    counts = np.bincount(row[good], minlength=len(cells))
    return {
        "origin": torch.from_numpy(origin),
        "size": torch.tensor(size, dtype=torch.float64),
        "shape": torch.from_numpy(shape),
        "row": torch.from_numpy(table[tuple(places)].ravel()),
        "centre": torch.from_numpy(_centres(cells, origin, size, shape)),
        "start": torch.from_numpy(np.concatenate([[0], counts.cumsum()])),
        "candidates": torch.from_numpy(face[good]),
        "distances": torch.from_numpy(far[good]),
    }


def _centres(cell, origin, size, shape):
    return origin + size * (np.stack(np.unravel_index(cell, shape), -1) + 0.5)


def _pairs(corners, low, high, margin, origin, size, shape, wanted):
    """Finds triangles and cells whose centres are at most ``margin`` from them: ``(face, cell, distance)``."""
    first = np.ceil((low - margin - origin) / size - 0.5).astype(np.int64).clip(0, shape - 1)
    last = np.floor((high + margin - origin) / size - 0.5).astype(np.int64).clip(0, shape - 1)
    spans = last - first + 1
    counts = spans.prod(1)
    face = np.repeat(np.arange(len(low)), counts)
    place = np.arange(len(face)) - np.repeat(counts.cumsum() - counts, counts)
    spans = spans[face]
    x, rest = np.divmod(place, spans[:, 1] * spans[:, 2])
    cell = first[face] + np.stack((x, *np.divmod(rest, spans[:, 2])), -1)
    cell = np.ravel_multi_index(tuple(cell.T), shape)
    kept = wanted[cell]
    face, cell = face[kept], cell[kept]
    centres = torch.from_numpy(_centres(cell, origin, size, shape))
    far = [closest_weights(x, corners[torch.from_numpy(part)])[1] for x, part in _parts(centres, face)]
    far = torch.cat(far).sqrt().numpy()
    return face[far <= margin], cell[far <= margin], far[far <= margin]


def _parts(centres, face):
    for start in range(0, max(1, len(face)), PAIRS):
        yield centres[start : start + PAIRS], face[start : start + PAIRS]


def closest(mesh, x: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the closest points of a mesh: ``(face [n], weights of its corners [n, 3])``.

    A point is first compared with the few candidates that are closest to the centre of its cell. It needs more only if
    the next one could be closer: its distance from the centre, less that of the point, is a lower bound.

    Args:
        mesh: the mesh, with the tables of :func:`build_grid`.
        x: points ``[n, 3]``.
    """
    cell = ((x - mesh._origin) / mesh._size).nan_to_num().long()
    cell = torch.minimum(cell.clamp(min=0), mesh._shape - 1)
    row = mesh._row[(cell[:, 0] * mesh._shape[1] + cell[:, 1]) * mesh._shape[2] + cell[:, 2]]
    start, stop = mesh._start[row], mesh._start[row + 1]
    away = (x - mesh._centre[row].to(x.dtype)).square().sum(1).sqrt()
    best, face, weights = torch.full_like(away, math.inf), torch.zeros_like(row), x.new_zeros(len(x), 3)
    rest, done = None, 0
    for width in (FEW, MORE, None):
        if rest is not None:
            bound = mesh._distances[torch.minimum(start + done, stop - 1)].to(x.dtype) - away[rest]
            more = ((start + done < stop) & (best[rest].sqrt() * (1 - 1e-5) > bound)).nonzero().squeeze(1)
            if not len(more):
                break
            rest, start, stop = rest[more], start[more], stop[more]
        width = int((stop - start).max()) - done if width is None else width
        columns = torch.arange(done, done + width, device=x.device)
        places = torch.minimum(start.unsqueeze(1) + columns, stop.unsqueeze(1) - 1)
        faces = mesh._candidates[places]
        points = x if rest is None else x[rest]
        each, square = closest_weights(points.unsqueeze(1), mesh._corners[faces].to(x.dtype))
        square, which = square.min(1, keepdim=True)
        square, nearest = square.squeeze(1), faces.gather(1, which).squeeze(1)
        each = each.gather(1, which.unsqueeze(-1).expand(-1, 1, 3)).squeeze(1)
        if rest is None:
            best, face, weights, rest = square, nearest, each, torch.arange(len(x), device=x.device)
        else:
            better = square < best[rest]
            place = rest[better]
            best[place], face[place], weights[place] = square[better], nearest[better], each[better]
        done += width
    return face, weights
