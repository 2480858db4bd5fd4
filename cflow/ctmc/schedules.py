"""Schedules of token paths: the probability that a token is already that of the data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.registry import register

__all__ = ["Cosine", "Linear", "LogLinear", "Polynomial", "Schedule"]


class Schedule(ABC):
    r"""Computes the probability :math:`\kappa_t` that a token is that of the data at time t: the base of schedules.

    It increases from 0 at ``t = 0`` to 1 at ``t = 1``. A subclass writes :meth:`kappa` and :meth:`d_kappa`. It
    overrides :meth:`remaining` and :meth:`time_at` where these have an accurate closed form.

    Shapes: every method works entry by entry on tensors of any shape, in their dtype.

    Example:
        >>> class Smooth(Schedule):
        ...     def kappa(self, t):
        ...         return t**2 * (3 - 2 * t)
        ...
        ...     def d_kappa(self, t):
        ...         return 6 * t * (1 - t)
        >>> round(float(Smooth().time_at(torch.tensor(0.5, dtype=torch.float64))), 12)
        0.5
    """

    by_position = False
    """Whether the schedule differs between the positions of an event."""

    @abstractmethod
    def kappa(self, t: Tensor) -> Tensor:
        """Computes the probability that a token is that of the data at times ``t``."""

    @abstractmethod
    def d_kappa(self, t: Tensor) -> Tensor:
        """Computes the derivative of ``kappa`` at times ``t``."""

    def remaining(self, t: Tensor) -> Tensor:
        """Computes ``1 - kappa`` at times ``t``, the probability that a token is still that of the source."""
        return 1 - self.kappa(t)

    def time_at(self, kappa: Tensor) -> Tensor:
        """Computes the time at which the schedule has the value ``kappa``; by default by bisection to the last bit."""
        low, high = torch.zeros_like(kappa), torch.ones_like(kappa)
        for _ in range(1 - int(math.log2(torch.finfo(kappa.dtype).eps))):
            middle = (low + high) / 2
            before = self.kappa(middle) < kappa
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
        return torch.where(kappa >= 1, 1.0, (low + high) / 2)


@register("ctmc.Linear")
@dataclass(frozen=True)
class Linear(Schedule):
    r"""Reveals tokens at a constant rate: :math:`\kappa_t = t`.

    The log-linear noise of SEDD and MDLM is this schedule, up to a small constant at the ends.

    Example:
        >>> Linear().kappa(torch.tensor([0.0, 0.25, 1.0]))
        tensor([0.0000, 0.2500, 1.0000])
    """

    def kappa(self, t: Tensor) -> Tensor:
        return t

    def d_kappa(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_at(self, kappa: Tensor) -> Tensor:
        return kappa


@register("ctmc.Polynomial")
@dataclass(frozen=True)
class Polynomial(Schedule):
    r"""Reveals tokens late for an exponent above 1, early for one below: :math:`\kappa_t = t^n`.

    Args:
        exponent: the exponent n, positive; or a nested tuple of the event's shape, one exponent for each position, so
            that positions with a small exponent are revealed first.

    Raises:
        ValueError: if an exponent is not positive.

    Source: Gat et al., Discrete Flow Matching, 2024, arXiv:2407.15595.

    Example:
        >>> Polynomial(2.0).kappa(torch.tensor([0.5]))
        tensor([0.2500])
        >>> Polynomial((1.0, 2.0)).kappa(torch.tensor([[0.5]]))
        tensor([[0.5000, 0.2500]])
    """

    exponent: float | tuple = 2.0

    def __post_init__(self):
        object.__setattr__(self, "exponent", _as_tuples(self.exponent))
        try:
            exponents = torch.tensor(self.exponent, dtype=torch.float64)
        except (TypeError, ValueError):
            exponents = torch.zeros(1)
        if not bool((exponents > 0).all()) or not bool(exponents.isfinite().all()) or not exponents.numel():
            raise ValueError(
                f"Polynomial(exponent={self.exponent!r:.60}): exponents are positive numbers; pass 2.0, or a nested "
                f"tuple of the event's shape."
            )

    @property
    def by_position(self) -> bool:
        """Whether there is one exponent for each position."""
        return isinstance(self.exponent, tuple)

    def _power(self, t: Tensor) -> Tensor | float:
        return torch.tensor(self.exponent, dtype=t.dtype, device=t.device) if self.by_position else self.exponent

    def kappa(self, t: Tensor) -> Tensor:
        return t ** self._power(t)

    def d_kappa(self, t: Tensor) -> Tensor:
        n = self._power(t)
        return n * t ** (n - 1)

    def remaining(self, t: Tensor) -> Tensor:
        return -torch.expm1(self._power(t) * torch.log(t))

    def time_at(self, kappa: Tensor) -> Tensor:
        return kappa ** (1 / self._power(kappa))


def _as_tuples(value):
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


@register("ctmc.Cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Reveals few tokens at first and most of them late: :math:`\kappa_t = 1 - \cos(\pi t / 2)`.

    Source: Shi et al., Simplified and Generalized Masked Diffusion for Discrete Data, 2024, arXiv:2406.04329 (there
    t = 0 is data).

    Example:
        >>> Cosine().time_at(Cosine().kappa(torch.tensor([0.3], dtype=torch.float64)))
        tensor([0.3000], dtype=torch.float64)
    """

    def kappa(self, t: Tensor) -> Tensor:
        return 2 * torch.sin(math.pi / 4 * t).square()

    def d_kappa(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.sin(math.pi / 2 * t)

    def remaining(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t))

    def time_at(self, kappa: Tensor) -> Tensor:
        return 4 / math.pi * torch.asin(torch.sqrt(kappa / 2))


