"""Pictures of densities in the plane."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from cflow.plot.figure import cells, dot, new_figure, points_of, save

__all__ = ["densities", "density"]

Bounds = tuple[float, float] | tuple[tuple[float, float], tuple[float, float]]


def density(
    log_prob: Callable[[Tensor], Tensor],
    path: str | os.PathLike,
    *,
    bounds: Bounds = (-4.0, 4.0),
    samples: Tensor | None = None,
    resolution: int = 200,
    chunk: int = 4096,
    device: torch.device | str | None = None,
    title: str = "",
) -> Path:
    """Draws a density in the plane as colour, evaluated on a grid, chunk by chunk and without gradients.

    ``bounds`` is ``(low, high)`` for both axes or one pair for each. The title says how much of the mass lies in the
    picture: far from 1 means bounds too tight, a grid too coarse, or a wrong density.

    Shapes: ``log_prob`` takes ``[N, 2]`` (on ``device``) and gives ``[N]``; ``samples [M, 2]`` are drawn as points.
    Cost: ``resolution`` squared evaluations.

    Raises:
        ValueError: if ``bounds`` are not increasing, ``resolution`` is below 2, or ``log_prob`` gives another shape or
            NaN.
    """
    across, up = _sides("plot.density", bounds, resolution)
    height, mass = _evaluate("plot.density", log_prob, across, up, resolution, chunk, device)
    figure = new_figure(5.2, 4.6)
    axis = figure.subplots()
    picture = _colour(axis, height, across, up)
    if samples is not None:
        points = points_of("plot.density", samples)
        axis.scatter(*points.T, s=dot(len(points)) / 2, color="white", lw=0, alpha=0.5)
        axis.set(xlim=across, ylim=up)
    bar = figure.colorbar(picture, cax=axis.inset_axes((1.03, 0.0, 0.04, 1.0)))
    bar.set_label("density", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    axis.tick_params(labelsize=8)
    axis.set_title(f"{title}{', ' if title else ''}mass in view {mass:.3f}", fontsize=10)
    return save(figure, path)


def densities(
    log_probs: Mapping[str, Callable[[Tensor], Tensor]],
    path: str | os.PathLike,
    *,
    bounds: Bounds = (-4.0, 4.0),
    reference: Tensor | None = None,
    columns: int | None = None,
    resolution: int = 120,
    chunk: int = 4096,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """Draws several densities side by side, each under its name, and says how much mass of each is in view.

    ``reference`` points, if given, are drawn in a first panel. Every panel has its own scale of colour.

    Shapes: as :func:`density`; ``reference [M, 2]``. Cost: ``resolution`` squared evaluations of each.

    Raises:
        ValueError: as :func:`density`, and if there is nothing to draw.
    """
    if not log_probs:
        raise ValueError("plot.densities: no densities were given; pass a dict of name -> log_prob.")
    across, up = _sides("plot.densities", bounds, resolution)
    count = len(log_probs) + (reference is not None)
    columns = columns or math.ceil(math.sqrt(count * 1.6))
    figure, place = cells(math.ceil(count / columns), columns, 1.7, 1.7, header=0.22)
    masses, panel = {}, 0
    if reference is not None:
        axis, panel = place(0, 0), 1
        points = points_of("plot.densities", reference)
        axis.set_facecolor("black")
        axis.add_patch(_backdrop(across, up))
        axis.scatter(*points.T, s=dot(len(points)) / 8, color="white", lw=0, alpha=0.6)
        axis.set(xlim=across, ylim=up)
        axis.set_title("data", fontsize=8, pad=3)
    for name, log_prob in log_probs.items():
        height, masses[name] = _evaluate(f"plot.densities: {name}", log_prob, across, up, resolution, chunk, device)
        axis = place(*divmod(panel, columns))
        _colour(axis, height, across, up)
        axis.set_title(f"{name}, mass {masses[name]:.3f}", fontsize=8, pad=3)
        panel += 1
    save(figure, path)
    return masses


def _backdrop(across: tuple[float, float], up: tuple[float, float]):
    """Makes the black ground of points; an axis without ticks shows no face of its own."""
    from matplotlib.patches import Rectangle

    return Rectangle((across[0], up[0]), across[1] - across[0], up[1] - up[0], color="black", zorder=0)


def _sides(name: str, bounds: Bounds, resolution: int) -> tuple[tuple[float, float], tuple[float, float]]:
    across, up = bounds if isinstance(bounds[0], Sequence) else (bounds, bounds)
    if not (across[0] < across[1] and up[0] < up[1]) or resolution < 2:
        raise ValueError(
            f"{name}(bounds={bounds}, resolution={resolution}): a grid needs low < high on both axes and at least 2 "
            f"points along each; pass for instance bounds=(-4, 4)."
        )
    return across, up


@torch.no_grad()
def _evaluate(name: str, log_prob, across, up, resolution: int, chunk: int, device) -> tuple[Tensor, float]:
    """Evaluates a density on the middles of a grid's squares: ``[resolution, resolution]``, and its mass."""
    middle = (torch.arange(resolution, device=device) + 0.5) / resolution
    columns, rows = (low + (high - low) * middle for low, high in (across, up))
    grid = torch.cartesian_prod(rows, columns).flip(-1)
    values = [log_prob(part) for part in grid.split(chunk)]
    if any(value.shape != (len(part),) for value, part in zip(values, grid.split(chunk))):
        raise ValueError(
            f"{name}: log_prob gave shape {list(values[0].shape)} for points of shape {list(grid[:chunk].shape)}; it "
            f"must give one value per point, [N]."
        )
    height = torch.cat(values).double().exp().cpu()
    if bool(height.isnan().any()):
        raise ValueError(
            f"{name}: log_prob is NaN at {int(height.isnan().sum())} of {len(height)} points; find out why first."
        )
    mass = float(height.sum()) * (across[1] - across[0]) * (up[1] - up[0]) / resolution**2
    return rearrange(height, "(h w) -> h w", h=resolution), mass


def _colour(axis, height: Tensor, across: tuple[float, float], up: tuple[float, float]):
    """Draws heights as colour; a few extreme values must not darken the rest."""
    flat = height.flatten()
    top = float(torch.quantile(flat[:: math.ceil(len(flat) / 1_000_000)], 0.999)) or None
    return axis.imshow(
        height.numpy(),
        origin="lower",
        extent=(*across, *up),
        cmap="magma",
        vmin=0,
        vmax=top,
        interpolation="bilinear",
        aspect="equal",
    )
