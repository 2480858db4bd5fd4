"""The methods and options of torchdiffeq's functions, as solvers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from cflow.solvers import tableau as tableaus
from cflow.solvers.adaptive.controllers import PID
from cflow.solvers.adaptive.methods import Adaptive, Bosh3, Dopri5, Dopri8, Tsit5
from cflow.solvers.grid.fixed import RK4, Euler, FixedGrid, Heun, Midpoint, Ralston
from cflow.solvers.solution import Tolerance
from cflow.solvers.solver import Solver
from cflow.solvers.tableau import Tableau
from cflow.solvers.torchdiffeq import adapter

__all__ = ["is_foreign", "resolve"]


@dataclass(frozen=True, repr=False)
class _Heun3(FixedGrid):
    """Heun's method of order 3."""

    tableau: ClassVar[Tableau] = tableaus.HEUN3


@dataclass(frozen=True, repr=False)
class _ThreeEighths(FixedGrid):
    """Kutta's 3/8 rule of order 4, which torchdiffeq calls rk4."""

    tableau: ClassVar[Tableau] = tableaus.THREE_EIGHTHS


_CONTROLLED: dict[str, type[Adaptive]] = {"bosh3": Bosh3, "dopri5": Dopri5, "dopri8": Dopri8, "tsit5": Tsit5}
_GRIDDED: dict[str, type[FixedGrid]] = {
    "euler": Euler, "heun": Heun, "heun2": Heun, "heun3": _Heun3, "midpoint": Midpoint, "ralston": Ralston,
    "rk4": _ThreeEighths, "rk4_classic": RK4,
}  # fmt: skip
_OWN = {*_CONTROLLED, *_GRIDDED}
_FOREIGN = tuple(name for name in adapter.METHODS if name not in _OWN)
_CONTROL = {"first_step": "first_step", "min_step": "dt_min", "max_step": "dt_max", "max_num_steps": "max_steps"}
_FACTORS = {"safety": "safety", "ifactor": "grow", "dfactor": "shrink"}
# The defaults of torchdiffeq: an option with such a value is ignored.
_DEFAULTS = {"first_step": (None,), "min_step": (None, 0), "max_step": (None, math.inf), "step_t": (None,),
             "jump_t": (None,), "step_size": (None,), "grid_constructor": (None,), "perturb": (False,)}  # fmt: skip


def is_foreign(owner: str, method: str) -> bool:
    """Returns whether a method is torchdiffeq's own; raises for an unknown name."""
    if method not in _OWN and method not in _FOREIGN:
        raise ValueError(
            f"{owner}(method={method!r}): unknown method; choose from {', '.join(sorted([*_OWN, *_FOREIGN]))}."
        )
    return method in _FOREIGN


def resolve(owner, method, rtol, atol, options, gradient, f, y0, times) -> Solver:
    """Builds the solver for a method and its options."""
    options = {name: value for name, value in dict(options or {}).items() if not _is_default(name, value)}
    if is_foreign(owner, method):
        if method in adapter.FIXED and not options.keys() & {"step_size", "grid_constructor"}:
            options["grid_constructor"] = lambda f, y0, t: t
        rtol, atol = _number(owner, "rtol", rtol), _number(owner, "atol", atol)
        return adapter.TorchDiffEq(method, rtol, atol, gradient=gradient, options=options)
    known = (*_CONTROL, *_FACTORS) if method in _CONTROLLED else ("step_size", "grid_constructor")
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"{owner}(method={method!r}, options={options}): the method has no option {unknown[0]!r}; it takes "
            f"{', '.join(known)}."
        )
    if method in _GRIDDED:
        return _GRIDDED[method](grid=_grid(owner, options, f, y0, times), gradient=gradient)
    read = lambda names: {names[k]: _number(owner, k, v) for k, v in options.items() if k in names}
    # torchdiffeq has no limit on steps, and accepts a step that cannot be shorter with any error.
    settings = {"max_steps": 2**31 - 1, "on_dt_min": "accept"} | read(_CONTROL)
    settings["max_steps"] = int(settings["max_steps"])
    shared, parts = _tolerances(owner, rtol, atol, y0)
    return _CONTROLLED[method](
        shared.rtol, shared.atol, gradient=gradient, parts=parts, controller=PID(**read(_FACTORS)), **settings
    )


def _is_default(name: str, value: Any) -> bool:
    """Returns whether an option has torchdiffeq's default value."""
    return any(value is each or (each is not None and value == each) for each in _DEFAULTS.get(name, ()))


def _tolerances(owner: str, rtol, atol, y0) -> tuple[Tolerance, dict[int, Tolerance] | None]:
    """Reads the tolerances, and those of each tensor if a tuple of them is given for a tuple of tensors."""
    several = {"rtol": rtol, "atol": atol}
    several = {name: value for name, value in several.items() if isinstance(value, tuple | list)}
    if not several:
        return Tolerance(_number(owner, "rtol", rtol), _number(owner, "atol", atol)), None
    count = len(y0) if isinstance(y0, tuple | list) else None
    for name, value in several.items():
        if len(value) != count:
            raise ValueError(
                f"{owner}({name}={value!r}): expected one tolerance per tensor, but y0 "
                f"{'is not a tuple' if count is None else f'has {count} tensors'}; pass one number, or one per tensor."
            )
    each = lambda name, value, i: _number(owner, name, value[i] if isinstance(value, tuple | list) else value)
    parts = {i: Tolerance(each("rtol", rtol, i), each("atol", atol, i)) for i in range(count)}
    return parts[0], parts


def _number(owner: str, name: str, value: Any) -> float:
    """Reads a number, which may be a tensor with one entry."""
    if not isinstance(value, int | float) and getattr(value, "ndim", 1):
        raise ValueError(f"{owner}({name}={value!r}): expected one {name} per tensor of the state; pass a number.")
    return float(value)


def _grid(owner: str, options: dict[str, Any], f: Callable, y0, times: list[float]) -> tuple[float, ...]:
    """Returns the grid that the options set, or the times without options."""
    if len(options) == 2:
        raise ValueError(f"{owner}(options={options}): pass either step_size or grid_constructor.")
    first, last = times[0], times[-1]
    if "step_size" in options:
        size = float(options["step_size"])
        if not 0 < size < math.inf:
            raise ValueError(
                f"{owner}(options={{'step_size': {size}}}): a step length is positive for both directions of t; pass a "
                f"positive number."
            )
        # Rounding must not add a step: 0.3 / 0.1 is a little less than 3 in binary.
        steps = math.ceil(abs(last - first) / size - 1e-9)
        nodes = [first + math.copysign(size, last - first) * step for step in range(1, steps)]
    elif "grid_constructor" in options:
        laid = options["grid_constructor"](f, y0, torch.tensor(times, dtype=torch.float64))
        nodes = [float(node) for node in laid]
    else:
        nodes = times
    inside = {node for node in nodes if min(first, last) < node < max(first, last)}
    return tuple(sorted({first, *inside, last}))
