"""Pictures of points in the plane: samples, and their paths through a flow."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from einops import rearrange
from torch import Tensor

from cflow.plot.figure import BLUE, GREY, ORANGE, cells, dot, dress, legend, new_figure, numbers, points_of, save

__all__ = ["scatter", "scatters", "trajectories"]


def scatter(samples: Tensor, path: str | os.PathLike, *, reference: Tensor | None = None, title: str = "") -> Path:
    """Draws samples in the plane, over those of a reference if given.

    Shapes: ``samples [N, 2]``, ``reference [M, 2]``.

    Raises:
        ValueError: if the samples are not in the plane, or there are none.
    """
    samples = points_of("plot.scatter", samples)
    figure = new_figure(4.6, 4.6)
    axis = figure.subplots()
    if reference is not None:
        reference = points_of("plot.scatter", reference)
        axis.scatter(*reference.T, s=dot(len(reference)), color=ORANGE, alpha=0.6, lw=0, label="data", rasterized=True)
    label = "samples" if reference is not None else None
    axis.scatter(*samples.T, s=dot(len(samples)), color=BLUE, alpha=0.5, lw=0, label=label, rasterized=True)
    dress(axis, title)
    if reference is not None:
        legend(axis)
    return save(figure, path)


def scatters(
    samples: Mapping[str, Tensor], path: str | os.PathLike, *, reference: Tensor, columns: int | None = None
) -> Path:
    """Draws several sets of samples side by side, each under its name and over those of a reference.

    All panels show the square in which the reference lies; samples beyond its frame are not drawn.

    Shapes: ``samples`` name -> ``[N, 2]``, ``reference [M, 2]``.

    Raises:
        ValueError: if points are not in the plane, or there is nothing to draw.
    """
    if not samples:
        raise ValueError("plot.scatters: no samples were given; pass a dict of name -> points [N, 2].")
    true = points_of("plot.scatters: reference", reference)
    columns = columns or math.ceil(math.sqrt(len(samples) * 1.6))
    figure, place = cells(math.ceil(len(samples) / columns), columns, 1.7, 1.7, header=0.22)
    middle = (true.max(0) + true.min(0)) / 2
    reach = 0.6 * float((true.max(0) - true.min(0)).max()) or 1.0  # a tenth to spare on each side
    for k, (name, points) in enumerate(samples.items()):
        points = points_of(f"plot.scatters: {name}", points)
        axis = place(*divmod(k, columns))
        axis.scatter(*true.T, s=dot(len(true)) / 3, color=ORANGE, alpha=0.5, lw=0, rasterized=True)
        axis.scatter(*points.T, s=dot(len(points)) / 3, color=BLUE, alpha=0.5, lw=0, rasterized=True)
        axis.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
        axis.set_title(name, fontsize=8, pad=3)
    return save(figure, path)


def trajectories(trajectory: Tensor, path: str | os.PathLike, *, title: str = "", paths_shown: int = 400) -> Path:
    """Draws the paths of a flow in the plane, from the base (grey) to the data (blue).

    Shapes: ``trajectory [T, B, 2]``; lines are drawn for the first ``paths_shown`` samples, end points for all.

    Raises:
        ValueError: if the trajectory is not ``[T, B, 2]`` with at least two times.
    """
    if trajectory.ndim != 3 or trajectory.shape[-1] != 2 or len(trajectory) < 2 or trajectory.shape[1] == 0:
        raise ValueError(
            f"plot.trajectories(trajectory of shape {list(trajectory.shape)}): paths in the plane at two times or "
            f"more are needed, [T, B, 2]; for images use plot.image_trajectories."
        )
    from matplotlib.collections import LineCollection

    points = numbers(trajectory)
    figure = new_figure(4.6, 4.6)
    axis = figure.subplots()
    lines = rearrange(points[:, :paths_shown], "t b d -> b t d")
    axis.add_collection(LineCollection(lines, colors=ORANGE, linewidths=0.5, alpha=0.4, zorder=1, label="paths"))
    for time, colour, label in ((0, GREY, "base, t = 0"), (-1, BLUE, "data, t = 1")):
        axis.scatter(*points[time].T, s=dot(points.shape[1]), color=colour, lw=0, alpha=0.8, zorder=2, label=label)
    dress(axis, title)
    legend(axis)
    return save(figure, path)
