"""Pictures of many dimensions: every feature, and every pair of features."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cflow.plot.figure import COLOURS, ORANGE, finish, new_figure, numbers, samples_of

__all__ = ["corner"]

MOST = 12  # features: they make 66 pairs, and more panels are hard to read
MASSES = (0.9, 0.5)  # the shares of points inside the contours
FEWEST = 100  # with fewer points, contours would show the smoothing rather than the points
CELLS = 64  # per axis, of the histogram for the contours
INK = "#202124"


@dataclass
class Points:
    """One set of points ``[N, D]``, and its style."""

    values: Any
    colour: str
    label: str
    filled: bool


def corner(
    samples: Any,
    path: str | os.PathLike | None = None,
    *,
    reference: Any = None,
    names: Sequence[str] | None = None,
    labels: tuple[str, str] = ("samples", "reference"),
    marks: Tensor | None = None,
    mark_label: str = "",
    bins: int = 40,
    title: str = "",
) -> Any:
    """Draws the marginals of samples: a histogram of every feature, and below it every pair of features.

    A pair is shown as the regions of highest density with 50 % and 90 % of the points (of a smoothed histogram), and as
    dots; fewer than 100 points are shown only as dots. Samples are blue; a reference is orange, below them. The axes
    show the central 99.8 % of the points (98 % of the samples, if there is a reference) and all marks; points farther
    out are not visible.

    Args:
        samples: ``[N, D]``, or a flow for 5000 draws; or a dict that maps names to these, for several sets.
        path: the file to write; None writes no file.
        reference: ``[M, D]`` or a flow, to compare the samples with.
        names: names of the features, for the axes. Default: ``x0``, ``x1`` and so on.
        labels: names of the samples (unless they are a dict) and of the reference in the legend.
        marks: ``[K, D]``, single points that are drawn as crosses (true parameters, unusual rows). A single mark is
            also a line in the histograms.
        mark_label: name of the marks in the legend. Default: they are not in the legend.
        bins: number of bins of the histograms.
        title: title of the picture.

    Returns the figure.

    Cost: D (D - 1) / 2 two-dimensional histograms. Up to eight features are easy to read.

    Raises:
        ValueError: if samples are not ``[N, D]`` with D from 1 to 12, are empty or not finite; if a reference or marks
            have another D; if the number of names or of ``bins`` is wrong.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     corner(torch.randn(500, 3), f"{folder}/corner.png", names=["mass", "spin", "distance"])
        <Figure size ...>
    """
    several = samples if isinstance(samples, Mapping) else {labels[0]: samples}
    if not several:
        raise ValueError("plot.corner: no samples were given; pass points [N, D], or a dict of name -> points.")
    features = None
    for name, each in several.items():
        several = {**several, name: _table(name if len(several) > 1 else "samples", each, features)}
        features = several[name].shape[1]
    samples = next(iter(several.values()))
    if features > MOST:
        raise ValueError(
            f"plot.corner(samples of shape {list(samples.shape)}): {features} features make "
            f"{features * (features - 1) // 2} pairs; choose up to {MOST} columns, such as samples[:, :8]."
        )
    names = [f"x{i}" for i in range(features)] if names is None else list(names)
    if len(names) != features:
        raise ValueError(f"plot.corner({len(names)} names for {features} features): pass one name per feature.")
    if bins < 2:
        raise ValueError(f"plot.corner(bins={bins}): pass at least 2 bins.")
    colours = [colour for colour in COLOURS if colour != ORANGE or reference is None]
    if len(several) > len(colours):
        raise ValueError(f"plot.corner({len(several)} sets of samples): there are {len(colours)} colours; pass fewer.")
    filled = reference is None and len(several) == 1
    sets = [Points(each, colour, name, filled) for (name, each), colour in zip(several.items(), colours)]
    if reference is not None:
        sets.insert(0, Points(_table("reference", reference, features), ORANGE, labels[1], filled=True))
    marks = None if marks is None else _table("marks", marks, features)

    side = 1.9 if features <= 4 else 1.4
    figure = new_figure(features * side + 0.5, features * side + 0.5)
    axes = figure.subplots(features, features, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06})
    tails = [0.001 if reference is None or k == 0 else 0.01 for k in range(len(sets))]
    limits = [_limits([each.values[:, i] for each in sets], tails, marks, i) for i in range(features)]
    fewest = min(len(each.values) for each in sets)  # the same smoothing for all sets, so that contours are comparable
    for row in range(features):
        for column in range(features):
            axis = axes[row, column]
            if column > row:
                axis.set_visible(False)
                continue
            if row == column:
                _histogram(axis, sets, row, limits[row], bins, marks)
            else:
                for points in sets:
                    _pair(axis, points, (column, row), (limits[column], limits[row]), fewest)
                if marks is not None:
                    axis.scatter(marks[:, column], marks[:, row], s=22, marker="x", color=INK, lw=1.1, zorder=5)
                axis.set_ylim(limits[row])
            axis.set_xlim(limits[column])
            _dress(axis, row, column, features, names)
    figure.align_labels(axes)
    contours = features > 1 and max(len(each.values) for each in sets) >= FEWEST
    _legend(figure, axes, sets, title, contours, mark_label if marks is not None else "")
    return finish(figure, path)


def _table(name: str, x: Any, features: int | None):
    """Checks a table of points (or draws them from an object with ``sample``), and returns its numbers."""
    x = samples_of(x, 5000)
    if x.ndim != 2 or 0 in x.shape or (features is not None and x.shape[1] != features):
        wanted = "[N, D]" if features is None else f"[N, {features}], as the samples are"
        raise ValueError(
            f"plot.corner({name} of shape {list(x.shape)}): expected one column per feature and at least one row; pass "
            f"{wanted}."
        )
    bad = int((~x.isfinite().all(1)).sum())
    if bad:
        raise ValueError(
            f"plot.corner({name}): {bad} of {len(x)} rows hold NaN or infinity; drop them, "
            f"{name}[{name}.isfinite().all(1)]."
        )
    return numbers(x)


def _limits(columns, tails: list[float], marks, i: int) -> tuple[float, float]:
    """Computes the limits of an axis; for a constant feature they are as wide as its value."""
    import numpy as np

    # With a reference, the farthest 1 % of the samples do not affect the axis.
    low = min(float(np.quantile(each, tail)) for each, tail in zip(columns, tails))
    high = max(float(np.quantile(each, 1 - tail)) for each, tail in zip(columns, tails))
    if marks is not None:
        low, high = min(low, float(marks[:, i].min())), max(high, float(marks[:, i].max()))
    margin = 0.05 * (high - low) if high > low else max(abs(high), 1.0) / 2
    return low - margin, high + margin


def _histogram(axis, sets, i: int, limits: tuple[float, float], bins: int, marks) -> None:
    for points in sets:
        kind = {"histtype": "stepfilled", "alpha": 0.45} if points.filled else {"histtype": "step", "lw": 1.3}
        # Weights of the whole set: points outside the axis are not redistributed inside.
        weights = [1 / len(points.values)] * len(points.values)
        axis.hist(points.values[:, i], bins=bins, range=limits, weights=weights, color=points.colour, **kind)
    if marks is not None and len(marks) == 1:
        axis.axvline(float(marks[0, i]), color=INK, lw=0.9, ls="--")
    axis.set_ylim(bottom=0)


def _pair(axis, points: Points, columns: tuple[int, int], spans, fewest: int) -> None:
    """Draws two features of a set: dots, and over them regions of highest density.

    The histogram is computed and smoothed in uncorrelated coordinates, so that a narrow ridge stays narrow.
    """
    import numpy as np
    from scipy.ndimage import gaussian_filter

    pair, colour = points.values[:, columns], points.colour
    shown = pair[:: max(1, len(pair) // 1500)]
    alone = len(pair) < FEWEST
    axis.scatter(*shown.T, s=5 if alone else 1.2, color=colour, alpha=0.7 if alone else 0.3, lw=0, rasterized=True)
    low, high = np.transpose(spans)
    seen = pair[((pair >= low) & (pair <= high)).all(1)]
    if alone or len(seen) < FEWEST or not (seen.std(0) > 0).all():  # too few for contours, or on a line
        return
    centre, scale = seen.mean(0), seen.std(0)
    unit = (seen - centre) / scale
    correlation = float(np.clip((unit[:, 0] * unit[:, 1]).mean(), -1 + 1e-9, 1 - 1e-9))
    factor = np.linalg.cholesky([[1.0, correlation], [correlation, 1.0]])
    spread = np.linalg.solve(factor, unit.T)
    low, high = np.quantile(spread, 0.001, axis=1), np.quantile(spread, 0.999, axis=1)
    low, high = low - 0.2 * (high - low), high + 0.2 * (high - low)
    counts, *edges = np.histogram2d(*spread, bins=CELLS, range=list(zip(low, high)))
    # Half of the width for a normal distribution (Scott's rule), so that several modes stay separate.
    width = 0.5 * fewest ** (-1 / 6) * CELLS / (high - low)
    height = gaussian_filter(counts, np.maximum(width, 0.7), mode="constant")
    order = np.sort(height.ravel())[::-1]
    mass = np.cumsum(order) / order.sum() * (len(seen) / len(pair))
    levels = [float(order[min(np.searchsorted(mass, each), len(order) - 1)]) for each in MASSES]
    if not 0 < levels[0] < levels[1] < order[0]:  # all points are in one or two cells: the dots are enough
        return
    grid = np.stack(np.meshgrid(*[(each[1:] + each[:-1]) / 2 for each in edges], indexing="ij"))
    across, up = np.tensordot(factor, grid, 1) * scale[:, None, None] + centre[:, None, None]
    if points.filled:
        axis.contourf(across, up, height, [*levels, order[0]], colors=[colour, colour], alpha=0.35)
        axis.contour(across, up, height, levels[1:], colors=colour, linewidths=0.8, alpha=0.8)
    else:
        axis.contour(across, up, height, levels, colors=colour, linewidths=1.2)


def _dress(axis, row: int, column: int, features: int, names: list[str]) -> None:
    """Adds ticks and names only on the outer sides."""
    from matplotlib.ticker import MaxNLocator

    axis.tick_params(labelsize=6.5, length=2, pad=1.5)
    axis.xaxis.set_major_locator(MaxNLocator(3, prune="both"))
    axis.spines[["top", "right"]].set_visible(False)
    if row == column:
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
    else:
        axis.yaxis.set_major_locator(MaxNLocator(3, prune="both"))
        axis.tick_params(labelleft=column == 0)
        if column == 0:
            axis.set_ylabel(_label(names[row], axis.yaxis), fontsize=8)
    axis.tick_params(labelbottom=row == features - 1)
    if row == features - 1:
        axis.tick_params(axis="x", rotation=30)
        axis.set_xlabel(_label(names[column], axis.xaxis), fontsize=8)


def _label(name: str, axis) -> str:
    """Returns a name, shortened, with the offset or factor of the ticks, which would cover a neighbour elsewhere."""
    formatter = axis.get_major_formatter()
    formatter.format_ticks(axis.get_majorticklocs())
    axis.get_offset_text().set_visible(False)
    offset = formatter.get_offset().replace("\N{MINUS SIGN}", "-")
    return f"{name if len(name) <= 22 else name[:20] + '...'}{f' ({offset})' if offset else ''}"


def _legend(figure, axes, sets, title: str, contours: bool, mark_label: str) -> None:
    """Adds a title, and a legend in the empty corner above the diagonal (above the picture if there is one panel)."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    box, alone, cramped = axes[0, 0].get_position(), len(axes) == 1, len(axes) == 2
    if len(sets) > 1 or contours or mark_label:
        patches = [Patch(color=each.colour, label=each.label) for each in reversed(sets)] if len(sets) > 1 else []
        shares = " and ".join(f"{share:.0%}" for share in sorted(MASSES))
        if mark_label:
            patches.append(Line2D([], [], color=INK, marker="x", ls="", ms=5, label=mark_label))
        drawn = [
            word
            for word, kind in (("contours", False), ("regions", True))
            if kind in {each.filled for each in sets if len(each.values) >= FEWEST}
        ]
        said = (" and ".join(drawn), f"hold {shares}\nof the points")
        note = ("\n" if cramped else " ").join(said) if contours else None
        place = {"loc": "lower center", "ncols": 2} if alone else {"loc": "upper right"}
        figure.legend(
            handles=patches, fontsize=7 if cramped else 9, frameon=False, title=note,
            title_fontsize=7 if cramped else 8, bbox_to_anchor=(0.5 if alone else 0.9, box.y1), **place,
        )  # fmt: skip
    if title:
        figure.suptitle(title, fontsize=10, y=box.y1 + (0.2 if alone else 0.05))
