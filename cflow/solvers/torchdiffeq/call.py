"""The call of torchdiffeq, answered by our solvers: change one import."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cflow.solvers.gradients.modes import Backprop, Checkpointed, ContinuousAdjoint, Gradient
from cflow.solvers.torchdiffeq.options import is_foreign, resolve

__all__ = ["odeint", "odeint_adjoint"]

DEFAULT = "dopri5"
CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


def odeint(
    func: Callable,
    y0: Tensor | tuple[Tensor, ...],
    t: Tensor | Sequence[float],
    *,
    rtol: float | Sequence[float] = 1e-7,
    atol: float | Sequence[float] = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable | None = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Integrates ``dy/dt = func(t, y)`` and gives the states at the times ``t``, called as ``torchdiffeq.odeint``.

    The state is one system, whatever its shape: one step for all of it, whose error is the root mean square over each
    tensor of the state (of several tensors, the largest). Gradients flow through every operation; for long solves
    :func:`odeint_adjoint` takes less memory. Arguments, defaults and results are torchdiffeq's, but for this list:

    - The last step ends at the last time, and ``func`` is never called outside the times. torchdiffeq steps past the
      end and interpolates back, which costs accuracy (a factor of 20,000 has been seen with dopri8) and asks networks
      where they were not trained.
    - Between, adaptive methods interpolate with the method's own continuous extension, where it has one.
    - With ``step_size``, output times become nodes of the grid instead of being interpolated linearly.
    - ``t`` may be a list. It is constant: one that requires a gradient is refused, instead of a part of the methods
      serving it.
    - A solve that fails raises a ``RuntimeError`` (an ``AssertionError`` there, or values that are not finite).
    - What cannot be honoured raises (some of it warns there): an option that is not known; with our methods
      ``norm``, ``step_t``, ``jump_t`` and ``dtype``; ``event_fn``; a ``func`` with callbacks (``callback_step`` and
      its kin); a tolerance for each entry of a tensor.
    - A complex state is held to the tolerances by its real and its imaginary parts, not by its modulus.
    - Times are kept in the real dtype of the state (float32 at least), not in float64: far from zero, steps that
      float32 cannot tell apart end in a ``RuntimeError``; shift the times, or solve in float64.
    - Each tensor of a tuple keeps its own dtype, and a derivative has the shape of its tensor (nothing broadcasts).

    Args:
        func: ``func(t, y)``, of a time ``[]`` and a state shaped as ``y0``; gives the derivative, shaped as ``y0``.
        y0: a tensor of any shape, real or complex, or a tuple of them; there is no batch dimension.
        t: ``[T]``, strictly increasing or decreasing; ``y0`` is the state at the first.
        rtol, atol: tolerances; small ones, as torchdiffeq's. One for each tensor of a tuple ``y0`` with ``dopri5``,
            ``dopri8``, ``bosh3``, ``tsit5``. Methods on a grid ignore them.
        method: ``dopri5`` (as is None), ``dopri8``, ``bosh3``, ``tsit5``, and on a grid ``euler``, ``midpoint``,
            ``heun2``, ``ralston``, ``heun3``, ``rk4`` (the 3/8 rule, as torchdiffeq's; the classical one is
            ``rk4_classic``) are ours. ``adaptive_heun``, ``fehlberg2``, ``explicit_adams``, ``implicit_adams``,
            ``fixed_adams`` and ``scipy_solver`` are torchdiffeq's, through :class:`TorchDiffEq`.
        options: on a grid ``step_size`` or ``grid_constructor`` (``(func, y0, t) -> [N]``), and otherwise the grid is
            ``t``; with error control ``first_step``, ``min_step``, ``max_step``, ``max_num_steps``, ``safety``,
            ``ifactor``, ``dfactor``; torchdiffeq's own for its methods.

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
    return _odeint("odeint", func, y0, t, rtol, atol, method or DEFAULT, options, Backprop(), None)


def odeint_adjoint(
    func: Callable,
    y0: Tensor | tuple[Tensor, ...],
    t: Tensor | Sequence[float],
    *,
    rtol: float | Sequence[float] = 1e-7,
    atol: float | Sequence[float] = 1e-9,
    method: str | None = None,
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
    gradient besides ``y0``: those that ``func`` refers to, unless given. As there is no solve backward,
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
    method = method or DEFAULT
    if not is_foreign("odeint_adjoint", method):
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
    return _odeint("odeint_adjoint", func, y0, t, rtol, atol, method, options, gradient, params)


def _odeint(owner, func, y0, t, rtol, atol, method, options, gradient, params):
    """Checks the arguments, adds the batch dimension, solves, and takes it off again."""
    times = _times(owner, t)
    _refuse_callbacks(owner, func, method)
    single = isinstance(y0, Tensor)
    if not single and not (isinstance(y0, tuple | list) and y0 and all(isinstance(part, Tensor) for part in y0)):
        raise TypeError(f"{owner}(y0={type(y0).__name__}): the state is a tensor or a tuple of tensors; pass one.")
    solver = resolve(owner, method, rtol, atol, options, gradient, func, y0, times)
    given = (y0,) if single else tuple(y0)
    start = tuple(_real(part).unsqueeze(0) for part in given)
    if len(times) == 1:
        return y0.unsqueeze(0) if single else tuple(part.unsqueeze(0) for part in given)

    def field(time: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y = tuple(_shown(part[0], like) for part, like in zip(y, given))
        slopes = func(time[0], y[0] if single else y)
        if single:
            slopes = (slopes,)
        elif not isinstance(slopes, tuple | list) or len(slopes) != len(given):
            raise TypeError(
                f"{owner}: func returned a {type(slopes).__name__} for a state of {len(given)} tensors; return as many."
            )
        return tuple(_real(_like(owner, slope, part)).unsqueeze(0) for slope, part in zip(slopes, given))

    if single:  # one tensor takes the short way through a solver
        solution = solver.solve(
            lambda time, y: field(time, (y,))[0], start[0], times[0], times[-1], at=times[1:-1], params=params
        )
    else:
        solution = solver.solve(field, start, times[0], times[-1], at=times[1:-1], params=params)
    if solver.nodes(times[0], times[-1]) is None:
        solution.require_success()
    along = [solution.trajectory] if single else solution.trajectory
    ends = [solution.y] if single else solution.y
    states = [
        _shown(torch.cat((first, inside[:, 0], last)), like)
        for first, inside, last, like in zip(start, along, ends, given)
    ]
    return states[0] if single else tuple(states)


def _real(part: Tensor) -> Tensor:
    """Views complex numbers as pairs of real ones, ``[..., 2]``."""
    return torch.view_as_real(part.resolve_conj()) if part.is_complex() else part


def _shown(part: Tensor, like: Tensor) -> Tensor:
    """Views a state as the tensor that was given: the other way of :func:`_real`."""
    return torch.view_as_complex(part.contiguous()) if like.is_complex() else part


def _refuse_callbacks(owner: str, func: Callable, method: str) -> None:
    """Raises where ``func`` wants to hear of every step."""
    named = [name for each in CALLBACKS for name in (each, each + "_adjoint") if getattr(func, name, None) is not None]
    if named:
        raise ValueError(
            f"{owner}(func with {named[0]}, method={method!r}): our solvers call nothing back; call "
            f"torchdiffeq.{owner}, or read what steps were taken from Solution.stats of a solver's solve."
        )


def _like(owner: str, slope: Any, part: Tensor) -> Tensor:
    """Checks what ``func`` returned for a tensor of the state."""
    if not isinstance(slope, Tensor) or slope.shape != part.shape:
        found = f"shape {list(slope.shape)}" if isinstance(slope, Tensor) else type(slope).__name__
        raise ValueError(
            f"{owner}: func returned {found} for a state of shape {list(part.shape)}; a derivative has the shape of "
            f"what it moves, so return that shape."
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
