"""A check that data have a mean and scale similar to the draws of a flow's base, as training assumes."""

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
"""Limits in deviations of the base: of the shift of a mean, of a wide column, and of columns that are all narrow."""
HEAVY = 2.0
"""The ratio of deviation to half the distance of quantiles above which a column has heavy tails (a normal's is 1)."""


def warn_of_scale(flow: Any, objective: Any, x: Any, context: Any = None, line: dict[str, Any] | None = None) -> None:
    """Warns if columns of a batch, after transforms, have a mean or scale far from that of the base's draws.

    A network that starts from the scale of the base cannot learn data that are a thousand times larger, and the loss
    does not show it. There is no warning if transforms are trained (they may adapt the scale), if the data are tokens,
    or if they are not plain tensors of the flow's events. No random state changes.

    Extreme rows count, unless the base has heavy tails too: then quantiles are compared. A column of the base that is
    mostly one value (a category) is compared by its deviation; a constant one is not compared. The warning points to
    ``line``. Default: the caller's.

    Cost: one host read, and 1024 draws of the base.
    """
    plain = objective.samples_per_item is None and not objective.in_model_space and isinstance(x, Tensor)
    if not plain or len(x) < 2 or flow.transform.trained_from < len(flow.transform):
        return
    base = getattr(flow, "base", None)
    shape = getattr(base, "event_shape", None)
    if shape is None or getattr(base, "context_shape", None) is not None or shape != flow.model_shape:
        return
    if flow.transform.likelihood == "none":
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
    off, spread = (at - loc).abs() / unit, deviation / unit  # NaN if both are zero; comparisons are then False
    judged = unit > 0
    narrow = judged.any() & (spread[judged] < NARROW).all()
    columns = judged & ((off > FAR) | (spread > WIDE) | narrow)
    if not columns.any():
        return
    show = lambda values: f"{float(values[columns].min()):.3g} to {float(values[columns].max()):.3g}"
    warnings.warn_explicit(
        f"fit(data): {int(columns.sum())} of {len(columns)} columns are far from the draws of the base (means "
        f"{show(at)} and deviations {show(deviation)}, not {show(loc)} and {show(unit)}), so training may fail; train "
        f"flow.with_transform(bijections.Standardise.fit(x)), or an estimator with standardise=True.",
        UserWarning,
        **(line or calling_line()),
    )


def _compared(data: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns for every column ``(location of the data, of the base, scale of the base, of the data)``."""
    (middle, width), (loc, unit) = _by_quantiles(data), _by_quantiles(drawn)
    mean, deviation = drawn.mean(0), drawn.std(0)
    heavy = (deviation > HEAVY * unit) & (unit > 0) & (width > 0)
    # For a base with light tails, its quantiles are compared with mean and deviation of all rows of the data.
    alike = heavy | ((unit > 0) & (deviation <= HEAVY * unit))
    loc, unit = torch.where(alike, loc, mean), torch.where(alike, unit, deviation)
    return torch.where(heavy, middle, data.mean(0)), loc, unit, torch.where(heavy, width, data.std(0))


def _by_quantiles(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the median of every column, and half the distance of its 0.16 and 0.84 quantiles."""
    low, middle, high = torch.quantile(values, values.new_tensor([0.16, 0.5, 0.84]), 0)
    return middle, (high - low) / 2
