"""What a metric that is measured on samples returns, and how its arguments are checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Estimate"]


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
    """Checks two samples ``[N, D]`` and ``[M, D]`` and gives them in float64 about their common mean.

    Distances do not change with the origin, but are more precise about the mean.
    """
    for label, sample in (("x", x), ("y", y)):
        if sample.ndim != 2:
            raise ValueError(
                f"{name}({label} of shape {list(sample.shape)}): samples are rows, [N, D]; flatten the event first, "
                f"for instance with {label}.flatten(1)."
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
    centre = (x.mean(0) + y.mean(0)) / 2
    return x - centre, y - centre
