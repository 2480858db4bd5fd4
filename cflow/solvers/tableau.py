"""Butcher tableaus: the coefficients that make one Runge-Kutta method differ from another."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DOPRI5", "EULER", "HEUN", "MIDPOINT", "RK4", "Combination", "Tableau"]


class Combination(NamedTuple):
    r"""Writes :math:`\sum_j w_j k_j` as :math:`w_l (k_l + \sum_{j \ne l} (w_j / w_l) k_j)`.

    The bracket costs one fused multiply-add per further slope and the factor :math:`w_l h` rides on the last addition
    to the state, so a stage of n slopes is n kernels, and only one of them rounds at the size of the state.
    """

    lead: int
    weight: float
    rest: tuple[tuple[int, float], ...]

    def bracket(self, slopes: list[list[Tensor]], part: int) -> Tensor:
        """Computes the bracket for one part of the state; ``slopes`` holds a list of parts per stage."""
        total = slopes[self.lead][part]
        for other, ratio in self.rest:
            total = torch.add(total, slopes[other][part], alpha=ratio)
        return total


def _combination(weights: tuple[Fraction, ...]) -> Combination | None:
    """Builds the combination of the nonzero weights; None when all are zero."""
    used = [(index, weight) for index, weight in enumerate(weights) if weight]
    if not used:
        return None
    lead, scale = used[0]
    return Combination(lead, float(scale), tuple((index, float(weight / scale)) for index, weight in used[1:]))


@dataclass(frozen=True)
class Tableau:
    r"""Holds the coefficients of an explicit Runge-Kutta method as exact fractions.

    .. math:: k_i = f\Big(t + c_i h,\; y + h \sum_{j<i} a_{ij} k_j\Big), \qquad y^+ = y + h \sum_i b_i k_i

    ``a`` has one row per stage (row i has i entries), ``error`` the weights :math:`b_i - \hat b_i` of the embedded
    method of order ``embedded_order``, so that :math:`h \sum_i e_i k_i` estimates the local error.

    Raises:
        ValueError: if the sizes do not fit, a row of ``a`` does not sum to its ``c``, or ``b`` does not sum to one.

    Source: Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, chapter II.

    Example:
        >>> MIDPOINT.order, MIDPOINT.fsal, DOPRI5.fsal
        (2, False, True)
    """

    name: str
    a: tuple[tuple[Fraction, ...], ...]
    b: tuple[Fraction, ...]
    c: tuple[Fraction, ...]
    order: int
    error: tuple[Fraction, ...] | None = None
    embedded_order: int | None = None

    def __post_init__(self):
        if not len(self.a) == len(self.b) == len(self.c) or any(len(row) != i for i, row in enumerate(self.a)):
            raise ValueError(
                f"Tableau({self.name!r}): {len(self.a)} rows of lengths {[len(row) for row in self.a]} with "
                f"{len(self.b)} weights and {len(self.c)} nodes do not make an explicit method; row i has i entries."
            )
        if any(sum(row) != node for row, node in zip(self.a, self.c)) or sum(self.b) != 1:
            raise ValueError(
                f"Tableau({self.name!r}): rows that do not sum to their nodes, or weights that do not sum to 1, "
                f"make an inconsistent method; check the coefficients against the source."
            )
        if (self.error is None) != (self.embedded_order is None) or (self.error and len(self.error) != len(self.b)):
            raise ValueError(
                f"Tableau({self.name!r}): an embedded method needs its order and one error weight per stage; "
                f"give both error and embedded_order, or neither."
            )

    @property
    def fsal(self) -> bool:
        """Says whether the last stage of a step is the first of the next one."""
        return len(self.a) > 1 and self.a[-1] == self.b[:-1] and self.b[-1] == 0 and self.c[-1] == 1

    @cached_property
    def stages(self) -> tuple[Combination | None, ...]:
        """Gives how each stage's argument is combined from the slopes before it; None at the step's start."""
        return tuple(_combination(row) for row in self.a)

    @cached_property
    def step(self) -> Combination:
        """Gives how the step is combined from the slopes."""
        return _combination(self.b)

    @cached_property
    def estimate(self) -> Combination | None:
        """Gives how the error estimate is combined from the slopes; None without an embedded method."""
        return _combination(self.error) if self.error else None

    @cached_property
    def nodes(self) -> tuple[float, ...]:
        """Gives the stage times within a step of length one."""
        return tuple(float(node) for node in self.c)


def _fractions(text: str) -> tuple[Fraction, ...]:
    """Reads a row of fractions."""
    return tuple(Fraction(word) for word in text.split())


def _rows(*texts: str) -> tuple[tuple[Fraction, ...], ...]:
    """Reads the lower triangle of a tableau, one string per stage."""
    return tuple(_fractions(text) for text in texts)


EULER = Tableau("euler", a=_rows(""), b=_fractions("1"), c=_fractions("0"), order=1)

MIDPOINT = Tableau("midpoint", a=_rows("", "1/2"), b=_fractions("0 1"), c=_fractions("0 1/2"), order=2)

HEUN = Tableau(
    "heun",
    a=_rows("", "1"),
    b=_fractions("1/2 1/2"),
    c=_fractions("0 1"),
    order=2,
    error=_fractions("-1/2 1/2"),
    embedded_order=1,
)

RK4 = Tableau(
    "rk4",
    a=_rows("", "1/2", "0 1/2", "0 0 1"),
    b=_fractions("1/6 1/3 1/3 1/6"),
    c=_fractions("0 1/2 1/2 1"),
    order=4,
)

DOPRI5 = Tableau(
    "dopri5",
    a=_rows(
        "",
        "1/5",
        "3/40 9/40",
        "44/45 -56/15 32/9",
        "19372/6561 -25360/2187 64448/6561 -212/729",
        "9017/3168 -355/33 46732/5247 49/176 -5103/18656",
        "35/384 0 500/1113 125/192 -2187/6784 11/84",
    ),
    b=_fractions("35/384 0 500/1113 125/192 -2187/6784 11/84 0"),
    c=_fractions("0 1/5 3/10 4/5 8/9 1 1"),
    order=5,
    error=_fractions("71/57600 0 -71/16695 71/1920 -17253/339200 22/525 -1/40"),
    embedded_order=4,
)
