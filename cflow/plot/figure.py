"""Helpers of all pictures: figures without pyplot, their data, colours, cells, legends and files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "BLUE", "COLOURS", "GREY", "ORANGE", "axis_on", "cells", "dot", "dress", "finish", "legend", "new_figure",
    "numbers", "points_of", "samples_of",
]  # fmt: skip

BLUE, ORANGE, GREY = "#2563a8", "#e07b39", "#9aa0a6"
COLOURS = (BLUE, ORANGE, "#3a8f5c", "#8c4a9e", "#b0413e", "#5f6b73")
DPI = 160


def new_figure(width: float, height: float):
    """Makes a matplotlib figure without pyplot.

    Args:
        width, height: its size in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from cflow.plot.inline import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def axis_on(ax, width: float, height: float):
    """Returns a figure and one axis: ``ax`` if it was passed, or that of a new figure of this size, in inches."""
    if ax is not None:
        return ax.figure, ax
    figure = new_figure(width, height)
    return figure, figure.subplots()


def cells(rows: int, columns: int, width: float, height: float, header: float = 0.0):
    """Makes a figure for cells of exactly this size, in inches, and a function that places a cell's axis."""
    gap = 0.05
    total_width = columns * (width + gap) - gap
    total_height = rows * (height + header + gap) - gap
    figure = new_figure(total_width, total_height)

    def axes(row: int, column: int):
        left = column * (width + gap)
        top = row * (height + header + gap) + header
        box = (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
        axis = figure.add_axes(box)
        axis.axis("off")
        return axis

    return figure, axes


def finish(figure, path: str | os.PathLike | None):
    """Writes a figure, if a path is given, and returns it.

    Args:
        figure: the figure.
        path: the file to write, whose folder is made; None writes no file.
    """
    if path is not None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, bbox_inches="tight", pad_inches=0.05)
    return figure


def samples_of(source: Any, count: int) -> Tensor:
    """Returns points unchanged, or ``count`` draws from an object with a method ``sample``, such as a flow."""
    draw = getattr(source, "sample", None)
    return source if draw is None else draw((count,))


def numbers(x: Tensor):
    """Returns the values of a tensor for matplotlib."""
    return x.detach().to("cpu", torch.float64).numpy()


def points_of(name: str, x: Any, count: int = 2000):
    """Returns points in the plane for matplotlib: those of a tensor, or draws of a flow."""
    x = samples_of(x, count)
    if x.ndim != 2 or x.shape[1] != 2 or len(x) == 0:
        raise ValueError(f"{name}(points of shape {list(x.shape)}): expected points in the plane; pass [N, 2].")
    return numbers(x)


def dot(count: int) -> float:
    """Returns the size of a dot, such that many dots do not merge."""
    return max(1.5, min(14.0, 10_000 / count))


def dress(axis, title: str, names: Sequence[str] | None = None) -> None:
    """Sets title, labels and ticks of an axis that shows the plane."""
    if names is not None:
        axis.set_xlabel(names[0], fontsize=9)
        axis.set_ylabel(names[1], fontsize=9)
    axis.set_aspect("equal", adjustable="box")
    axis.autoscale_view()
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.2, lw=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, fontsize=10)


def legend(axis) -> None:
    """Adds a legend whose marks are visible even if the dots are small."""
    legend = axis.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", loc="best")
    for handle in legend.legend_handles:
        handle.set_alpha(1.0)
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([16.0])
