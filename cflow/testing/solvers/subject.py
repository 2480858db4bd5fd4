"""The solver under test, and a problem with a known solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from cflow.solvers.solver import Solver

__all__ = ["Subject", "ones", "options", "riccati", "tangent"]


@dataclass
class Subject:
    """Holds the solver under test as a function of its accuracy."""

    make: Callable[[float], Solver]
    order: int
    adaptive: bool

    @property
    def joint(self) -> bool:
        """Whether the samples of a batch share their steps."""
        return self.usual.shares_steps

    @property
    def usual(self) -> Solver:
        return self.make(1e-7 if self.adaptive else 32)

    def error(self, solver: Solver, t0: float = 0.0, t1: float = 1.0) -> float:
        """Measures the largest error at the end of the reference problem."""
        return (solver.solve(riccati, tangent(t0), t0, t1).y - tangent(t1)).abs().max().item()


def options(solver: Any) -> set[str]:
    """Returns the names of a solver's options, which can be replaced."""
    return {each.name for each in fields(solver)} if is_dataclass(solver) else set()


PHASES = torch.tensor([-0.5, -0.2, 0.1, 0.3], dtype=torch.float64)


def riccati(t: Tensor, y: Tensor) -> Tensor:
    """Computes z' = cos(t) (1 + z^2) for complex z in two real numbers: nonlinear, coupled, non-autonomous."""
    x, w = y.unbind(-1)
    return torch.cos(t).unsqueeze(-1) * torch.stack((1 + x * x - w * w, 2 * x * w), -1)


def tangent(t: float) -> Tensor:
    """Computes the solution z = tan(sin(t) + c) of the reference problem for four constants c."""
    phases = torch.complex(math.sin(t) + PHASES, torch.full_like(PHASES, 0.4))
    return torch.view_as_real(torch.tan(phases))


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)
