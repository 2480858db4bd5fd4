"""Pictures of densities and samples on triangle meshes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from cflow.plot.figure import ORANGE, dot, finish, new_figure

__all__ = ["surfaces"]


def surfaces(
    mesh: Any,
    values: Mapping[str, Tensor],
    path: str | os.PathLike | None = None,
    *,
    samples: Mapping[str, Tensor] | None = None,
    up: Literal["x", "y", "z"] = "z",
    elevation: float = 20.0,
    azimuth: float = -60.0,
):
    """Draws values on a mesh side by side, in one scale of colours, with samples on the side that is seen.

    The scale ends where at most one triangle in 200 has more, so that a narrow peak does not hide the rest.

    Args:
        mesh: the mesh, a :class:`cflow.manifolds.Mesh`.
        values: maps titles to values at the vertices ``[V]`` or on the triangles ``[F]``.
        path: the file to write; None writes no file.
        samples: maps titles to points ``[N, 3]`` of the mesh. Default: None, no samples.
        up: the axis that points upwards.
        elevation: the angle of view above the horizon, in degrees.
        azimuth: the angle of view around the vertical axis, in degrees.

    Returns the figure.

    Raises:
        ValueError: if there are no values, their number is not that of vertices or triangles, or samples have a title
            without values.

    Example:
        >>> import torch
        >>> from cflow import manifolds
        >>> corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]])
        >>> mesh = manifolds.Mesh(corners, torch.tensor([[0, 1, 2], [2, 1, 3]]))
        >>> len(surfaces(mesh, {"height": corners[:, 2]}).axes)
        1
    """
    import numpy as np
    from matplotlib import colormaps
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    samples = {} if samples is None else samples
    sizes = (len(mesh.vertices), len(mesh.faces))
    wrong = [title for title, each in values.items() if each.dim() != 1 or len(each) not in sizes]
    wrong += [title for title in samples if title not in values]
    if not values or wrong:
        raise ValueError(
            f"plot.surfaces(values of {', '.join(values) or 'nothing'}; wrong: {', '.join(wrong)}): pass values at the "
            f"{sizes[0]} vertices or on the {sizes[1]} triangles under each title."
        )
    faces = mesh.faces.cpu()
    corners = mesh.vertices.detach().cpu().double()[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    figure = new_figure(4.2 * len(values), 4.2)
    shown = {title: each.detach().cpu().double() for title, each in values.items()}
    shown = {title: (each if len(each) == len(faces) else each[faces].mean(1)).numpy() for title, each in shown.items()}
    top = max(float(np.quantile(each, 0.995)) for each in shown.values()) or 1.0
    for number, (title, each) in enumerate(shown.items(), 1):
        axis = figure.add_subplot(1, len(values), number, projection="3d", computed_zorder=False)
        axis.view_init(elevation, azimuth, vertical_axis=up)
        view = _direction(elevation, azimuth, up)
        colours = colormaps["viridis"]((each / top).clip(0, 1))
        # Light from the viewer, so that the shape is seen.
        colours[:, :3] *= 0.55 + 0.45 * np.abs(normals @ view)[:, None]
        axis.add_collection3d(Poly3DCollection(corners.numpy(), facecolors=colours, edgecolors=colours, linewidths=0.2))
        if title in samples:
            points = samples[title].detach()
            seen = normals[mesh.locate(points.to(mesh.vertices))[0].cpu()] @ view > 0
            points = points.cpu().double().numpy()[seen]
            axis.scatter(*points.T, s=dot(len(points)) / 2, color=ORANGE, lw=0, depthshade=False, zorder=5)
        low, high = corners.numpy().min((0, 1)), corners.numpy().max((0, 1))
        axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
        axis.set_box_aspect(high - low + 1e-3 * (high - low).max(), zoom=1.2)
        axis.set_axis_off()
        axis.set_title(title, y=1.02)
    return finish(figure, path)


def _direction(elevation: float, azimuth: float, up: str):
    """Returns the unit vector from the mesh to the viewer."""
    import numpy as np

    e, a = np.deg2rad(elevation), np.deg2rad(azimuth)
    vector = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    return np.roll(vector, {"z": 0, "y": -1, "x": -2}[up])
