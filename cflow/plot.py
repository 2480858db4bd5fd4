"""Pictures that people look at: samples, trajectories, densities and training curves.

Every function writes one file (the format follows its suffix) and returns its path. Figures are made without pyplot,
so nothing depends on a display or touches the figures of a notebook.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["density", "image_trajectories", "images", "scatter", "training", "trajectories"]

BLUE, ORANGE, GREY = "#2563a8", "#e07b39", "#9aa0a6"
DPI = 160


def images(
    x: Tensor, path: str | os.PathLike, *, columns: int | None = None, titles: Sequence[str] | None = None
) -> Path:
    """Draws images in a grid, small ones enlarged without blur.

    Shapes: ``x [N, C, H, W]`` with C = 1 or 3 and values in [0, 1] (beyond it they are clipped); ``titles`` one per
    image. ``columns=None`` makes the grid about square.

    Raises:
        ValueError: if ``x`` is no batch of images or is empty, or ``titles`` are not one per image.
    """
    pixels = _pixels("plot.images", x)
    count, height, width = pixels.shape[:3]
    if titles is not None and len(titles) != count:
        raise ValueError(
            f"plot.images({len(titles)} titles for {count} images): pass one title per image, or leave them out."
        )
    columns = min(count, columns or math.ceil(math.sqrt(count * height / width)))
    cell = max(0.5, min(1.2, 12 / columns))
    figure, axes = _grid(math.ceil(count / columns), columns, cell, cell * height / width, 0.24 if titles else 0.0)
    for k in range(count):
        axis = axes(k // columns, k % columns)
        _show(axis, pixels[k])
        if titles is not None:
            axis.set_title(titles[k], fontsize=8, pad=3)
    return _save(figure, path)


def scatter(samples: Tensor, path: str | os.PathLike, *, reference: Tensor | None = None, title: str = "") -> Path:
    """Draws samples in the plane, over those of a reference if given.

    Shapes: ``samples [N, 2]``, ``reference [M, 2]``.

    Raises:
        ValueError: if the samples are not in the plane, or there are none.
    """
    samples = _points("plot.scatter", samples)
    figure = _figure(4.6, 4.6)
    axis = figure.subplots()
    if reference is not None:
        reference = _points("plot.scatter", reference)
        axis.scatter(*reference.T, s=_dot(len(reference)), color=ORANGE, alpha=0.6, lw=0, label="data", rasterized=True)
    label = "samples" if reference is not None else None
    axis.scatter(*samples.T, s=_dot(len(samples)), color=BLUE, alpha=0.5, lw=0, label=label, rasterized=True)
    _plane(axis, title)
    if reference is not None:
        _legend(axis)
    return _save(figure, path)


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

    points = _numbers(trajectory)
    figure = _figure(4.6, 4.6)
    axis = figure.subplots()
    lines = rearrange(points[:, :paths_shown], "t b d -> b t d")
    axis.add_collection(LineCollection(lines, colors=ORANGE, linewidths=0.5, alpha=0.4, zorder=1, label="paths"))
    for time, colour, label in ((0, GREY, "base, t = 0"), (-1, BLUE, "data, t = 1")):
        axis.scatter(*points[time].T, s=_dot(points.shape[1]), color=colour, lw=0, alpha=0.8, zorder=2, label=label)
    _plane(axis, title)
    _legend(axis)
    return _save(figure, path)


def image_trajectories(
    trajectory: Tensor, path: str | os.PathLike, *, times: Sequence[float] | Tensor | None = None
) -> Path:
    """Draws images on their way from noise: one row per sample, one column per time.

    Shapes: ``trajectory [T, B, C, H, W]`` with values in [0, 1] (beyond it they are clipped), ``times [T]``.

    Raises:
        ValueError: if the trajectory is not ``[T, B, C, H, W]``, or ``times`` are not one per column.
    """
    if trajectory.ndim != 5:
        raise ValueError(
            f"plot.image_trajectories(trajectory of shape {list(trajectory.shape)}): images at several times are "
            f"needed, [T, B, C, H, W]; for points in the plane use plot.trajectories."
        )
    count, rows = trajectory.shape[:2]
    if times is not None and len(times) != count:
        raise ValueError(f"plot.image_trajectories({len(times)} times for {count} columns): pass one time per column.")
    pixels = _pixels("plot.image_trajectories", rearrange(trajectory, "t b c h w -> (b t) c h w"))
    cell = max(0.45, min(1.0, 10 / count))
    figure, axes = _grid(rows, count, cell, cell * pixels.shape[1] / pixels.shape[2])
    for k in range(rows * count):
        axis = axes(k // count, k % count)
        _show(axis, pixels[k])
        if times is not None and k < count:
            axis.set_title(f"t = {float(times[k]):.2g}" if k == 0 else f"{float(times[k]):.2g}", fontsize=8, pad=4)
    return _save(figure, path)


@torch.no_grad()
def density(
    log_prob: Callable[[Tensor], Tensor],
    path: str | os.PathLike,
    *,
    bounds: tuple[float, float] | tuple[tuple[float, float], tuple[float, float]] = (-4.0, 4.0),
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
    across, up = bounds if isinstance(bounds[0], Sequence) else (bounds, bounds)
    if not (across[0] < across[1] and up[0] < up[1]) or resolution < 2:
        raise ValueError(
            f"plot.density(bounds={bounds}, resolution={resolution}): a grid needs low < high on both axes and at "
            f"least 2 points along each; pass for instance bounds=(-4, 4)."
        )
    middle = (torch.arange(resolution, device=device) + 0.5) / resolution
    columns, rows = (low + (high - low) * middle for low, high in (across, up))
    grid = torch.cartesian_prod(rows, columns).flip(-1)
    values = [log_prob(part) for part in grid.split(chunk)]
    if any(value.shape != (len(part),) for value, part in zip(values, grid.split(chunk))):
        raise ValueError(
            f"plot.density: log_prob gave shape {list(values[0].shape)} for points of shape "
            f"{list(grid[:chunk].shape)}; it must give one value per point, [N]."
        )
    height = torch.cat(values).double().exp().cpu()
    if bool(height.isnan().any()):
        raise ValueError(
            f"plot.density: log_prob is NaN at {int(height.isnan().sum())} of {len(height)} points; find out why first."
        )
    mass = float(height.sum()) * (across[1] - across[0]) * (up[1] - up[0]) / resolution**2
    figure = _figure(5.2, 4.6)
    axis = figure.subplots()
    # A few extreme values must not darken the rest.
    top = float(torch.quantile(height[:: math.ceil(len(height) / 1_000_000)], 0.999)) or None
    picture = axis.imshow(
        rearrange(height, "(h w) -> h w", h=resolution).numpy(),
        origin="lower",
        extent=(*across, *up),
        cmap="magma",
        vmin=0,
        vmax=top,
        interpolation="bilinear",
        aspect="equal",
    )
    if samples is not None:
        points = _points("plot.density", samples)
        axis.scatter(*points.T, s=_dot(len(points)) / 2, color="white", lw=0, alpha=0.5)
        axis.set(xlim=across, ylim=up)
    bar = figure.colorbar(picture, cax=axis.inset_axes((1.03, 0.0, 0.04, 1.0)))
    bar.set_label("density", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    axis.tick_params(labelsize=8)
    axis.set_title(f"{title}{', ' if title else ''}mass in view {mass:.3f}", fontsize=10)
    return _save(figure, path)


def training(history: Sequence[dict[str, Any]], path: str | os.PathLike, *, title: str = "") -> Path:
    """Draws training curves: the loss with its smoothed course, and what else the history holds.

    Each entry of ``history`` is a dict with ``step`` and any of ``loss``, ``validation``, ``lr`` and ``grad_norm``; an
    entry may lack a key. An axis is logarithmic where all its values are positive and span more than a factor of ten.

    Raises:
        ValueError: if the history is empty, an entry has no ``step``, or none has a ``loss``.
    """
    if not history or any("step" not in entry for entry in history) or not any("loss" in entry for entry in history):
        raise ValueError(
            f"plot.training(history of {len(history)} entries): every entry needs a step, and at least one a loss; "
            f"pass for instance [{{'step': 1, 'loss': 0.5}}, ...]."
        )
    series = {}
    for key in ("loss", "validation", "lr", "grad_norm"):
        pairs = [(entry["step"], float(entry[key])) for entry in history if entry.get(key) is not None]
        if pairs:
            series[key] = tuple(zip(*pairs))
    below = [key for key in ("lr", "grad_norm") if key in series]
    ratios = [3] + [1] * len(below)
    figure = _figure(6.4, 3.4 + 1.2 * len(below))
    axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]

    steps, losses = series["loss"]
    axes[0].plot(steps, losses, color=BLUE, alpha=0.3, lw=0.8, label="loss")
    if len(losses) >= 10:
        axes[0].plot(steps, _smooth(losses), color=BLUE, lw=1.8, label="loss, smoothed")
    if "validation" in series:
        axes[0].plot(*series["validation"], color=ORANGE, lw=1.4, marker="o", ms=3, label="validation")
    _legend(axes[0])
    _scale(axes[0], [*losses, *series.get("validation", ((), ()))[1]])
    axes[0].set_ylabel("loss", fontsize=9)
    axes[0].set_title(title, fontsize=10)
    for axis, key in zip(axes[1:], below):
        axis.plot(*series[key], color=BLUE, lw=1.0)
        _scale(axis, series[key][1])
        axis.set_ylabel({"lr": "learning rate", "grad_norm": "gradient norm"}[key], fontsize=9)
    axes[-1].set_xlabel("step", fontsize=9)
    for axis in axes:
        axis.grid(alpha=0.25, lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.01)
    figure.align_ylabels(axes)
    return _save(figure, path)


def _figure(width: float, height: float):
    """Makes a figure outside pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def _grid(rows: int, columns: int, width: float, height: float, header: float = 0.0):
    """Makes a figure for cells of exactly this size, in inches, and a function that places a cell's axis."""
    gap = 0.05
    total_width = columns * (width + gap) - gap
    total_height = rows * (height + header + gap) - gap
    figure = _figure(total_width, total_height)

    def axes(row: int, column: int):
        left = column * (width + gap)
        top = row * (height + header + gap) + header
        box = (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
        axis = figure.add_axes(box)
        axis.axis("off")
        return axis

    return figure, axes


def _save(figure, path: str | os.PathLike) -> Path:
    """Writes the figure, making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.05)
    return path


def _numbers(x: Tensor):
    """Gives a tensor's values to matplotlib."""
    return x.detach().to("cpu", torch.float64).numpy()


def _points(name: str, x: Tensor):
    """Checks points in the plane."""
    if x.ndim != 2 or x.shape[1] != 2 or len(x) == 0:
        raise ValueError(
            f"{name}(points of shape {list(x.shape)}): points in the plane are [N, 2], at least one of them."
        )
    return _numbers(x)


def _pixels(name: str, x: Tensor):
    """Checks images and lays their channels last."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape or not x.is_floating_point():
        raise ValueError(
            f"{name}({x.dtype} of shape {list(x.shape)}): images are floats in [0, 1] of shape [N, 1 or 3, H, W]; "
            f"divide integer levels by the largest, and pass at least one image."
        )
    return _numbers(rearrange(x.detach().float().clamp(0, 1), "n c h w -> n h w c"))


def _show(axis, pixels) -> None:
    """Draws one image: small ones with sharp pixels, large ones smoothly."""
    interpolation = "nearest" if max(pixels.shape[:2]) <= 64 else "antialiased"
    axis.imshow(
        pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels,
        cmap="gray",
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation=interpolation,
    )


def _dot(count: int) -> float:
    """Chooses the size of a dot so that many do not run into one."""
    return max(1.5, min(14.0, 10_000 / count))


def _plane(axis, title: str) -> None:
    """Dresses an axis that shows the plane."""
    axis.set_aspect("equal", adjustable="box")
    axis.autoscale_view()
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.2, lw=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, fontsize=10)


def _legend(axis) -> None:
    """Places a legend whose marks are visible even where the dots are small."""
    legend = axis.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", loc="best")
    for handle in legend.legend_handles:
        handle.set_alpha(1.0)
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([16.0])


def _scale(axis, values: Sequence[float]) -> None:
    """Makes an axis logarithmic where that shows more, with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > 10 * min(finite):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(finite) < 1e3 * min(finite) else (1.0,)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())


def _smooth(values: Sequence[float]):
    """Averages with a Gaussian window of about a fortieth of the curve; symmetric, so that it does not lag behind."""
    import numpy as np

    values = np.asarray(values)
    width = max(1.0, len(values) / 80)
    reach = min(math.ceil(3 * width), len(values) // 2)
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), window)[reach : reach + len(values)]
    weight = np.convolve(known.astype(float), window)[reach : reach + len(values)]
    return np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 0)
