"""The result of a solve: the state at the end, integrals, the cost, and a status per sample."""

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
    """Lists how a solve can end for one sample."""

    SUCCESS = 0
    MAX_STEPS = 1
    """The step limit was reached; the sample stays at its last state."""
    NON_FINITE = 2
    """The field or the state was not finite; an adaptive solver keeps the last accepted state of the sample."""
    STEP_TOO_SMALL = 3
    """The tolerance required steps that the dtype of time cannot resolve: a stiff field or a singularity."""


@register("solvers.Tolerance")
@dataclass(frozen=True)
class Tolerance:
    r"""Bounds the local error of a quadrature, :math:`|e| \le \text{atol} + \text{rtol} \cdot |q|`.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance, in the unit of the quadrature.

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
            f"{owner}(rtol={rtol}, atol={atol}): tolerances are finite and not negative; pass at least one that is "
            f"positive."
        )


@dataclass
class Stats:
    """Counts the cost of a solve.

    Attributes:
        nfe: number of function evaluations (NFE), each on a batch.
        evaluations: number of rows over all evaluations. A solver that drops finished samples has fewer than
            ``nfe * B``.
        steps: attempted steps of each sample, int64 ``[B]``.
        accepted, rejected: how many of these were accepted and rejected, int64 ``[B]``.
        reached: the time up to which each sample was integrated, ``[B]``.
        projection: how far the end of each sample was from the manifold of a flow before it was projected, ``[B]``;
            None without a manifold.
    """

    nfe: int
    evaluations: int
    steps: Tensor
    accepted: Tensor
    rejected: Tensor
    reached: Tensor
    projection: Tensor | None = None

    def __repr__(self) -> str:
        """Shows sums over the batch, not a number for each sample."""
        accepted, rejected = int(self.accepted.sum()), int(self.rejected.sum())
        return f"Stats(nfe={self.nfe}, evaluations={self.evaluations}, accepted={accepted}, rejected={rejected})"


@dataclass
class Solution:
    """Holds the result of a solve.

    Attributes:
        y: the state at the end, with the structure of ``y0``.
        quadratures: maps the name of each integral to its value, ``[B]`` or ``[B, k]``.
        stats: the cost, a :class:`Stats`.
        status: the :class:`Status` of each sample, int64 ``[B]``.
        trajectory: the states at the times ``at``, like ``y`` with one more leading dimension of ``len(at)``; None
            without ``at``.

    Example:
        >>> from cflow import solvers
        >>> solution = solvers.Heun(10).solve(lambda t, y: -y, torch.ones(2, 1), 0.0, 1.0)
        >>> solution.success, solution.stats.nfe
        (tensor([True, True]), 20)
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
        """Whether each sample was integrated to the end, boolean ``[B]``."""
        return self.status == Status.SUCCESS

    def require_success(self) -> Solution:
        """Returns itself if every sample succeeded; reads the statuses from the device once.

        Raises:
            RuntimeError: with the first sample that failed, its status and its time.
        """
        failed = torch.nonzero(self.status != Status.SUCCESS).flatten().tolist()
        if failed:
            first = failed[0]
            raise RuntimeError(
                f"{len(failed)} of {self.status.shape[0]} samples were not integrated to the end: sample {first} ended "
                f"with {Status(int(self.status[first])).name} at t = {float(self.stats.reached[first]):.6g} after "
                f"{int(self.stats.steps[first])} steps; loosen the tolerances, raise the step limit, or check the "
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
