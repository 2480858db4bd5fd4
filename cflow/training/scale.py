"""Whether data lie where the base of a flow draws, which training takes for granted."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from cflow.arguments import calling_line
from cflow.shapes import rows

__all__ = ["warn_of_scale"]

DRAWS = 1024
FAR, WIDE, NARROW = 10.0, 10.0, 1 / 50
"""How many deviations of the base a mean may be off, how many wide a column may be, and how narrow all of them."""
HEAVY = 2.0
"""How many times the half distance of the quantiles a deviation is where tails decide it (a normal's: once)."""


def warn_of_scale(flow: Any, objective: Any, x: Any, context: Any = None, line: dict[str, Any] | None = None) -> None:
    """Warns where the columns of a batch, transforms applied, lie or spread far from those of the base's draws.

    A network meets numbers of the data's size, and begins from the base's: from data a thousand times as large nothing
    is learned, and no number of training says so. Says nothing where transforms are trained (they may bring the data
    there), and for data that are not plain tensors of what the flow models. No random state is moved.

    Wild rows count, unless the base has some too: there quantiles are compared. A column of the base of which most is
    one value (a category) is judged by its deviation, and one that is constant not at all. ``line`` is where the
    warning points, the caller's unless given.

    Cost: one host read, and 1024 draws of the base.
    """
    plain = objective.samples_per_item is None and not objective.in_model_space and isinstance(x, Tensor)
    if not plain or len(x) < 2 or flow.transform.trained_from < len(flow.transform):
        return
    base = getattr(flow, "base", None)
    shape = getattr(base, "event_shape", None)
    if shape is None or getattr(base, "context_shape", None) is not None or shape != flow.model_shape:
        return
    x = flow.cast(x)
    seeded = lambda: torch.Generator(x.device).manual_seed(0)
    with torch.no_grad():
        u = flow.preprocess(x, flow.cast(context), generator=seeded())[0]
        drawn = rows(flow.cast(base.sample((DRAWS,), generator=seeded()))).double()
    data = rows(u.detach()).double()
    if not data.shape[1]:
        return
    at, loc, unit, deviation = _compared(data, drawn)
    off, spread = (at - loc).abs() / unit, deviation / unit  # NaN, which no comparison holds for, where both are zero
    judged = unit > 0
    narrow = judged.any() & (spread[judged] < NARROW).all()
    columns = judged & ((off > FAR) | (spread > WIDE) | narrow)
    if not columns.any():
        return
    show = lambda values: f"{float(values[columns].min()):.3g} to {float(values[columns].max()):.3g}"
    warnings.warn_explicit(
        f"fit(data): {int(columns.sum())} of {len(columns)} columns lie far from what the base draws, which a flow "
        f"learns badly or not at all: means {show(at)} and deviations {show(deviation)} against "
        f"{show(loc)} and {show(unit)}; train flow.with_transform(bijections.Standardise.fit(x)) "
        f"instead, or an estimator with standardise=True.",
        UserWarning,
        **(line or calling_line()),
    )


def _compared(data: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Measures every column: ``(middle of the data, of the base, width of the base, of the data)``."""
    (middle, width), (loc, unit) = _by_quantiles(data), _by_quantiles(drawn)
    mean, deviation = drawn.mean(0), drawn.std(0)
    heavy = (deviation > HEAVY * unit) & (unit > 0) & (width > 0)
    # Of a light-tailed base the quantiles, which rounding of a few draws does not move, against all rows of the data.
    alike = heavy | ((unit > 0) & (deviation <= HEAVY * unit))
    loc, unit = torch.where(alike, loc, mean), torch.where(alike, unit, deviation)
    return torch.where(heavy, middle, data.mean(0)), loc, unit, torch.where(heavy, width, data.std(0))


def _by_quantiles(values: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the median of every column, and half the distance of the quantiles a deviation from a normal's."""
    low, middle, high = torch.quantile(values, values.new_tensor([0.16, 0.5, 0.84]), 0)
    return middle, (high - low) / 2
