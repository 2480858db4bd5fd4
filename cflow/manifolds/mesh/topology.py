"""How the triangles of a mesh hang together, and the checks of a mesh."""

from __future__ import annotations

import numpy as np

__all__ = ["check", "neighbours"]


def check(vertices: np.ndarray, faces: np.ndarray) -> None:
    """Raises a ValueError unless the tables describe one connected surface with consistently oriented triangles.

    Args:
        vertices: the points ``[V, 3]``.
        faces: the indices of the corners ``[F, 3]``.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    shown = f"Mesh(vertices {list(vertices.shape)}, faces {list(faces.shape)})"
    if not np.isfinite(vertices).all():
        raise ValueError(f"{shown}: a vertex has a NaN or an infinity; pass finite points.")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(
            f"{shown}: faces have indices from {faces.min()} to {faces.max()}; pass those of rows of vertices, from 0."
        )
    sides = vertices[faces]
    sides = np.stack([sides[:, k] - sides[:, k - 1] for k in range(3)], 1)
    twice_area = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
    flat = twice_area <= 1e-9 * (sides**2).sum((1, 2))
    if flat.any():
        raise ValueError(f"{shown}: face {flat.nonzero()[0][0]} has no area, and {flat.sum() - 1} more; remove them.")
    edges = np.concatenate([faces[:, [k, (k + 1) % 3]] for k in range(3)])
    found, counts = np.unique(np.sort(edges, 1), axis=0, return_counts=True)
    if counts.max() > 2:
        raise ValueError(
            f"{shown}: the edge {found[counts.argmax()].tolist()} belongs to {counts.max()} faces, so this is not a "
            f"surface; remove faces."
        )
    found, counts = np.unique(edges, axis=0, return_counts=True)
    if counts.max() > 1:
        raise ValueError(
            f"{shown}: the two faces at the edge {found[counts.argmax()].tolist()} have opposite orientations; reverse "
            f"the corners of some faces."
        )
    used = np.unique(faces)
    links = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (len(vertices),) * 2)
    label = connected_components(links, directed=False)[1][used]
    if (label != label[0]).any():
        raise ValueError(f"{shown}: it has {len(np.unique(label))} separate pieces; pass one connected mesh.")


def neighbours(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds what lies across each edge: ``(face [F, 3], corner [F, 3])``.

    Edge ``i`` of a face is opposite to its corner ``i``. The result is the face beyond, -1 at the boundary, and the
    corner of that face which is opposite to the edge.

    Args:
        faces: the indices of the corners ``[F, 3]``, consistently oriented.
    """
    count, size = len(faces), int(faces.max()) + 1
    start, stop = np.roll(faces, -1, 1).astype(np.int64), np.roll(faces, -2, 1).astype(np.int64)
    # Neighbours run along their common edge in opposite directions.
    own, other = (start * size + stop).ravel(), (stop * size + start).ravel()
    order = np.argsort(own)
    place = np.searchsorted(own[order], other).clip(max=3 * count - 1)
    index = order[place]
    matched = own[index] == other
    face = np.where(matched, index // 3, -1)
    corner = np.where(matched, index % 3, -1)
    return face.reshape(count, 3), corner.reshape(count, 3)