@register("ctmc.LogLinear")
@dataclass(frozen=True)
class LogLinear(Schedule):
    r"""Lets the logarithm of the number of revealed tokens increase at a constant rate.

    .. math:: \kappa_t = \frac{\epsilon^{1 - t} - \epsilon}{1 - \epsilon}

    Args:
        epsilon: the scale at which the growth starts, in (0, 1). With ``1 / L`` a sequence of length L starts with
            about one token per unit of the logarithm.

    Raises:
        ValueError: if ``epsilon`` is not in (0, 1).

    Example:
        >>> LogLinear(1e-2).kappa(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.0909, 1.0000])
    """

    epsilon: float = 1e-2

    def __post_init__(self):
        if not 0 < self.epsilon < 1:
            raise ValueError(f"LogLinear(epsilon={self.epsilon}): epsilon is in (0, 1); pass 1e-2.")

    @property
    def _growth(self) -> float:
        return -math.log(self.epsilon)

    def kappa(self, t: Tensor) -> Tensor:
        return torch.expm1(self._growth * t) / math.expm1(self._growth)

    def d_kappa(self, t: Tensor) -> Tensor:
        return self._growth * torch.exp(self._growth * t) / math.expm1(self._growth)

    def remaining(self, t: Tensor) -> Tensor:
        return -torch.expm1(self._growth * (t - 1)) / -math.expm1(-self._growth)

    def time_at(self, kappa: Tensor) -> Tensor:
        return torch.log1p(kappa * math.expm1(self._growth)) / self._growth


class Average(Schedule):
    """Averages a schedule over the positions of an event: ``[B] -> [B]``.

    Args:
        schedule: a schedule with one exponent for each position.
        event_shape: the shape of an event.
    """

    def __init__(self, schedule: Schedule, event_shape: torch.Size):
        self.schedule, self.event_shape = schedule, event_shape

    def _averaged(self, method, t: Tensor) -> Tensor:
        return method(t.reshape(-1, *(1,) * len(self.event_shape))).flatten(1).mean(1)

    def kappa(self, t: Tensor) -> Tensor:
        return self._averaged(self.schedule.kappa, t)

    def d_kappa(self, t: Tensor) -> Tensor:
        return self._averaged(self.schedule.d_kappa, t)

    def remaining(self, t: Tensor) -> Tensor:
        return self._averaged(self.schedule.remaining, t)
