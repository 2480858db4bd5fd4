"""Pictures of training: the loss, the learning rate and the gradient norm."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cflow.plot.figure import BLUE, GREY, ORANGE, finish, legend, new_figure

__all__ = ["training"]


def training(history: Any, path: str | os.PathLike | None = None, *, title: str = "", ax: Any = None):
    """Draws training curves: the loss and its smoothed curve, and the other columns of the history.

    The axes of losses and of the gradient norm are logarithmic if all values are positive and span more than a factor
    of ten; the axis of the learning rate is linear.

    Args:
        history: the result of ``training.fit`` (the step of the kept weights is marked), its folder, or a list of
            dicts, each with ``step`` and any of ``loss``, ``validation``, ``lr`` and ``grad_norm``.
        path: the file to write; None writes no file.
        title: title of the picture.
        ax: a matplotlib axis for the losses, instead of a new figure with all curves.

    Returns the figure.

    Raises:
        ValueError: if the history is empty, an entry has no ``step``, or none has a ``loss``.
        FileNotFoundError: for a folder without a ``history.csv``.

    Example:
        >>> training([{"step": k, "loss": 1 / k} for k in range(1, 100)]).axes[0].get_yscale()
        'log'
    """
    best = getattr(history, "best_step", None)
    history = _entries(history)
    if not history or any("step" not in entry for entry in history) or not any("loss" in entry for entry in history):
        raise ValueError(
            f"plot.training(history of {len(history)} entries): every entry needs a step, and one a loss; pass for "
            f"instance [{{'step': 1, 'loss': 0.5}}, ...]."
        )
    series = {}
    for key in ("loss", "validation", "lr", "grad_norm"):
        pairs = [(entry["step"], float(entry[key])) for entry in history if entry.get(key) is not None]
        if pairs:
            series[key] = tuple(zip(*pairs))
    below = [key for key in ("lr", "grad_norm") if key in series] if ax is None else []
    ratios = [3] + [1] * len(below)
    if ax is None:
        figure = new_figure(6.4, 3.4 + 1.2 * len(below))
        axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    else:
        figure, axes = ax.figure, [ax]

    steps, losses = series["loss"]
    axes[0].plot(steps, losses, color=BLUE, alpha=0.3, lw=0.8, label="loss")
    if len(losses) >= 10:
        axes[0].plot(steps, smooth(losses), color=BLUE, lw=1.8, label="loss, smoothed")
    if "validation" in series:
        axes[0].plot(*series["validation"], color=ORANGE, lw=1.4, marker="o", ms=3, label="validation")
    if best is not None:
        axes[0].axvline(best, color=GREY, lw=1.2, ls="--", label=f"weights kept, step {best}")
    legend(axes[0])
    _scale(axes[0], [*losses, *series.get("validation", ((), ()))[1]])
    axes[0].set_ylabel("loss", fontsize=9)
    axes[0].set_title(title, fontsize=10)
    for axis, key in zip(axes[1:], below):
        axis.plot(*series[key], color=BLUE, lw=1.0)
        if key == "lr":
            axis.set_ylim(bottom=0)
        else:
            _scale(axis, series[key][1])
        axis.set_ylabel({"lr": "learning rate", "grad_norm": "gradient norm"}[key], fontsize=9)
    axes[-1].set_xlabel("step", fontsize=9)
    for axis in axes:
        axis.grid(alpha=0.25, lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.01)
    figure.align_ylabels(axes)
    return finish(figure, path)


def _entries(source: Any) -> Sequence[dict[str, Any]]:
    """Returns the entries of a history, of a run, or of the file that a run wrote into its folder."""
    if not isinstance(source, str | os.PathLike):
        return getattr(source, "history", source)
    file = Path(source) / "history.csv" if Path(source).is_dir() else Path(source)
    if not file.is_file():
        raise FileNotFoundError(
            f"plot.training({str(source)!r}): there is no {file.name}; pass the folder of fit(out=...)."
        )
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [{name: float(value) for name, value in row.items() if name and value} for row in rows]


def _scale(axis, values: Sequence[float]) -> None:
    """Makes an axis logarithmic, with plain numbers, if the values span more than a factor of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > 10 * min(finite):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(finite) < 1e3 * min(finite) else (1.0,)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())


def smooth(values: Sequence[float]):
    """Averages with a Gaussian window of about a fortieth of the curve; symmetric, so that the average does not lag."""
    import numpy as np

    values = np.asarray(values)
    width = max(1.0, len(values) / 80)
    reach = min(math.ceil(3 * width), len(values) // 2)
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), window)[reach : reach + len(values)]
    weight = np.convolve(known.astype(float), window)[reach : reach + len(values)]
    return np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 0)
