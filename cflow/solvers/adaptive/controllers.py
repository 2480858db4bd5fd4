"""How the error of a step sets the length of the next step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cflow.registry import register

__all__ = ["LEAST", "PID"]

LEAST = 1e-10  # the smallest error that is remembered: after an error of zero the next step would be arbitrary


@register("solvers.PID")
@dataclass(frozen=True)
class PID:
    r"""Chooses the next step from the relative errors of the last three steps.

    .. math:: h_{n+1} = h_n \cdot \operatorname{clip}\bigl(s \, r_n^{-\beta_1} r_{n-1}^{-\beta_2} r_{n-2}^{-\beta_3}
              \bigr),
              \qquad k \beta_1 = k_P + k_I + k_D, \quad k \beta_2 = -(k_P + 2 k_D), \quad k \beta_3 = k_D

    with :math:`r` the error divided by the tolerance and :math:`k` the order of the embedded method plus one. The
    default is the integral controller of most codes. ``PID(0.4, 0.3)`` (PI) rejects fewer steps if stability limits the
    step, as in mildly stiff problems.

    Args:
        integral, proportional, derivative: the gains :math:`k_I, k_P, k_D`.
        safety: factor :math:`s` that shortens every step, so that fewer steps are rejected.
        shrink, grow: bounds of the factor between two steps. A step does not grow right after a rejection.

    Raises:
        ValueError: if a gain is negative, the integral gain is zero, or a factor is out of its range.

    Source: Söderlind, Automatic control and adaptive time-stepping, 2002; Hairer, Norsett and Wanner, Solving Ordinary
    Differential Equations I, 1993, II.4.

    Example:
        >>> PID(integral=0.75, proportional=0.5).exponents(5)
        (-0.25, 0.1, 0.0)
    """

    integral: float = 1.0
    proportional: float = 0.0
    derivative: float = 0.0
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0

    def __post_init__(self):
        gains = (self.integral, self.proportional, self.derivative)
        if not (all(map(math.isfinite, gains)) and self.integral > 0 and min(gains) >= 0):
            raise ValueError(
                f"PID(integral={self.integral}, proportional={self.proportional}, derivative={self.derivative}): "
                f"gains are finite, not negative, and integral > 0; pass PID() or PID(0.4, 0.3)."
            )
        if not (0 < self.shrink < 1 < self.grow < math.inf and 0 < self.safety <= 1):
            raise ValueError(
                f"PID(safety={self.safety}, shrink={self.shrink}, grow={self.grow}): needs 0 < shrink < 1 < grow and 0 "
                f"< safety <= 1; the defaults are 0.9, 0.2 and 10."
            )

    def exponents(self, k: int) -> tuple[float, float, float]:
        """Returns the powers of the last, second last and third last error; ``k`` is the order of the error in h."""
        i, p, d = self.integral, self.proportional, self.derivative
        return -(i + p + d) / k, (p + 2 * d) / k, 0.0 - d / k
