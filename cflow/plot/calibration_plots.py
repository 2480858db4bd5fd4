"""Pictures of calibration: histograms of ranks, and curves of coverage."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cflow.plot.figure import BLUE, COLOURS, GREY, finish, new_figure, numbers

__all__ = ["calibration"]


def calibration(
    pit: Any = None,
    path: str | os.PathLike | None = None,
    *,
    coverage: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
    bins: int | None = None,
    level: float = 0.99,
    words: tuple[str, str] = ("truth", "draws"),
    title: str = "",
) -> Any:
    """Draws histograms of probability integral transforms, one per feature, and curves of coverage over credibility.

    For a calibrated prediction the histograms are flat and the curves follow the diagonal, within the grey bands: each
    bar with probability ``level`` (binomial), and a whole curve with probability ``level`` (the
    Dvoretzky-Kiefer-Wolfowitz inequality). A hump, or a curve above the diagonal: too wide. A U shape, or a curve
    below: too narrow. A slope: shifted.

    Args:
        pit: ``[N, D]`` or ``[N]``, values in [0, 1]: ``metrics.pit(...)``, or the result of
            ``metrics.simulation_based_calibration``; None draws only curves.
        path: the file to write; None writes no file.
        coverage: maps labels to results of ``metrics.expected_coverage``, or to the credibilities ``[N]`` from which
            regions contain the truth.
        names: names of the features.
        bins: number of bins of the histograms. Default: N / 10, at most 20.
        level: probability of the bands.
        words: names of one of the N values, and of what it is ranked among: ``("row", "samples")`` for a table.
        title: title of the picture.

    Returns the figure.

    Raises:
        ValueError: if neither ``pit`` nor ``coverage`` is given, values are not in [0, 1], shapes do not match,
            ``bins`` is below 2, or ``level`` is not between 0 and 1.

    Source: Talts et al., Validating Bayesian Inference Algorithms with Simulation-Based Calibration, 2018,
    arXiv:1804.06788; Massart, The Tight Constant in the Dvoretzky-Kiefer-Wolfowitz Inequality, 1990.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     calibration(torch.rand(500, 2), f"{folder}/ranks.png", coverage={"flow": torch.rand(500)})
        <Figure size ...>
    """
    pit = getattr(pit, "pit", pit)
    coverage = {label: getattr(each, "credibility", each) for label, each in (coverage or {}).items()}
    curves = {label: _units(f"coverage[{label!r}]", each, (1,)) for label, each in coverage.items()}
    table = None if pit is None else _units("pit", pit[:, None] if pit.ndim == 1 else pit, (2,))
    features = 0 if table is None else table.shape[1]
    if not features and not curves:
        raise ValueError("plot.calibration: no values were given; pass pit [N, D], coverage={'flow': [N]}, or both.")
    if not 0 < level < 1 or (bins is not None and bins < 2):
        raise ValueError(
            f"plot.calibration(level={level}, bins={bins}): needs 0 < level < 1 and bins >= 2; pass level=0.99, "
            f"bins=20."
        )
    names = [f"x{i}" for i in range(features)] if names is None else list(names)
    if len(names) != features:
        raise ValueError(f"plot.calibration({len(names)} names for {features} features): pass one name per feature.")

    columns = min(features + bool(curves), 4)
    rows = math.ceil((features + bool(curves)) / columns)
    figure = new_figure(2.9 * columns, 2.7 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.38, "hspace": 0.42}).flatten()
    for axis, name, column in zip(axes, names, range(features)):
        _histogram(axis, table[:, column], name, bins or max(2, min(20, len(table) // 10)), level, words)
    if curves:
        _curves(axes[features], curves, level, words[0])
    for axis in axes[: features + bool(curves)]:
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0, 1)
    for axis in axes[features + bool(curves) :]:
        axis.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=10, y=0.88 + 0.55 / (2.7 * rows))
    return finish(figure, path)


def _units(name: str, values: Tensor, ranks: tuple[int, ...]):
    """Checks values in [0, 1] and returns them for matplotlib."""
    if values.ndim not in ranks or 0 in values.shape:
        raise ValueError(
            f"plot.calibration({name} of shape {list(values.shape)}): expected one row per data set; pass "
            f"{'[N, D]' if 2 in ranks else '[N]'}."
        )
    if not bool(((values >= 0) & (values <= 1)).all()):
        low, high = torch.aminmax(values.nan_to_num(torch.inf))
        raise ValueError(
            f"plot.calibration({name}): values run from {low:.4g} to {high:.4g}, outside [0, 1]; pass "
            f"metrics.pit(samples, observed), not ranks or samples."
        )
    return numbers(values)


def _histogram(axis, values, name: str, bins: int, level: float, words: tuple[str, str]) -> None:
    from scipy.stats import binom

    count = len(values)
    low, high = (binom.ppf(each, count, 1 / bins) for each in ((1 - level) / 2, (1 + level) / 2))
    axis.axhspan(low, high, color=GREY, alpha=0.35, lw=0)
    axis.axhline(count / bins, color=GREY, lw=1.0)
    axis.hist(values, bins=bins, range=(0, 1), color=BLUE, alpha=0.75, rwidth=0.92)
    axis.set_ylim(bottom=0)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel(f"rank of the {words[0]} among {words[1]}", fontsize=9)
    axis.set_ylabel(f"number of {words[0]}s", fontsize=9)


def _curves(axis, curves, level: float, word: str) -> None:
    import numpy as np

    fewest = min(len(each) for each in curves.values())
    reach = math.sqrt(math.log(2 / (1 - level)) / (2 * fewest))
    across = np.linspace(0, 1, 200)
    axis.fill_between(
        across, np.clip(across - reach, 0, 1), np.clip(across + reach, 0, 1), color=GREY, alpha=0.35, lw=0,
        label=f"calibrated, {level:.0%} of curves",
    )  # fmt: skip
    axis.plot((0, 1), (0, 1), color=GREY, lw=1.0)
    for (label, values), colour in zip(curves.items(), COLOURS * math.ceil(len(curves) / len(COLOURS))):
        steps = np.concatenate([[0.0], np.sort(values), [1.0]])
        shares = np.concatenate([[0.0], np.arange(1, len(values) + 1) / len(values), [1.0]])
        axis.plot(steps, shares, color=colour, lw=1.5, drawstyle="steps-post", label=label)
    axis.set_ylim(0, 1)
    axis.set_aspect("equal")
    axis.set_title("coverage", fontsize=10)
    axis.set_xlabel("credibility of the region", fontsize=9)
    axis.set_ylabel(f"share of {word}s inside", fontsize=9)
    # Below the panel, which is the last one: inside, it would cover a part of the curves.
    axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.25))
