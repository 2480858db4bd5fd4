"""The functions of torchdiffeq, computed by our solvers: change one import."""

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
    r"""Integrates ``dy/dt = func(t, y)`` and returns the states at the times ``t``, like ``torchdiffeq.odeint``.

    The state is one system of any shape, with common steps. The error is the root mean square over each tensor of the
    state (of several tensors, the largest). Gradients flow through every operation; for long solves
    :func:`odeint_adjoint` needs less memory. Arguments, defaults and results are torchdiffeq's, with these exceptions:

    - The last step ends at the last time, and ``func`` is never evaluated outside the times. torchdiffeq steps past the
      end and interpolates back. This costs accuracy (a factor of 20,000 has been seen with dopri8) and evaluates
      networks where they were not trained.
    - Between the ends, adaptive methods interpolate with their own continuous extension, if they have one.
    - With ``step_size``, output times become nodes of the grid; torchdiffeq interpolates them linearly.
    - ``t`` may be a list. It is constant: a ``t`` that requires a gradient raises for every method, where torchdiffeq
      supports it for some methods.
    - A solve that fails raises a ``RuntimeError`` (torchdiffeq raises an ``AssertionError``, or returns values that are
      not finite).
    - What is not supported raises (torchdiffeq only warns about some of it): an unknown option; with our methods
      ``norm``, ``step_t``, ``jump_t`` and ``dtype``; ``event_fn``; a ``func`` with callbacks such as ``callback_step``;
      a tolerance for each entry of a tensor.
    - The tolerances of a complex state apply to its real and imaginary parts, not to its modulus.
    - Times are kept in the real dtype of the state (float32 at least), not in float64. Far from zero, steps that
      float32 cannot resolve end in a ``RuntimeError``; shift the times, or solve in float64.
    - Each tensor of a tuple keeps its own dtype, and a derivative has the shape of its tensor (no broadcasting).

    Args:
        func: ``func(t, y)`` with a time ``[]`` and a state shaped like ``y0``; returns the derivative, shaped like
            ``y0``.
        y0: a tensor of any shape, real or complex, or a tuple of them; there is no batch dimension.
        t: ``[T]``, strictly increasing or decreasing; ``y0`` is the state at ``t[0]``.
        rtol, atol: tolerances; the defaults are torchdiffeq's. With ``dopri5``, ``dopri8``, ``bosh3`` and ``tsit5``, a
            tuple has one for each tensor of a tuple ``y0``. Methods on a grid ignore them.
        method: ours are ``dopri5`` (the default), ``dopri8``, ``bosh3``, ``tsit5``, and on a grid ``euler``,
            ``midpoint``, ``heun2``, ``ralston``, ``heun3``, ``rk4`` (the 3/8 rule, as in torchdiffeq) and
            ``rk4_classic``. ``adaptive_heun``, ``fehlberg2``, ``explicit_adams``, ``implicit_adams``, ``fixed_adams``
            and ``scipy_solver`` are torchdiffeq's, through :class:`TorchDiffEq`.
        options: on a grid ``step_size`` or ``grid_constructor`` (``(func, y0, t) -> [N]``); without one the grid is
            ``t``. With error control ``first_step``, ``min_step``, ``max_step``, ``max_num_steps``, ``safety``,
            ``ifactor``, ``dfactor``. For torchdiffeq's methods, its own options.
        event_fn: not supported; raises unless None.

    Shapes: returns ``[T, *y0.shape]``, a tuple of these for a tuple ``y0``.

    Cost: that of the solver, with one host read per attempted step and one at the end; none on a grid.

    Raises:
        ValueError: if times are not strictly monotone, or a method, option or tolerance is not supported.
        RuntimeError: if the solve fails: too many steps, steps too small, or a state that is not finite. Methods on a
            grid return what they computed.

    Source: the interface is that of torchdiffeq, Chen, 2018, https://github.com/rtqichen/torchdiffeq.

    Example:
        >>> y = odeint(lambda t, y: -y, torch.tensor(1.0), torch.linspace(0, 1, 3))
        >>> [round(value, 4) for value in y.tolist()]
        [1.0, 0.6065, 0.3679]
    """
    if event_fn is not None:
        raise ValueError("odeint(event_fn=...): events are not supported; use torchdiffeq.odeint.")
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
    """Integrates like :func:`odeint`, with a gradient that needs little memory, like ``torchdiffeq.odeint_adjoint``.

    torchdiffeq solves another equation backward in time, which adds its own error. Here every step is computed again
    with the graph of one evaluation at a time (:class:`Checkpointed`), so the gradient is that of :func:`odeint` up to
    rounding. Memory is one state per step, and the graph of one evaluation. torchdiffeq's own methods (``fehlberg2``
    and those that :func:`odeint` lists) use its continuous adjoint.

    Args:
        adjoint_params: the tensors that receive a gradient besides ``y0``. Default: those that ``func`` refers to.
        adjoint_rtol, adjoint_atol, adjoint_method: settings of the backward solve, for torchdiffeq's own methods only;
            the other methods have none and raise.
        adjoint_options: ``{"norm": "seminorm"}`` or None, for torchdiffeq's own methods only.

    The other arguments are those of :func:`odeint`.

    Raises:
        ValueError: as :func:`odeint`, and for settings of a backward solve where there is none.
        RuntimeError: as :func:`odeint`; in the backward pass as :class:`Checkpointed`.

    Source: as :class:`Checkpointed`.

    Example:
        >>> net = torch.nn.Linear(2, 2)
        >>> odeint_adjoint(lambda t, y: net(y), torch.ones(2), [0.0, 1.0])[-1].sum().backward()
        >>> net.weight.grad.shape
        torch.Size([2, 2])
    """
    if event_fn is not None:
        raise ValueError("odeint_adjoint(event_fn=...): events are not supported; use torchdiffeq.odeint_adjoint.")
    settings = {"adjoint_rtol": adjoint_rtol, "adjoint_atol": adjoint_atol, "adjoint_method": adjoint_method,
                "adjoint_options": adjoint_options}  # fmt: skip
    given = [name for name, value in settings.items() if value is not None]
    method = method or DEFAULT
    if not is_foreign("odeint_adjoint", method):
        if given:
            raise ValueError(
                f"odeint_adjoint({given[0]}={settings[given[0]]!r}, method={method!r}): this method has no backward "
                f"solve; omit it, or use TorchDiffEq(gradient=ContinuousAdjoint(...))."
            )
        gradient: Gradient = Checkpointed()
    else:
        if adjoint_options not in (None, {}, {"norm": "seminorm"}):
            raise ValueError(
                f"odeint_adjoint(adjoint_options={adjoint_options!r}): unknown options; pass {{'norm': 'seminorm'}} or "
                f"None."
            )
        gradient = ContinuousAdjoint(adjoint_rtol, adjoint_atol, adjoint_method, seminorm=bool(adjoint_options))
    params = None if adjoint_params is None else tuple(adjoint_params)
    return _odeint("odeint_adjoint", func, y0, t, rtol, atol, method, options, gradient, params)


