"""Pictures of training: the loss and what else a history holds."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cflow.plot.figure import BLUE, ORANGE, legend, new_figure, save

__all__ = ["training"]


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
    figure = new_figure(6.4, 3.4 + 1.2 * len(below))
    axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]

    steps, losses = series["loss"]
    axes[0].plot(steps, losses, color=BLUE, alpha=0.3, lw=0.8, label="loss")
    if len(losses) >= 10:
        axes[0].plot(steps, smooth(losses), color=BLUE, lw=1.8, label="loss, smoothed")
    if "validation" in series:
        axes[0].plot(*series["validation"], color=ORANGE, lw=1.4, marker="o", ms=3, label="validation")
    legend(axes[0])
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
    return save(figure, path)


def _scale(axis, values: Sequence[float]) -> None:
    """Makes an axis logarithmic where that shows more, with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > 10 * min(finite):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(finite) < 1e3 * min(finite) else (1.0,)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())


def smooth(values: Sequence[float]):
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
