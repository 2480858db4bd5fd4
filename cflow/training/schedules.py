"""Schedules of the learning rate: a factor for every step, with a linear warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cflow.registry import register

__all__ = ["Constant", "Cosine", "Polynomial"]


@register("training.Constant")
@dataclass(frozen=True)
class Constant:
    r"""Keeps the learning rate constant after a linear warm-up.

    .. math:: f(n) = \min(1, (n + 1) / w)

    A schedule is called as ``schedule(step, steps)`` and returns the factor of ``lr``.

    Args:
        warmup: the number of steps :math:`w` of the linear warm-up; 0 for none.

    Raises:
        ValueError: if ``warmup`` is negative.

    Example:
        >>> [Constant(warmup=4)(step, 100) for step in (0, 1, 3, 99)]
        [0.25, 0.5, 1.0, 1.0]
    """

    warmup: int = 0

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(
                f"{type(self).__name__}(warmup={self.warmup}): this is negative; pass a number of steps, or 0."
            )

    def __call__(self, step: int, steps: int) -> float:
        """Returns the factor of ``lr`` at ``step`` (the first is 0) of ``steps``."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.decay(min(1.0, (step - self.warmup) / max(1, steps - self.warmup)))

    def decay(self, progress: float) -> float:
        """Returns the factor after the warm-up; ``progress`` increases from 0 to 1."""
        return 1.0


@register("training.Cosine")
@dataclass(frozen=True)
class Cosine(Constant):
    r"""Lowers the learning rate along half a cosine, to the fraction ``final``.

    .. math:: f(p) = e + (1 - e) (1 + \cos \pi p) / 2, \qquad p = (n - w) / (N - w)

    Args:
        final: the factor :math:`e` at the last step, in [0, 1].

    Raises:
        ValueError: if ``warmup`` is negative or ``final`` outside [0, 1].

    Source: Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2016, arXiv:1608.03983
    (one cycle).

    Example:
        >>> [round(Cosine()(step, 100), 3) for step in (0, 50, 100)]
        [1.0, 0.5, 0.0]
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.final <= 1:
            raise ValueError(
                f"{type(self).__name__}(final={self.final}): this is not a fraction; pass a value in [0, 1]."
            )

    def decay(self, progress: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@register("training.Polynomial")
@dataclass(frozen=True)
class Polynomial(Constant):
    r"""Lowers the learning rate along a power of the remaining share of steps, to the fraction ``final``.

    .. math:: f(p) = e + (1 - e) (1 - p)^k, \qquad p = (n - w) / (N - w)

    Args:
        power: the power :math:`k`; 1 is a linear decay.
        final: the factor :math:`e` at the last step, in [0, 1].

    Raises:
        ValueError: if ``warmup`` is negative, ``power`` not positive or ``final`` outside [0, 1].

    Example:
        >>> [Polynomial(power=1.0)(step, 100) for step in (0, 25, 100)]
        [1.0, 0.75, 0.0]
    """

    power: float = 1.0
    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.power > 0:
            raise ValueError(f"Polynomial(power={self.power}): a power must be positive; pass for instance 1.0.")
        if not 0 <= self.final <= 1:
            raise ValueError(f"Polynomial(final={self.final}): this is not a fraction; pass a value in [0, 1].")

    def decay(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 - progress) ** self.power
