"""Whether data lie where the base of a flow draws, which training takes for granted."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from cflow.shapes import rows

__all__ = ["warn_of_scale"]

DRAWS = 1024
FAR, WIDE, NARROW = 10.0, 10.0, 1 / 50
"""How many deviations of the base a mean may be off, how many wide a column may be, and how narrow all of them."""


@torch.no_grad()
def warn_of_scale(flow: Any, objective: Any, x: Any, context: Any = None) -> None:
    """Warns where the columns of a batch, transforms applied, lie or spread far from those of the base's draws.

    A network meets numbers of the data's size, and begins from the base's: from data a thousand times as large nothing
    is learned, and no number of training says so. Says nothing where transforms are trained (they may bring the data
    there), and for data that are not plain tensors of what the flow models. No random state is moved.

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
    u = flow.preprocess(x, flow.cast(context), generator=seeded())[0]
    data, drawn = (rows(each).double() for each in (u, flow.cast(base.sample((DRAWS,), generator=seeded()))))
    if not data.shape[1]:
        return
    # Of the base a middle that heavy tails do not move; of the data all, wild rows included.
    low, middle, high = torch.quantile(drawn, drawn.new_tensor([0.16, 0.5, 0.84]), 0)
    width = ((high - low) / 2).clamp(min=torch.finfo(torch.float32).tiny)
    off, spread = (data.mean(0) - middle).abs() / width, data.std(0) / width
    columns = (off > FAR) | (spread > WIDE) | (spread.max() < NARROW)
    if not columns.any():
        return
    show = lambda values: f"{float(values[columns].min()):.3g} to {float(values[columns].max()):.3g}"
    warnings.warn(
        f"fit(data): {int(columns.sum())} of {len(columns)} columns lie far from what the base draws, which a flow "
        f"learns badly or not at all: means {show(data.mean(0))} and deviations {show(data.std(0))} against "
        f"{show(middle)} and {show(width)}; train flow.with_transform(bijections.Standardise.fit(x)) instead.",
        stacklevel=2,
    )
