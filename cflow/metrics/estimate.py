"""The result of a metric of samples, and the checks of its arguments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Estimate"]

LARGEST = 1e74  # fourth powers of differences, summed over many features, stay finite in float64


@dataclass(frozen=True)
class Estimate:
    """Contains an estimated value and its standard error; ``float(estimate)`` is the value.

    Attributes:
        value: the estimate.
        standard_error: its standard error.

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
    """Checks two samples ``[N, D]`` and ``[M, D]`` and returns them in float64 relative to their common median.

    Distances do not depend on the origin, but are most precise near it, and a few rows far away do not move the median.
    """
    for label, sample in (("x", x), ("y", y)):
        if not isinstance(sample, Tensor):
            raise TypeError(
                f"{name}({label} of type {type(sample).__name__}): samples are tensors [N, D]; pass "
                f"torch.as_tensor({label})."
            )
        if sample.ndim != 2 or sample.shape[1] == 0:
            raise ValueError(
                f"{name}({label} of shape {list(sample.shape)}): samples are rows, [N, D], with D of 1 or more; pass "
                f"{label}.flatten(1)."
            )
        if len(sample) < at_least:
            raise ValueError(
                f"{name}({label} of shape {list(sample.shape)}): at least {at_least} samples are needed; draw more."
            )
        if not bool(sample.isfinite().all()):
            rows = int((~sample.isfinite()).any(-1).sum())
            raise ValueError(
                f"{name}({label} of shape {list(sample.shape)}): {rows} rows have NaN or infinite values; drop them, "
                f"and report it."
            )
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{name}(x of shape {list(x.shape)}, y of shape {list(y.shape)}): they have different dimensions; compare "
            f"samples of one space."
        )
    x, y = x.detach().to(torch.float64), y.detach().to(device=x.device, dtype=torch.float64)
    largest = max(float(x.abs().max()), float(y.abs().max()))
    if largest > LARGEST:
        raise ValueError(
            f"{name}(values up to {largest:.2g}): their fourth powers overflow float64; divide both samples by one "
            f"number."
        )
    centre = torch.cat([x, y]).median(0).values
    return x - centre, y - centre
