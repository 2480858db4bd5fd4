"""Pictures of densities in the plane."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from cflow.plot.figure import axis_on, cells, dot, finish, points_of

__all__ = ["Grid", "densities", "density", "grid"]

Bounds = tuple[float, float] | tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Grid:
    """Holds a density at the centres of the squares of a grid.

    Attributes:
        height: the density, ``[resolution, resolution]``, rows from the bottom up.
        across, up: the ends of the two axes.
        mass: the probability inside the grid.
    """

    height: Tensor
    across: tuple[float, float]
    up: tuple[float, float]
    mass: float

    def __repr__(self) -> str:
        """Shows the size and the mass, not the heights."""
        return f"Grid({list(self.height.shape)}, across={self.across}, up={self.up}, mass={self.mass:.4g})"


@torch.no_grad()
def grid(
    source: Any,
    *,
    bounds: Bounds = (-4.0, 4.0),
    resolution: int = 200,
    chunk: int = 4096,
    device: torch.device | str | None = None,
    name: str = "plot.grid",
) -> Grid:
    """Evaluates a density on a grid, chunk by chunk and without gradients.

    Args:
        source: a flow (of a conditional one pass ``flow(context)``), or a function that computes log-densities ``[N]``
            of points ``[N, 2]``.
        bounds: ``(low, high)`` for both axes, or one pair for each.
        resolution: number of squares along each axis.
        chunk: number of points that are evaluated at a time.
        device: device of the points. Default: that of the flow.
        name: name of the function in errors.

    Cost: ``resolution`` squared evaluations.

    Raises:
        ValueError: if ``bounds`` do not increase, ``resolution`` is below 2, or the density returns another shape or
            NaN.

    Example:
        >>> from cflow import bases
        >>> round(grid(bases.Normal(2), bounds=(-3, 3), resolution=50).mass, 3)
        0.995
    """
    across, up = _sides(name, bounds, resolution)
    log_prob = getattr(source, "log_prob", source)
    device = getattr(source, "device", None) if device is None else device
    middle = (torch.arange(resolution, device=device) + 0.5) / resolution
    columns, rows = (low + (high - low) * middle for low, high in (across, up))
    points = torch.cartesian_prod(rows, columns).flip(-1)
    values = [log_prob(part) for part in points.split(chunk)]
    if any(value.shape != (len(part),) for value, part in zip(values, points.split(chunk))):
        raise ValueError(
            f"{name}: log_prob returned shape {list(values[0].shape)} for points of shape "
            f"{list(points[:chunk].shape)}; return one value per point, [N]."
        )
    height = torch.cat(values).double().exp().cpu()
    if bool(height.isnan().any()):
        raise ValueError(
            f"{name}: log_prob is NaN at {int(height.isnan().sum())} of {len(height)} points; find the cause first."
        )
    mass = float(height.sum()) * (across[1] - across[0]) * (up[1] - up[0]) / resolution**2
    return Grid(rearrange(height, "(h w) -> h w", h=resolution), across, up, mass)


def density(
    source: Any,
    path: str | os.PathLike | None = None,
    *,
    bounds: Bounds = (-4.0, 4.0),
    samples: Any = None,
    resolution: int = 200,
    chunk: int = 4096,
    device: torch.device | str | None = None,
    names: Sequence[str] | None = None,
    title: str = "",
    ax: Any = None,
):
    """Draws a density in the plane as colour.

    The title shows the probability inside the picture. If it is far from 1, the bounds are too tight, the grid is too
    coarse, or the density is wrong.

    Args:
        source: a flow or log-density as in :func:`grid`, or the result of :func:`grid`.
        path: the file to write; None writes no file.
        samples: points ``[M, 2]`` or a flow, drawn as dots.
        bounds, resolution, chunk, device: as for :func:`grid`.
        names: names of the two axes.
        title: title of the picture.
        ax: a matplotlib axis to draw in, instead of a new figure.

    Returns the figure. Cost: ``resolution`` squared evaluations.

    Raises:
        ValueError: as :func:`grid`.
    """
    options = {"bounds": bounds, "resolution": resolution, "chunk": chunk, "device": device}
    drawn = _on_grid("plot.density", source, options)
    figure, axis = axis_on(ax, 5.2, 4.6)
    picture = _colour(axis, drawn)
    if samples is not None:
        points = points_of("plot.density", samples)
        axis.scatter(*points.T, s=dot(len(points)) / 2, color="white", lw=0, alpha=0.5)
        axis.set(xlim=drawn.across, ylim=drawn.up)
    bar = figure.colorbar(picture, cax=axis.inset_axes((1.03, 0.0, 0.04, 1.0)))
    bar.set_label("probability density", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    axis.tick_params(labelsize=8)
    if names is not None:
        axis.set_xlabel(names[0], fontsize=9)
        axis.set_ylabel(names[1], fontsize=9)
    axis.set_title(f"{title}{chr(10) if title else ''}probability inside this plot: {drawn.mass:.1%}", fontsize=10)
    return finish(figure, path)


def densities(
    sources: Mapping[str, Any],
    path: str | os.PathLike | None = None,
    *,
    bounds: Bounds = (-4.0, 4.0),
    reference: Any = None,
    columns: int | None = None,
    resolution: int = 120,
    chunk: int = 4096,
    device: torch.device | str | None = None,
):
    """Draws several densities side by side, each with its name and the probability inside its picture.

    Every panel has its own scale of colour.

    Args:
        sources: maps names to flows or log-densities as in :func:`grid`, or to results of :func:`grid`.
        path: the file to write; None writes no file.
        bounds, resolution, chunk, device: as for :func:`grid`.
        reference: points ``[M, 2]`` or a flow, drawn in a first panel.
        columns: number of panels in a row. Default: chosen from the number of panels.

    Returns the figure. Cost: ``resolution`` squared evaluations of each density.

    Raises:
        ValueError: as :func:`density`, and if there are no densities.
    """
    if not sources:
        raise ValueError("plot.densities: no densities were given; pass a dict of name -> flow or log_prob.")
    options = {"bounds": bounds, "resolution": resolution, "chunk": chunk, "device": device}
    count = len(sources) + (reference is not None)
    columns = columns or math.ceil(math.sqrt(count * 1.6))
    figure, place = cells(math.ceil(count / columns), columns, 1.7, 1.7, header=0.22)
    grids = {name: _on_grid(f"plot.densities: {name}", source, options) for name, source in sources.items()}
    panel = 0
    if reference is not None:
        axis, panel = place(0, 0), 1
        points = points_of("plot.densities", reference)
        across, up = next(iter(grids.values())).across, next(iter(grids.values())).up
        axis.set_facecolor("black")
        axis.add_patch(_backdrop(across, up))
        axis.scatter(*points.T, s=dot(len(points)) / 8, color="white", lw=0, alpha=0.6)
        axis.set(xlim=across, ylim=up)
        axis.set_title("data", fontsize=8, pad=3)
    for name, drawn in grids.items():
        axis = place(*divmod(panel, columns))
        _colour(axis, drawn)
        axis.set_title(f"{name}, {drawn.mass:.1%} inside", fontsize=8, pad=3)
        panel += 1
    return finish(figure, path)


def _on_grid(name: str, source: Any, options: dict) -> Grid:
    """Evaluates a density on a grid, unless it already is one."""
    return source if hasattr(source, "height") else grid(source, name=name, **options)


def _backdrop(across: tuple[float, float], up: tuple[float, float]):
    """Makes a black background for points; an axis without ticks does not draw its own."""
    from matplotlib.patches import Rectangle

    return Rectangle((across[0], up[0]), across[1] - across[0], up[1] - up[0], color="black", zorder=0)


def _sides(name: str, bounds: Bounds, resolution: int) -> tuple[tuple[float, float], tuple[float, float]]:
    across, up = bounds if isinstance(bounds[0], Sequence) else (bounds, bounds)
    if not (across[0] < across[1] and up[0] < up[1]) or resolution < 2:
        raise ValueError(
            f"{name}(bounds={bounds}, resolution={resolution}): needs low < high and resolution >= 2; pass for "
            f"instance bounds=(-4, 4)."
        )
    return across, up


def _colour(axis, drawn: Grid):
    """Draws heights as colour; a few extreme values do not darken the rest."""
    flat = drawn.height.flatten()
    top = float(torch.quantile(flat[:: math.ceil(len(flat) / 1_000_000)], 0.999)) or None
    return axis.imshow(
        drawn.height.numpy(),
        origin="lower",
        extent=(*drawn.across, *drawn.up),
        cmap="magma",
        vmin=0,
        vmax=top,
        interpolation="bilinear",
        aspect="equal",
    )
