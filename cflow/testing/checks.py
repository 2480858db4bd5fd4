"""The two assertions of the suites."""

from __future__ import annotations

from torch import Tensor

__all__ = ["close", "demand"]


def demand(holds, message: str) -> None:
    """Raises an AssertionError with this message if a property does not hold."""
    if not bool(holds):
        raise AssertionError(message)


def close(left: Tensor, right: Tensor, tolerance: float, message: str) -> None:
    """Raises an AssertionError if two tensors differ in shape, or by more than the tolerance."""
    gap = float((left - right).detach().abs().max()) if left.numel() else 0.0
    demand(left.shape == right.shape, f"{message}: shapes {tuple(left.shape)} and {tuple(right.shape)} differ")
    demand(gap <= tolerance, f"{message}: off by {gap:.3g}, more than {tolerance:.3g}")
