"""Sampling grids: increasing times from 0.0 to 1.0, as tuples of floats for a fixed-grid solver."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

from cflow.arguments import check_integer
from cflow.times.law import Times
from cflow.times.nested import shift_times

__all__ = ["cosine_grid", "edm_grid", "power_grid", "quantile_grid", "shifted_grid", "uniform_grid"]


def uniform_grid(steps: int) -> tuple[float, ...]:
    """Returns equal steps from 0.0 to 1.0.

    Args:
        steps: number of steps; the grid has one time more.

    Example:
        >>> from cflow import solvers
        >>> solvers.Heun(grid=uniform_grid(4)).nodes(0.0, 1.0)
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    return _grid("uniform_grid", steps, lambda u: u)


def shifted_grid(steps: int, shift: float) -> tuple[float, ...]:
    """Returns equal steps that are moved towards the noise, as :class:`Shifted` moves times.

    Args:
        steps: number of steps.
        shift: positive factor; above 1 for high resolutions.

    Source: Esser et al., 2024, arXiv:2403.03206, section 5.3.2.

    Example:
        >>> shifted_grid(2, 3.0)
        (0.0, 0.25, 1.0)
    """
    _require_number("shifted_grid", "shift", shift)
    return _grid("shifted_grid", steps, lambda u: shift_times(u, shift))


def cosine_grid(steps: int) -> tuple[float, ...]:
    r"""Returns steps that are short at both ends: :math:`t_i = \tfrac12 (1 - \cos(\pi i / n))`.

    Args:
        steps: number n of steps.
    """
    return _grid("cosine_grid", steps, lambda u: math.sin(0.5 * math.pi * u) ** 2)


def power_grid(steps: int, power: float) -> tuple[float, ...]:
    r"""Returns :math:`t_i = 1 - (1 - i / n)^p`: short steps near the data for p > 1, near the noise for p < 1.

    Args:
        steps: number n of steps.
        power: positive exponent p.
    """
    _require_number("power_grid", "power", power)
    return _grid("power_grid", steps, lambda u: 1 - (1 - u) ** power)


def edm_grid(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> tuple[float, ...]:
    r"""Returns the noise levels of EDM as times of the linear path, :math:`t = 1 / (1 + \sigma)`.

    .. math:: \sigma_i = \Big(\sigma_{\max}^{1/\rho} + \frac{i}{n - 1}
              \big(\sigma_{\min}^{1/\rho} - \sigma_{\max}^{1/\rho}\big)\Big)^\rho, \qquad i = 0, \dots, n - 1

    The first time is 0.0 instead of :math:`1 / (1 + \sigma_{\max})`, since a flow starts at pure noise. The last time,
    1.0, follows the time of :math:`\sigma_{\min}`.

    Args:
        steps: number n of steps.
        sigma_min, sigma_max: smallest and largest noise level.
        rho: :math:`\rho`; larger values make more of the steps at small noise levels.

    Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364.
    """
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max), ("rho", rho)):
        _require_number("edm_grid", name, value)
    if not sigma_min < sigma_max:
        raise ValueError(
            f"edm_grid(sigma_min={sigma_min}, sigma_max={sigma_max}): the noise decreases; pass sigma_min below "
            f"sigma_max."
        )
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)

    def time(u: float) -> float:
        return 1 / (1 + (first + u * steps / (steps - 1) * (last - first)) ** rho)

    return _grid("edm_grid", steps, time)


def quantile_grid(steps: int, law: Times) -> tuple[float, ...]:
    """Returns steps of equal probability under a distribution of training times: short where training drew most times.

    Args:
        steps: number of steps.
        law: the distribution of training times.

    Example:
        >>> from cflow import times
        >>> quantile_grid(2, times.Beta(1.0, 2.0))
        (0.0, 0.292893..., 1.0)
    """
    return _grid("quantile_grid", steps, lambda u: law.icdf(torch.tensor(u, dtype=torch.float64)).item())


def _grid(name: str, steps: int, time: Callable[[float], float]) -> tuple[float, ...]:
    """Computes ``time(i / steps)`` between exact ends, and checks that every step goes forward."""
    check_integer(name, "steps", steps, 1, "steps are whole; pass 1 or more.")
    grid = (0.0, *(time(i / steps) for i in range(1, steps)), 1.0)
    if not all(a < b for a, b in itertools.pairwise(grid)):
        raise ValueError(
            f"{name}(steps={steps}): neighbouring times are equal in float64; use fewer steps or milder parameters."
        )
    return grid


def _require_number(name: str, argument: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}({argument}={value}): expected a positive number; 1.0 is neutral.")
