"""Pictures of tori: densities and points on squares of two angles in degrees, as Ramachandran plots."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cflow.plot.density_plots import grid
from cflow.plot.figure import BLUE, dot, finish, new_figure, numbers, samples_of

__all__ = ["torus"]

DECADES = 4  # of density that the colours show


def torus(
    source: Any,
    path: str | os.PathLike | None = None,
    *,
    samples: Any = None,
    period: float = 2 * math.pi,
    names: Sequence[str] | None = None,
    resolution: int = 120,
    chunk: int = 4096,
    title: str = "",
    ax: Any = None,
):
    """Draws points of a torus, or a density of two angles as colour, on squares from -180 to 180 degrees.

    Points with more than two angles get a square for each pair of neighbours: first and second, second and third, and
    so on. The colours of a density are logarithmic, over four powers of ten. Its title shows the probability on the
    square, which is 1 up to the error of the grid. If it is not, the density is not periodic, or the grid is too
    coarse.

    Args:
        source: points ``[N, D]`` of angles; every real number stands for its class. Or a density: a flow over two
            angles, or a function that computes log-densities ``[N]`` of points ``[N, 2]``.
        path: the file to write; None writes no file.
        samples: points ``[N, 2]`` that are drawn as dots over a density; or a flow for 2000 draws.
        period: the period of the angles. Default: 2 pi, for radians.
        names: names of the angles.
        resolution: number of squares of the grid along each angle.
        chunk: number of points that are evaluated at a time.
        title: title of the picture.
        ax: a matplotlib axis to draw in, instead of a new figure; for two angles.

    Returns the figure. Cost: ``resolution`` squared evaluations of a density.

    Raises:
        ValueError: if points do not have two angles or more, ``ax`` is passed for more than two, or as
            :func:`cflow.plot.grid` for a density.

    Example:
        >>> torus(torch.tensor([[0.1, -3.0], [6.2, 9.0]]), names=("phi", "psi")).axes[0].get_xlabel()
        'phi, degrees'
    """
    if not torch.is_tensor(source):
        figure, axis = (ax.figure, ax) if ax is not None else _square()
        drawn = grid(source, bounds=(-period / 2, period / 2), resolution=resolution, chunk=chunk, name="plot.torus")
        bar = figure.colorbar(_colour(axis, drawn.height), cax=axis.inset_axes((1.03, 0.0, 0.04, 1.0)))
        bar.set_label("probability density" + (" per radian squared" if period == 2 * math.pi else ""), fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
        title = f"{title}{chr(10) if title else ''}probability on this square: {drawn.mass:.1%}"
        if samples is not None:
            _dots(axis, degrees_of(samples_of(samples, 2000), period), "white", 0.6)
        _dress(axis, title, names)
        return finish(figure, path)
    points = degrees_of(source, period)
    pairs = points.shape[1] - 1
    if ax is not None and pairs > 1:
        raise ValueError(
            f"plot.torus(points of {pairs + 1} angles, ax=...): one axis shows two angles; pass two, or no ax."
        )
    if ax is not None or pairs == 1:
        figure, axis = (ax.figure, ax) if ax is not None else _square()
        axes = [axis]
    else:
        figure = new_figure(3.1 * pairs, 3.4)
        axes = figure.subplots(1, pairs)
        figure.subplots_adjust(wspace=0.45)
    for k, axis in enumerate(axes):
        _dots(axis, points[:, k : k + 2], BLUE, 0.5)
        _dress(axis, title if k == 0 else "", None if names is None else names[k : k + 2])
    return finish(figure, path)


def degrees_of(x: Tensor, period: float) -> Tensor:
    """Returns angles in degrees from -180 to 180, ``[N, D]``."""
    if x.ndim != 2 or x.shape[1] < 2 or len(x) == 0:
        raise ValueError(
            f"plot.torus(points of shape {list(x.shape)}): a square shows two angles; pass [N, 2] or more angles."
        )
    x = x.detach().double().cpu() * (360 / period)
    return torch.remainder(x + 180, 360) - 180


def _colour(axis, height: Tensor):
    """Draws heights on a square; a few extreme values do not darken the rest."""
    from matplotlib.colors import LogNorm

    top = float(torch.quantile(height.flatten(), 0.999)) or 1.0
    norm = LogNorm(top / 10**DECADES, top)
    shown = numbers(height.clamp(min=norm.vmin))
    return axis.imshow(shown, origin="lower", extent=(-180, 180, -180, 180), cmap="magma", norm=norm, aspect="equal")


def _dots(axis, degrees: Tensor, colour: str, alpha: float) -> None:
    points = numbers(degrees)
    axis.scatter(*points.T, s=dot(len(points)) / 4, color=colour, alpha=alpha, lw=0, rasterized=True)


def _dress(axis, title: str, names: Sequence[str] | None) -> None:
    """Sets the limits, ticks and labels of a square."""
    names = ("first angle", "second angle") if names is None else names
    axis.set(xlim=(-180, 180), ylim=(-180, 180), xticks=range(-180, 181, 60), yticks=range(-180, 181, 60))
    axis.set_xlabel(f"{names[0]}, degrees", fontsize=9)
    axis.set_ylabel(f"{names[1]}, degrees", fontsize=9)
    axis.set_aspect("equal")
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.2, lw=0.6)
    axis.set_axisbelow(True)
    axis.set_title(title, fontsize=10)


def _square():
    """Makes a figure with one square."""
    figure = new_figure(4.6, 4.4)
    return figure, figure.subplots()
