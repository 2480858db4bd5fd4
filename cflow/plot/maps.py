"""Pictures of the sphere: densities and points on a map of equal areas."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from cflow.plot.figure import BLUE, GREY, dot, finish, new_figure, numbers, samples_of

__all__ = ["sphere"]

DECADES = 4  # of density that a logarithmic scale of colours shows


def sphere(
    source: Any,
    path: str | os.PathLike | None = None,
    *,
    samples: Any = None,
    resolution: int = 120,
    scale: str = "log",
    chunk: int = 4096,
    title: str = "",
    ax: Any = None,
):
    """Draws points, or a density as colour, on a map of the sphere in Mollweide's projection, which keeps areas.

    The title of a density shows the probability on the map, which is 1 up to the error of the grid. If it is not, the
    grid is too coarse for narrow peaks, or the density is wrong.

    Args:
        source: points: unit vectors ``[N, 3]``, or latitude and longitude in degrees ``[N, 2]``. Or a density per
            steradian: a flow over unit vectors, or a function that computes log-densities ``[N]`` of unit vectors
            ``[N, 3]``. Of a flow with the transform ``bijections.LatLon`` pass the flow before the transform.
        path: the file to write; None writes no file.
        samples: points that are drawn as dots over a density, as ``source``; or a flow for 2000 draws.
        resolution: number of rows of the grid from pole to pole; there are twice as many columns.
        scale: the colours of a density: ``"log"`` shows four powers of ten, ``"linear"`` starts at zero.
        chunk: number of points that are evaluated at a time.
        title: title of the picture.
        ax: a matplotlib axis to draw in, made with ``projection="mollweide"``, instead of a new figure. An axis
            without a projection shows radians of longitude and latitude.

    Returns the figure. Cost: ``2 * resolution ** 2`` evaluations of a density.

    Raises:
        ValueError: if points are not on a sphere, ``resolution`` is below 2, ``scale`` is unknown, or a density returns
            another shape or NaN.

    Example:
        >>> from cflow import manifolds
        >>> uniform = manifolds.Uniform(manifolds.Sphere(2))
        >>> sphere(uniform, samples=uniform, resolution=20).axes[0].get_title()
        'probability on this map: 100.0%'
    """
    if scale not in ("log", "linear"):
        raise ValueError(f"plot.sphere(scale={scale!r}): there is no such scale; pass 'log' or 'linear'.")
    figure, axis = (ax.figure, ax) if ax is not None else _map()
    if torch.is_tensor(source):
        points = degrees_of("plot.sphere", source)
        _dots(axis, points, BLUE, 0.5)
    else:
        height, mass = _on_map(source, resolution, chunk)
        bar = figure.colorbar(_colour(axis, height, scale), ax=axis, orientation="horizontal", shrink=0.6, pad=0.07)
        bar.set_label("probability density per steradian", fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
        title = f"{title}{chr(10) if title else ''}probability on this map: {mass:.1%}"
        if samples is not None:
            _dots(axis, degrees_of("plot.sphere", samples_of(samples, 2000)), "white", 0.6)
    axis.tick_params(labelsize=6, colors=GREY)
    axis.grid(alpha=0.25, lw=0.5)
    axis.set_title(title, fontsize=10)
    return finish(figure, path)


def degrees_of(name: str, x: Tensor) -> Tensor:
    """Returns latitude and longitude in degrees ``[N, 2]`` of unit vectors, or of such degrees."""
    if x.ndim != 2 or x.shape[1] not in (2, 3) or len(x) == 0:
        raise ValueError(
            f"{name}(points of shape {list(x.shape)}): a map shows unit vectors [N, 3], or latitude and longitude in "
            f"degrees [N, 2]."
        )
    x = x.detach().double().cpu()
    if x.shape[1] == 2:
        if bool((x[:, 0].abs() > 90).any()):
            raise ValueError(
                f"{name}: {int((x[:, 0].abs() > 90).sum())} of {len(x)} latitudes are beyond 90 degrees; pass "
                f"latitude, then longitude."
            )
        return torch.stack([x[:, 0], torch.remainder(x[:, 1] + 180, 360) - 180], 1)
    length = x.norm(dim=1)
    if bool(((length - 1).abs() > 1e-2).any()):
        raise ValueError(
            f"{name}: lengths from {float(length.min()):.3g} to {float(length.max()):.3g}; divide by them."
        )
    up = torch.atan2(x[:, 2], torch.hypot(x[:, 0], x[:, 1]))
    return torch.rad2deg(torch.stack([up, torch.atan2(x[:, 1], x[:, 0])], 1))


@torch.no_grad()
def _on_map(source: Any, resolution: int, chunk: int) -> tuple[Tensor, float]:
    """Evaluates a density at the centres of cells, ``[resolution, 2 * resolution]``, and its integral."""
    if resolution < 2:
        raise ValueError(f"plot.sphere(resolution={resolution}): a map has two rows at least; pass 120.")
    log_prob = getattr(source, "log_prob", source)
    up = ((torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution - 0.5) * math.pi
    around = ((torch.arange(2 * resolution, dtype=torch.float64) + 0.5) / resolution - 1) * math.pi
    up, around = torch.meshgrid(up, around, indexing="ij")
    points = torch.stack([up.cos() * around.cos(), up.cos() * around.sin(), up.sin()], -1).reshape(-1, 3)
    points = points.to(getattr(source, "device", None), getattr(source, "dtype", None) or torch.get_default_dtype())
    values = [log_prob(part) for part in points.split(chunk)]
    if any(value.shape != (len(part),) for value, part in zip(values, points.split(chunk))):
        raise ValueError(
            f"plot.sphere: log_prob returned shape {list(values[0].shape)} for unit vectors of shape "
            f"{list(points[:chunk].shape)}; return one value per point, [N]."
        )
    height = torch.cat(values).double().cpu().exp().reshape(resolution, 2 * resolution)
    if bool(height.isnan().any()):
        raise ValueError(f"plot.sphere: log_prob is NaN at {int(height.isnan().sum())} points; find the cause first.")
    # The area of a cell is the difference of the sines of its two parallels.
    edges = (torch.linspace(-0.5, 0.5, resolution + 1, dtype=torch.float64) * math.pi).sin()
    return height, float((height.sum(1) * edges.diff()).sum() * math.pi / resolution)


def _colour(axis, height: Tensor, scale: str):
    """Draws heights on a map; a few extreme values do not darken the rest."""
    from matplotlib.colors import LogNorm, Normalize

    top = float(torch.quantile(height.flatten(), 0.999)) or 1.0
    norm = LogNorm(top / 10**DECADES, top) if scale == "log" else Normalize(0, top)
    rows, columns = height.shape
    edges = lambda count, reach: numbers(torch.linspace(-reach, reach, count + 1, dtype=torch.float64))
    shown = numbers(height.clamp(min=norm.vmin))
    sides = edges(columns, math.pi), edges(rows, math.pi / 2)
    return axis.pcolormesh(*sides, shown, cmap="magma", norm=norm, rasterized=True)


def _dots(axis, degrees: Tensor, colour: str, alpha: float) -> None:
    points = numbers(torch.deg2rad(degrees))
    axis.scatter(points[:, 1], points[:, 0], s=dot(len(points)) / 4, color=colour, alpha=alpha, lw=0, rasterized=True)


def _map():
    """Makes a figure with a map."""
    figure = new_figure(6.4, 4.2)
    axis = figure.add_subplot(projection="mollweide")
    axis.set_longitude_grid(60)
    axis.set_latitude_grid(30)
    axis.set_xticklabels([])  # they would lie on the land
    return figure, axis
