"""What a solve returns: the state at the end, integrals along the way, what it cost and how it went per sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from cflow.registry import register

__all__ = ["Solution", "Stats", "Status", "Tolerance"]


class Status(IntEnum):
    """Says how a solve ended for one sample."""

    SUCCESS = 0
    MAX_STEPS = 1
    """The step limit was reached; the sample is left where it was."""
    NON_FINITE = 2
    """The field or the state left the finite numbers; an adaptive solver leaves the sample at its last good state."""
    STEP_TOO_SMALL = 3
    """The tolerance asked for steps below what the time's dtype can resolve: a stiff field or a singularity."""


@register("solvers.Tolerance")
@dataclass(frozen=True)
class Tolerance:
    r"""Bounds the local error of a quadrature, :math:`|e| \le \text{atol} + \text{rtol} \cdot |q|`.

    Raises:
        ValueError: if a tolerance is negative or both are zero.

    Example:
        >>> Tolerance(rtol=1e-5, atol=1e-5)
        Tolerance(rtol=1e-05, atol=1e-05)
    """

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self):
        check_tolerances("Tolerance", self.rtol, self.atol)


def check_tolerances(owner: str, rtol: float, atol: float) -> None:
    """Raises unless both tolerances are finite, none is negative and one is positive."""
    if not (math.isfinite(rtol) and math.isfinite(atol) and min(rtol, atol) >= 0 and max(rtol, atol) > 0):
        raise ValueError(
            f"{owner}(rtol={rtol}, atol={atol}): an error cannot be held below a negative, infinite or zero bound; "
            f"pass finite tolerances of which at least one is positive."
        )


@dataclass
class Stats:
    """Counts what a solve cost.

    Shapes: ``steps``, ``accepted`` and ``rejected`` are int64 ``[B]`` (attempts, and how they ended), ``reached``
    ``[B]`` is the time up to which each sample was integrated. ``nfe`` is the number of calls of the field and
    ``evaluations`` the number of rows over all calls: a solver that drops finished samples evaluates fewer than
    ``nfe * B``.
    """

    nfe: int
    evaluations: int
    steps: Tensor
    accepted: Tensor
    rejected: Tensor
    reached: Tensor

    def __repr__(self) -> str:
        """Shows sums over the batch, not a number for each sample."""
        accepted, rejected = int(self.accepted.sum()), int(self.rejected.sum())
        return f"Stats(nfe={self.nfe}, evaluations={self.evaluations}, accepted={accepted}, rejected={rejected})"


@dataclass
class Solution:
    """Carries the result of a solve.

    Shapes: ``y`` as ``y0``; ``quadratures`` maps each name to ``[B]`` or ``[B, k]``; ``status`` int64 ``[B]`` holds
    :class:`Status` values; ``trajectory`` is like ``y`` with one more leading dimension of ``len(at)``, or None.
    """

    y: Any
    quadratures: Mapping[str, Tensor]
    stats: Stats
    status: Tensor
    trajectory: Any = field(default=None)

    def __repr__(self) -> str:
        """Shows shapes, costs and how many samples succeeded, not the states."""
        parts = {"y": self.y, "quadratures": self.quadratures or None, "trajectory": self.trajectory}
        shown = [f"{name}={_sizes(part)}" for name, part in parts.items() if part is not None]
        ended = f"{int(self.success.sum())} of {self.success.numel()} succeeded"
        return f"Solution({', '.join(shown)}, nfe={self.stats.nfe}, {ended})"

    @property
    def success(self) -> Tensor:
        """Says for each sample whether it was integrated to the end, as a boolean ``[B]``."""
        return self.status == Status.SUCCESS

    def require_success(self) -> Solution:
        """Returns itself when every sample succeeded; reads the statuses from the device once.

        Raises:
            RuntimeError: naming the first sample that failed, how and where.
        """
        failed = torch.nonzero(self.status != Status.SUCCESS).flatten().tolist()
        if failed:
            first = failed[0]
            raise RuntimeError(
                f"{len(failed)} of {self.status.shape[0]} samples were not integrated to the end: sample {first} ended "
                f"with {Status(int(self.status[first])).name} at t = {float(self.stats.reached[first]):.6g} after "
                f"{int(self.stats.steps[first])} steps; loosen the tolerances, raise the step limit, or look at the "
                f"field there."
            )
        return self


def _sizes(part: Any) -> str:
    """Shows the shapes of a state: of a tensor, or of each of several."""
    if isinstance(part, Tensor):
        return str(list(part.shape))
    if isinstance(part, Mapping):
        return "{" + ", ".join(f"{name}: {_sizes(each)}" for name, each in part.items()) + "}"
    return "(" + ", ".join(map(_sizes, part)) + ")"
