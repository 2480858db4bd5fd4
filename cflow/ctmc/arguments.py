"""Checks of the schedules and rates that paths and samplers take."""

from __future__ import annotations

from typing import Any

__all__ = ["check_rate", "check_schedule"]


def check_schedule(owner: str, value: Any) -> None:
    """Raises a TypeError unless ``value`` is a schedule or None."""
    _check(owner, "schedule", value, "kappa", "Linear()")


def check_rate(owner: str, value: Any) -> None:
    """Raises a TypeError unless ``value`` is a rate or None."""
    _check(owner, "rate", value, "coefficients", "TimeReversal()")


def _check(owner: str, name: str, value: Any, method: str, example: str) -> None:
    if value is not None and (isinstance(value, type) or not hasattr(value, method)):
        raise TypeError(f"{owner}({name}={value!r:.60}): this is not a {name}; pass an object such as ctmc.{example}.")