def _odeint(owner, func, y0, t, rtol, atol, method, options, gradient, params):
    """Checks the arguments, adds the batch dimension, solves, and removes it again."""
    times = _times(owner, t)
    _refuse_callbacks(owner, func, method)
    single = isinstance(y0, Tensor)
    if not single and not (isinstance(y0, tuple | list) and y0 and all(isinstance(part, Tensor) for part in y0)):
        raise TypeError(f"{owner}(y0={type(y0).__name__}): expected a state; pass a tensor or a tuple of tensors.")
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
                f"{owner}: func returned a {type(slopes).__name__} for a state of {len(given)} tensors; return a tuple "
                f"of as many."
            )
        return tuple(_real(_like(owner, slope, part)).unsqueeze(0) for slope, part in zip(slopes, given))

    if single:  # a state of one tensor has less overhead in a solver
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
    """Views a state as the tensor that was given: the inverse of :func:`_real`."""
    return torch.view_as_complex(part.contiguous()) if like.is_complex() else part


def _refuse_callbacks(owner: str, func: Callable, method: str) -> None:
    """Raises if ``func`` has callbacks for every step."""
    named = [name for each in CALLBACKS for name in (each, each + "_adjoint") if getattr(func, name, None) is not None]
    if named:
        raise ValueError(
            f"{owner}(func with {named[0]}, method={method!r}): callbacks are not supported; use torchdiffeq.{owner}, "
            f"or read Solution.stats of a solver."
        )


def _like(owner: str, slope: Any, part: Tensor) -> Tensor:
    """Checks the result of ``func`` for a tensor of the state."""
    if not isinstance(slope, Tensor) or slope.shape != part.shape:
        found = f"shape {list(slope.shape)}" if isinstance(slope, Tensor) else type(slope).__name__
        raise ValueError(
            f"{owner}: func returned {found} for a state of shape {list(part.shape)}; return the shape of the state."
        )
    return slope


def _times(owner: str, t: Tensor | Sequence[float]) -> list[float]:
    """Reads the times and checks that they are strictly monotone."""
    if isinstance(t, Tensor):
        if t.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{owner}(t=tensor that requires a gradient): times are constants; pass t.detach() (for a learned end, "
                f"scale the field)."
            )
        if t.dim() != 1:
            raise ValueError(f"{owner}(t=tensor of shape {list(t.shape)}): expected one dimension; pass a tensor [T].")
        t = t.tolist()
    times = [float(each) for each in t]
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    if not times or not all(map(math.isfinite, times)) or not (all(s > 0 for s in steps) or all(s < 0 for s in steps)):
        raise ValueError(
            f"{owner}(t={times}): times are finite and strictly increase or decrease; sort them and drop duplicates."
        )
    return times
