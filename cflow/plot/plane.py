"""Pictures of points in the plane: samples, and their paths through a flow."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from einops import rearrange

from cflow.plot.figure import BLUE, GREY, ORANGE, axis_on, cells, dot, dress, finish, legend, numbers, points_of

__all__ = ["scatter", "scatters", "trajectories"]


def scatter(
    samples: Any,
    path: str | os.PathLike | None = None,
    *,
    reference: Any = None,
    names: Sequence[str] | None = None,
    title: str = "",
    ax: Any = None,
):
    """Draws samples in the plane, over those of a reference if there is one.

    Args:
        samples: points ``[N, 2]``, or a flow for 2000 draws (of a conditional one pass ``flow(context)``).
        path: the file to write; None writes no file.
        reference: points ``[M, 2]``, or a flow.
        names: names of the two axes.
        title: title of the picture.
        ax: a matplotlib axis to draw in, instead of a new figure.

    Returns the figure.

    Raises:
        ValueError: if the samples are not points in the plane, or there are none.

    Example:
        >>> from cflow import bases
        >>> scatter(bases.Normal(2), names=("mass", "spin")).axes[0].get_xlabel()
        'mass'
    """
    samples = points_of("plot.scatter", samples)
    figure, axis = axis_on(ax, 4.6, 4.6)
    if reference is not None:
        reference = points_of("plot.scatter", reference)
        axis.scatter(*reference.T, s=dot(len(reference)), color=ORANGE, alpha=0.6, lw=0, label="data", rasterized=True)
    label = "samples" if reference is not None else None
    axis.scatter(*samples.T, s=dot(len(samples)), color=BLUE, alpha=0.5, lw=0, label=label, rasterized=True)
    dress(axis, title, names)
    if reference is not None:
        legend(axis)
    return finish(figure, path)


def scatters(
    samples: Mapping[str, Any], path: str | os.PathLike | None = None, *, reference: Any, columns: int | None = None
):
    """Draws several sets of samples side by side, each under its name and over those of a reference.

    All panels show the square of the reference; samples outside it are not shown.

    Args:
        samples: maps names to points ``[N, 2]`` or flows.
        path: the file to write; None writes no file.
        reference: points ``[M, 2]``, or a flow.
        columns: number of panels in a row. Default: chosen from the number of panels.

    Returns the figure.

    Raises:
        ValueError: if points are not in the plane, or there are no samples.
    """
    if not samples:
        raise ValueError("plot.scatters: no samples were given; pass a dict of name -> points [N, 2].")
    true = points_of("plot.scatters: reference", reference)
    columns = columns or math.ceil(math.sqrt(len(samples) * 1.6))
    figure, place = cells(math.ceil(len(samples) / columns), columns, 1.7, 1.7, header=0.22)
    middle = (true.max(0) + true.min(0)) / 2
    reach = 0.6 * float((true.max(0) - true.min(0)).max()) or 1.0  # 10 % wider on each side
    for k, (name, points) in enumerate(samples.items()):
        points = points_of(f"plot.scatters: {name}", points)
        axis = place(*divmod(k, columns))
        axis.scatter(*true.T, s=dot(len(true)) / 3, color=ORANGE, alpha=0.5, lw=0, rasterized=True)
        axis.scatter(*points.T, s=dot(len(points)) / 3, color=BLUE, alpha=0.5, lw=0, rasterized=True)
        axis.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
        axis.set_title(name, fontsize=8, pad=3)
    marks = [_mark("data", ORANGE), _mark("samples", BLUE)]
    figure.legend(handles=marks, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=8, frameon=False)
    return finish(figure, path)


def _mark(label: str, colour: str):
    """Makes a dot for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="o", ls="", ms=4, color=colour, label=label)


def trajectories(
    trajectory: Any,
    path: str | os.PathLike | None = None,
    *,
    names: Sequence[str] | None = None,
    title: str = "",
    paths_shown: int = 400,
    ax: Any = None,
):
    """Draws the paths of a flow in the plane, from the base (grey) to the data (blue).

    Args:
        trajectory: points ``[T, B, 2]``, or a continuous flow without a context, whose paths from ``paths_shown`` base
            samples are computed at 33 times.
        path: the file to write; None writes no file.
        names: names of the two axes.
        title: title of the picture.
        paths_shown: number of samples with a line; end points are drawn for all.
        ax: a matplotlib axis to draw in, instead of a new figure.

    Returns the figure.

    Raises:
        ValueError: if the trajectory is not ``[T, B, 2]`` with at least two times.
    """
    follow = getattr(trajectory, "trajectory", None)
    if follow is not None:
        trajectory = follow(trajectory.base.sample((paths_shown,)), times=33)
    if trajectory.ndim != 3 or trajectory.shape[-1] != 2 or len(trajectory) < 2 or trajectory.shape[1] == 0:
        raise ValueError(
            f"plot.trajectories(trajectory of shape {list(trajectory.shape)}): expected [T, B, 2] with two times or "
            f"more; for images use plot.image_trajectories."
        )
    from matplotlib.collections import LineCollection

    points = numbers(trajectory)
    figure, axis = axis_on(ax, 4.6, 4.6)
    lines = rearrange(points[:, :paths_shown], "t b d -> b t d")
    axis.add_collection(LineCollection(lines, colors=ORANGE, linewidths=0.5, alpha=0.4, zorder=1, label="paths"))
    for time, colour, label in ((0, GREY, "base, t = 0"), (-1, BLUE, "data, t = 1")):
        axis.scatter(*points[time].T, s=dot(points.shape[1]), color=colour, lw=0, alpha=0.8, zorder=2, label=label)
    dress(axis, title, names)
    legend(axis)
    return finish(figure, path)
