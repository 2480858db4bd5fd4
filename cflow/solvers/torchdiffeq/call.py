"""The call of torchdiffeq, answered by our solvers: change one import."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cflow.solvers import tableau as tableaus
from cflow.solvers.adaptive.methods import Adaptive, Bosh3, Dopri5, Dopri8, Tsit5
from cflow.solvers.gradients.modes import Backprop, Checkpointed, ContinuousAdjoint, Gradient
from cflow.solvers.grid.fixed import RK4, Euler, FixedGrid, Heun, Midpoint, Ralston
from cflow.solvers.grid.picard import Picard
from cflow.solvers.solver import Solver
from cflow.solvers.tableau import Tableau
from cflow.solvers.torchdiffeq import adapter

__all__ = ["odeint", "odeint_adjoint"]


def odeint(
    f: Callable,
    y0: Tensor | tuple[Tensor, ...],
    t: Tensor | Sequence[float],
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    method: str = "dopri5",
    options: Mapping[str, Any] | None = None,
    event_fn: Callable | None = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Integrates ``dy/dt = f(t, y)`` and gives the states at the times ``t``, called as ``torchdiffeq.odeint``.

    The state is one system, whatever its shape: one step for all of it, whose error is the root mean square over each
    tensor of the state (of several tensors, the largest). Gradients flow through every operation; for long solves
    :func:`odeint_adjoint` takes less memory. What differs from torchdiffeq, and why:

    - The last step ends at the last time, and ``f`` is never called outside the times. torchdiffeq steps past the end
      and interpolates back, which costs accuracy (a factor of 20,000 has been seen with dopri8) and asks networks
      where they were not trained.
    - Between, adaptive methods interpolate with the method's own continuous extension, where it has one.
    - With ``step_size``, output times become nodes of the grid instead of being interpolated linearly.
    - Times are constants: a ``t`` that requires a gradient is refused, instead of a part of the methods serving it.
    - What cannot be integrated raises a ``RuntimeError``; an option that is not known raises instead of warning.

    Args:
        f: ``f(t, y)``, of a time ``[]`` and a state shaped as ``y0``; gives the derivative, shaped as ``y0``.
        y0: a tensor of any shape, or a tuple of them; there is no batch dimension.
        t: ``[T]``, strictly increasing or decreasing; ``y0`` is the state at the first.
        rtol, atol: tolerances, two numbers; small ones, as torchdiffeq's. Methods on a grid ignore them.
        method: ``dopri5``, ``dopri8``, ``bosh3``, ``tsit5``, and on a grid ``euler``, ``midpoint``, ``heun2``,
            ``ralston``, ``heun3``, ``rk4`` (the 3/8 rule, as torchdiffeq's; the classical one is ``rk4_classic``) are
            ours. ``adaptive_heun``, ``fehlberg2``, ``explicit_adams``, ``implicit_adams``, ``fixed_adams`` and
            ``scipy_solver`` are torchdiffeq's, through :class:`TorchDiffEq`.
        options: on a grid ``step_size`` or ``grid_constructor`` (``(f, y0, t) -> [N]``), and otherwise the grid is
            ``t``; with error control ``first_step``, ``min_step``, ``max_step``, ``max_num_steps``; torchdiffeq's own
            for its methods.

    Shapes: gives ``[T, *y0.shape]``, a tuple of such for a tuple.

    Cost: as the solver's, one host read per attempted step and one at the end; none on a grid.

    Raises:
        ValueError: for times that are not strictly monotone, or a method, option or tolerance that is not known.
        RuntimeError: if the solve fails: too many steps, steps too small, or a state that is not finite. Methods on a
            grid give back what they computed.

    Source: the call is that of torchdiffeq, Chen, 2018, https://github.com/rtqichen/torchdiffeq.

    Example:
        >>> y = odeint(lambda t, y: -y, torch.tensor(1.0), torch.linspace(0, 1, 3))
        >>> [round(value, 4) for value in y.tolist()]
        [1.0, 0.6065, 0.3679]
    """
    if event_fn is not None:
        raise ValueError(
            "odeint(event_fn=...): our solvers do not stop at events; call torchdiffeq.odeint for them, or solve with "
            "at=... and look for the sign change."
        )
    return _odeint("odeint", f, y0, t, rtol, atol, method, options, Backprop(), None)


