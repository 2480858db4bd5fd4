"""What a metric that is measured on samples returns, and how its arguments are checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Estimate"]

LARGEST = 1e74  # fourth powers of differences, summed over many features, stay finite in float64


@dataclass(frozen=True)
class Estimate:
    """Holds an estimated value with its standard error.

    Example:
        >>> estimate = Estimate(0.25, 0.01)
        >>> print(estimate)
        0.25 ± 0.01
        >>> float(estimate)
        0.25
    """

    value: float
    standard_error: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.2g}"


def mean_estimate(values: Tensor) -> Estimate:
    """Averages independent values ``[B]``."""
    values = values.detach().to(torch.float64)
    error = values.std() / len(values) ** 0.5 if len(values) > 1 else torch.tensor(float("inf"))
    return Estimate(float(values.mean()), float(error))


def two_samples(name: str, x: Tensor, y: Tensor, at_least: int = 1) -> tuple[Tensor, Tensor]:
    """Checks two samples ``[N, D]`` and ``[M, D]`` and gives them in float64 about their common median.

    Distances do not change with the origin, but are most precise near it: a few rows far away do not move the median.
    """
    for label, sample in (("x", x), ("y", y)):
        if not isinstance(sample, Tensor):
            raise TypeError(
                f"{name}({label} of type {type(sample).__name__}): samples are tensors [N, D]; pass "
                f"torch.as_tensor({label})."
            )
        if sample.ndim != 2 or sample.shape[1] == 0:
            raise ValueError(
                f"{name}({label} of shape {list(sample.shape)}): samples are rows, [N, D], with D of 1 or more; "
                f"flatten the event first, for instance with {label}.flatten(1)."
            )
        if len(sample) < at_least:
            raise ValueError(
                f"{name}({label} of shape {list(sample.shape)}): this takes at least {at_least} samples; draw more."
            )
        if not bool(sample.isfinite().all()):
            rows = int((~sample.isfinite()).any(-1).sum())
            raise ValueError(
                f"{name}({label} of shape {list(sample.shape)}): {rows} rows hold NaN or infinite values, which have "
                f"no distance; find out where they come from, or drop them and say so."
            )
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{name}(x of shape {list(x.shape)}, y of shape {list(y.shape)}): the two have different dimensions; "
            f"compare samples of one space."
        )
    x, y = x.detach().to(torch.float64), y.detach().to(device=x.device, dtype=torch.float64)
    largest = max(float(x.abs().max()), float(y.abs().max()))
    if largest > LARGEST:
        raise ValueError(
            f"{name}(values up to {largest:.2g}): their fourth powers, which errors are computed from, overflow "
            f"float64; divide both samples by one number, or find out where such values come from."
        )
    centre = torch.cat([x, y]).median(0).values
    return x - centre, y - centre