def odeint_adjoint(
    f: Callable,
    y0: Tensor | tuple[Tensor, ...],
    t: Tensor | Sequence[float],
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    method: str = "dopri5",
    options: Mapping[str, Any] | None = None,
    event_fn: Callable | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
    adjoint_rtol: float | None = None,
    adjoint_atol: float | None = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Integrates as :func:`odeint`, with a gradient that needs little memory, called as ``torchdiffeq.odeint_adjoint``.

    torchdiffeq solves another equation backward in time, whose error comes on top; here every step is taken again, one
    evaluation's graph at a time (:class:`~cflow.solvers.Checkpointed`), and the gradient is that of :func:`odeint` to
    rounding. Memory is one state per step and one evaluation's graph. ``adjoint_params`` are the tensors that get a
    gradient besides ``y0``: those that ``f`` refers to, unless given. As there is no solve backward,
    ``adjoint_rtol`` and its kin have nothing to set and are refused. They serve torchdiffeq's own methods
    (``fehlberg2`` and those that :func:`odeint` lists), which take its continuous adjoint; ``adjoint_options`` there is
    ``{"norm": "seminorm"}`` or None.

    Raises:
        ValueError: as :func:`odeint`, and for settings of a backward solve where there is none.
        RuntimeError: as :func:`odeint`; in the backward pass as :class:`~cflow.solvers.Checkpointed`.

    Source: as :class:`~cflow.solvers.Checkpointed`.

    Example:
        >>> net = torch.nn.Linear(2, 2)
        >>> odeint_adjoint(lambda t, y: net(y), torch.ones(2), [0.0, 1.0])[-1].sum().backward()
        >>> net.weight.grad.shape
        torch.Size([2, 2])
    """
    if event_fn is not None:
        raise ValueError(
            "odeint_adjoint(event_fn=...): our solvers do not stop at events; call torchdiffeq.odeint_adjoint for them."
        )
    settings = {"adjoint_rtol": adjoint_rtol, "adjoint_atol": adjoint_atol, "adjoint_method": adjoint_method,
                "adjoint_options": adjoint_options}  # fmt: skip
    given = [name for name, value in settings.items() if value is not None]
    if method not in _FOREIGN:
        if given:
            raise ValueError(
                f"odeint_adjoint({given[0]}={settings[given[0]]!r}, method={method!r}): the gradient of our steps is "
                f"exact and solves nothing backward, so there is nothing to set; leave it out, or solve by "
                f"TorchDiffEq(..., gradient=ContinuousAdjoint(...))."
            )
        gradient: Gradient = Checkpointed()
    else:
        if adjoint_options not in (None, {}, {"norm": "seminorm"}):
            raise ValueError(
                f"odeint_adjoint(adjoint_options={adjoint_options!r}): only the norm of the adjoint can be chosen; "
                f"pass {{'norm': 'seminorm'}} or None."
            )
        gradient = ContinuousAdjoint(adjoint_rtol, adjoint_atol, adjoint_method, seminorm=bool(adjoint_options))
    params = None if adjoint_params is None else tuple(adjoint_params)
    return _odeint("odeint_adjoint", f, y0, t, rtol, atol, method, options, gradient, params)


def _odeint(owner, f, y0, t, rtol, atol, method, options, gradient, params):
    """Checks the arguments, adds the batch dimension, solves, and takes it off again."""
    times = _times(owner, t)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if isinstance(value, tuple | list) or (isinstance(value, Tensor) and value.dim()):
            raise ValueError(
                f"{owner}({name}={value!r}): one tolerance holds for all of the state here; pass a number, or solve by "
                f"Dopri5(parts=...) for tolerances by part."
            )
    single = isinstance(y0, Tensor)
    if not single and not (isinstance(y0, tuple | list) and y0 and all(isinstance(part, Tensor) for part in y0)):
        raise TypeError(f"{owner}(y0={type(y0).__name__}): the state is a tensor or a tuple of tensors; pass one.")
    start = y0.unsqueeze(0) if single else tuple(part.unsqueeze(0) for part in y0)
    if len(times) == 1:
        return start if single else tuple(start)
    solver = _solver(owner, method, float(rtol), float(atol), dict(options or {}), gradient, f, y0, times)

    def field(time: Tensor, y):
        if single:
            return _like(owner, f(time[0], y[0]), y0).unsqueeze(0)
        slopes = f(time[0], tuple(part[0] for part in y))
        if not isinstance(slopes, tuple | list) or len(slopes) != len(y0):
            raise TypeError(
                f"{owner}: f returned a {type(slopes).__name__} for a state of {len(y0)} tensors; return as many."
            )
        return tuple(_like(owner, slope, part).unsqueeze(0) for slope, part in zip(slopes, y0))

    solution = solver.solve(field, start, times[0], times[-1], at=times[1:-1], params=params)
    if solver.nodes(times[0], times[-1]) is None:
        solution.require_success()
    along = [solution.trajectory] if single else solution.trajectory
    ends = [solution.y] if single else solution.y
    states = [
        torch.cat((first, inside[:, 0], last)) for first, inside, last in zip([start] if single else start, along, ends)
    ]
    return states[0] if single else tuple(states)


def _like(owner: str, slope: Any, part: Tensor) -> Tensor:
    """Checks what ``f`` returned for a tensor of the state."""
    if not isinstance(slope, Tensor) or slope.shape != part.shape:
        found = f"shape {list(slope.shape)}" if isinstance(slope, Tensor) else type(slope).__name__
        raise ValueError(
            f"{owner}: f returned {found} for a state of shape {list(part.shape)}; a derivative has the shape of what "
            f"it moves, so return that shape."
        )
    return slope


def _times(owner: str, t: Tensor | Sequence[float]) -> list[float]:
    """Reads the times and checks that they go one way."""
    if isinstance(t, Tensor):
        if t.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{owner}(t=tensor that requires a gradient): times are constants of the solve; pass t.detach(), and "
                f"for an end that is learned scale the field by the interval's length."
            )
        if t.dim() != 1:
            raise ValueError(f"{owner}(t=tensor of shape {list(t.shape)}): times are one list; pass a tensor [T].")
        t = t.tolist()
    times = [float(each) for each in t]
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    if not times or not all(map(math.isfinite, times)) or not (all(s > 0 for s in steps) or all(s < 0 for s in steps)):
        raise ValueError(
            f"{owner}(t={times}): states are asked for at finite times that strictly increase or strictly decrease; "
            f"sort them and drop duplicates."
        )
    return times


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
    "euler": Euler, "heun": Heun, "heun2": Heun, "heun3": _Heun3, "midpoint": Midpoint, "picard": Picard,
    "ralston": Ralston, "rk4": _ThreeEighths, "rk4_classic": RK4,
}  # fmt: skip
_OWN = {*_CONTROLLED, *_GRIDDED}
_FOREIGN = tuple(name for name in adapter.METHODS if name not in _OWN)
_CONTROL = {"first_step": "first_step", "min_step": "dt_min", "max_step": "dt_max", "max_num_steps": "max_steps"}


def _solver(owner, method, rtol, atol, options, gradient, f, y0, times) -> Solver:
    """Builds the solver that a method and its options name."""
    if method not in _OWN and method not in _FOREIGN:
        raise ValueError(
            f"{owner}(method={method!r}): there is no such method; choose from {', '.join(sorted([*_OWN, *_FOREIGN]))}."
        )
    if method in _FOREIGN:
        if method in adapter.FIXED and not options.keys() & {"step_size", "grid_constructor"}:
            options["grid_constructor"] = lambda f, y0, t: t
        return adapter.TorchDiffEq(method, rtol, atol, gradient=gradient, options=options)
    known = tuple(_CONTROL) if method in _CONTROLLED else ("step_size", "grid_constructor")
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"{owner}(method={method!r}, options={options}): the method has no option {unknown[0]!r}; it takes "
            f"{', '.join(known)}."
        )
    if method in _CONTROLLED:
        # torchdiffeq knows no limit, and takes a step that cannot be shorter whatever its error.
        settings = {"max_steps": 2**31 - 1, "on_dt_min": "accept"} | {_CONTROL[k]: v for k, v in options.items()}
        return _CONTROLLED[method](rtol=rtol, atol=atol, gradient=gradient, **settings)
    return _GRIDDED[method](grid=_grid(owner, options, f, y0, times), gradient=gradient)


def _grid(owner: str, options: dict[str, Any], f: Callable, y0, times: list[float]) -> tuple[float, ...]:
    """Lays the grid that the options ask for, or through the times alone."""
    if len(options) == 2:
        raise ValueError(
            f"{owner}(options={options}): a grid is laid by step_size or by grid_constructor; pass one of the two."
        )
    first, last = times[0], times[-1]
    if "step_size" in options:
        size = float(options["step_size"])
        if not 0 < size < math.inf:
            raise ValueError(
                f"{owner}(options={{'step_size': {size}}}): a step has a positive length (its sign follows the "
                f"direction of t); pass a positive number."
            )
        # A remainder of rounding is no step: 0.3 / 0.1 is a little less than 3 in binary.
        steps = math.ceil(abs(last - first) / size - 1e-9)
        nodes = [first + math.copysign(size, last - first) * step for step in range(1, steps)]
    elif "grid_constructor" in options:
        laid = options["grid_constructor"](f, y0, torch.tensor(times, dtype=torch.float64))
        nodes = [float(node) for node in laid]
    else:
        nodes = times
    inside = {node for node in nodes if min(first, last) < node < max(first, last)}
    return tuple(sorted({first, *inside, last}))
