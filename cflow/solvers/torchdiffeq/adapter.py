"""The methods of torchdiffeq as solvers: its less common methods, and its continuous adjoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cflow.modes import autocast, autocast_state
from cflow.registry import register
from cflow.solvers.gradients.modes import Backprop, Gradient, check_gradient
from cflow.solvers.gradients.parameters import refuse_strangers, wanted_parameters
from cflow.solvers.grid.fixed import through
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution, Stats, Tolerance, check_tolerances
from cflow.solvers.solver import Solver

__all__ = ["TorchDiffEq"]

ADAPTIVE = ("adaptive_heun", "bosh3", "dopri5", "dopri8", "fehlberg2")
FIXED = ("euler", "explicit_adams", "fixed_adams", "heun2", "heun3", "implicit_adams", "midpoint", "rk4")
METHODS = (*ADAPTIVE, *FIXED, "scipy_solver")

_NO_STEPS = (
    "torchdiffeq keeps no record of its steps; pass ContinuousAdjoint() or Backprop(), or use a solver of cflow such "
    "as "
    "Dopri8(gradient=Checkpointed())."
)
_CONTROL = ("dfactor", "dtype", "first_step", "ifactor", "jump_t", "max_num_steps", "max_step", "min_step", "norm",
            "safety", "step_t")  # fmt: skip
_GRID = ("grid_constructor", "perturb", "step_size")


@register("solvers.TorchDiffEq")
@dataclass(frozen=True, repr=False)
class TorchDiffEq(Solver):
    r"""Integrates with a method of torchdiffeq that ends exactly at the end and stays inside the interval.

    torchdiffeq itself steps past the last time and interpolates back, with a polynomial of order four for every method.
    Here steps are cut to end at the last time and at every output time, so that states have the accuracy of the method.
    The evaluation with which torchdiffeq chooses its first step is moved into the interval.

    Quadratures are parts of the state here and are included in the stages. Methods with error control hold them to
    their own tolerance; those without one do not affect the steps.

    Args:
        method: ``dopri8``, ``dopri5``, ``bosh3``, ``fehlberg2`` and ``adaptive_heun`` have error control, with common
            steps for the batch. ``euler``, ``midpoint``, ``heun2``, ``heun3``, ``rk4`` (the 3/8 rule),
            ``explicit_adams``, ``implicit_adams`` and ``fixed_adams`` use a grid, set by ``options={"step_size": h}``
            or ``{"grid_constructor": g}``. ``scipy_solver`` calls ``scipy.integrate.solve_ivp`` on the host, with
            ``options={"solver": "LSODA"}`` for example.
        rtol, atol: tolerances, as for our own solvers; torchdiffeq's own defaults are 1e-7 and 1e-9.
        gradient: ``Backprop()`` or ``ContinuousAdjoint()``; ``Checkpointed()`` is not available.
        options: torchdiffeq's options for the method; all are checked.

    Cost: that of torchdiffeq: about 18 host reads per step, and one more evaluation of ``f`` for quadratures.
    ``Solution.stats`` has the evaluations of ``f`` and, except for ``scipy_solver``, the steps.

    Raises:
        ValueError: if the method or an option is unknown, a grid is missing, the method does not support the gradient
            mode, or (``scipy_solver``) a quadrature has its own tolerance.
        RuntimeError: if the solve fails. One sample that is not finite fails the batch, since its steps are common.

    Source: Chen, torchdiffeq, 2018, https://github.com/rtqichen/torchdiffeq.

    Example:
        >>> solver = TorchDiffEq("dopri8", rtol=1e-9, atol=1e-9)
        >>> solution = solver.solve(lambda t, y: -y, torch.ones(2, 1, dtype=torch.float64), 0.0, 1.0)
        >>> bool((solution.y - torch.exp(torch.tensor(-1.0))).abs().max() < 1e-7)
        True
    """

    method: str
    rtol: float = 1e-5
    atol: float = 1e-6
    gradient: Gradient = field(default=Backprop(), kw_only=True)
    options: Mapping[str, Any] | None = field(default=None, kw_only=True)

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(
                f"TorchDiffEq({self.method!r}): torchdiffeq has no such method; choose from {', '.join(METHODS)}."
            )
        check_tolerances(f"TorchDiffEq({self.method!r})", self.rtol, self.atol)
        self._check_gradient()
        self._check_options()

    def _check_gradient(self) -> None:
        mode = self.gradient
        check_gradient("TorchDiffEq", mode, {"steps": _NO_STEPS})
        back = mode.method if mode.through == "equation" else None
        if back is not None and (back not in METHODS or (back in FIXED and self.method not in FIXED)):
            raise ValueError(
                f"TorchDiffEq({self.method!r}, gradient={mode!r}): the method of the adjoint, {back!r}, "
                f"{'has no grid' if back in METHODS else 'is unknown'}; choose from "
                f"{', '.join(METHODS if self.method in FIXED else (*ADAPTIVE, 'scipy_solver'))}."
            )

    def _check_options(self) -> None:
        options = dict(self.options or {})
        if self.method in ADAPTIVE:
            known: tuple[str, ...] = _CONTROL
        elif self.method in FIXED:
            known = _GRID
            known += ("max_iters", "max_order") if self.method.endswith("adams") else ()
        else:
            known = ("max_step", "min_step", "solver")
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(
                f"TorchDiffEq({self.method!r}, options={options}): the method has no option {unknown[0]!r}; it takes "
                f"{', '.join(known)}."
            )
        if self.method in FIXED and ("step_size" in options) == ("grid_constructor" in options):
            raise ValueError(
                f"TorchDiffEq({self.method!r}, options={options}): this method needs a grid; pass either "
                f"options={{'step_size': 0.05}} or a 'grid_constructor'."
            )

    shares_steps = True

    @property
    def step_tolerance(self) -> Tolerance | None:
        """The tolerance for accepting steps; None for methods on a grid."""
        return None if self.method in FIXED else Tolerance(self.rtol, self.atol)

    def _solve(self, problem: Problem) -> Solution:
        """Solves the batch as one system."""
        if problem.batch == 0:
            return problem.nothing()
        run = _Run(self, problem)
        times = list(dict.fromkeys([problem.t0, *(problem.at or ()), problem.t1]))
        results = run.integrate(times)
        parts, integrals = run.at(results, -1)
        # scipy interpolates at the start too, so the given state is used.
        outputs = [problem.y0 if t == problem.t0 else run.at(results, times.index(t))[0] for t in problem.at or ()]
        count = lambda number: torch.full((problem.batch,), number, dtype=torch.int64, device=problem.device)
        reached = torch.full((problem.batch,), problem.t1, dtype=problem.dtype, device=problem.device)
        taken = run.accepted + run.rejected
        stats = Stats(run.calls, run.rows, count(taken), count(run.accepted), count(run.rejected), reached)
        return problem.solution(parts, integrals, stats, problem.status(parts, integrals), outputs)


class _Run:
    """One call of torchdiffeq: the state as a tuple of parts, integrals, and arguments that require a gradient."""

    def __init__(self, solver: TorchDiffEq, problem: Problem):
        self.solver, self.problem = solver, problem
        self.accepted = self.rejected = 0
        leaves, self.structure = pytree.tree_flatten(problem.args)
        enabled = torch.is_grad_enabled()
        self.continuous = enabled and solver.gradient.through == "equation"
        wanted = [self.continuous and isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
        self.leaves, self.wanted = leaves, wanted
        self.params = wanted_parameters(problem) if self.continuous else []
        self.integrals = self._begin()
        # Arguments are constant parts of the state, so the adjoint computes their gradients like that of the start.
        # As parameters of the adjoint they would also be differentiated through what they were computed from.
        still = [leaf for leaf, want in zip(leaves, wanted) if want]
        self.start = (*problem.y0, *self.integrals, *still)
        differentiable = any(tensor.requires_grad for tensor in (*self.start, *self.params))
        if enabled and solver.method == "scipy_solver" and solver.gradient.through == "operations":
            self.params = wanted_parameters(problem)
            inputs = (*problem.y0, *self.params, *(leaf for leaf in leaves if isinstance(leaf, Tensor)))
            if any(tensor.requires_grad for tensor in inputs):
                raise ValueError(
                    "TorchDiffEq('scipy_solver', gradient=Backprop()): scipy cannot be differentiated; pass "
                    "gradient=ContinuousAdjoint(), or solve under torch.no_grad()."
                )
        self.adjoint = self.continuous and differentiable
        low, high = sorted((problem.t0, problem.t1))
        self.bounds = torch.tensor([low, high], dtype=problem.dtype, device=problem.device)
        self.autocast = autocast_state(problem.device.type)

    def _begin(self) -> list[Tensor]:
        """Returns integrals of zero in the shapes of the integrands, found with one evaluation of ``f``."""
        problem = self.problem
        if not problem.tolerances:
            return []
        with torch.no_grad():
            t = torch.full((problem.batch,), problem.t0, dtype=problem.dtype, device=problem.device)
            _, integrands = problem(t, problem.y0)
        return [torch.zeros_like(value) for value in integrands]

    def field(self) -> Callable:
        """Builds the function that torchdiffeq integrates, of a scalar time and the tuple of parts."""
        problem, start = self.problem, self.start
        count, integrals = len(problem.y0), len(self.integrals)

        def f(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            t = t.detach().to(problem.dtype)
            t = torch.minimum(torch.maximum(t, self.bounds[0]), self.bounds[1]).expand(problem.batch)
            # torchdiffeq keeps all parts in one tensor of the widest dtype.
            state = [part if part.dtype == like.dtype else part.to(like.dtype) for part, like in zip(state, start)]
            moving, given = state[:count], iter(state[count + integrals :])
            args = [next(given) if want else leaf for leaf, want in zip(self.leaves, self.wanted)]
            with autocast(self.autocast) if self.adjoint else contextlib.nullcontext():
                slopes, integrands = problem(t, moving, pytree.tree_unflatten(args, self.structure))
            still = [torch.zeros_like(part) for part in state[count + integrals :]]
            if self.continuous and torch.is_grad_enabled():
                refuse_strangers(problem, (*slopes, *integrands), [*state, *self.params])
                # The adjoint differentiates the result even if it does not depend on the state.
                slopes = [slope + 0 * part for slope, part in zip(slopes, moving)]
            return (*slopes, *integrands, *still)

        if self.solver.method in ADAPTIVE:
            f.callback_accept_step = lambda *_: self._count("accepted")
            f.callback_reject_step = lambda *_: self._count("rejected")
        elif self.solver.method in FIXED:
            f.callback_step = lambda *_: self._count("accepted")
        return f

    def _count(self, kind: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)

    def integrate(self, times: list[float]) -> tuple[Tensor, ...]:
        """Calls torchdiffeq; returns each part at every time, ``[len(times), ...]``."""
        import torchdiffeq

        solver, problem = self.solver, self.problem
        t = torch.tensor(times, dtype=torch.float64, device=problem.device)
        arguments = {"method": solver.method, "options": self.options(solver.method, times, 1.0)}
        arguments |= dict(zip(("rtol", "atol"), self.tolerances()))
        try:
            if not self.adjoint:
                results = torchdiffeq.odeint(self.field(), self.start, t, **arguments)
            else:
                mode = solver.gradient
                back = solver.method if mode.method is None else mode.method
                # torchdiffeq reverses a decreasing time for the forward solve, but not for these options.
                options = self.options(back, times, 1.0 if problem.t1 > problem.t0 else -1.0)
                options.pop("norm", None)
                results = torchdiffeq.odeint_adjoint(
                    self.field(), self.start, t, **arguments,
                    adjoint_rtol=solver.rtol if mode.rtol is None else mode.rtol,
                    adjoint_atol=solver.atol if mode.atol is None else mode.atol,
                    adjoint_method=back, adjoint_params=tuple(self.params),
                    adjoint_options=options | ({"norm": "seminorm"} if mode.seminorm and back in ADAPTIVE else {}),
                )  # fmt: skip
        except AssertionError as failure:
            raise RuntimeError(
                f"{problem.owner}({solver.method!r}).solve from t0={problem.t0:.6g} to t1={problem.t1:.6g}: "
                f"torchdiffeq failed ({str(failure)[:200]}); loosen the tolerances, or use a solver of cflow, which "
                f"returns a status per sample."
            ) from failure
        if results[0].shape[0] != len(times):  # a failed solve of scipy returns fewer times
            raise RuntimeError(
                f"{problem.owner}({solver.method!r}).solve: scipy reached only {results[0].shape[0]} of the "
                f"{len(times)} times from t0={problem.t0:.6g} to t1={problem.t1:.6g}; loosen the tolerances."
            )
        self.calls, self.rows = problem.calls, problem.rows
        return results

    def at(self, results: tuple[Tensor, ...], index: int) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the parts and the integrals at one of the times."""
        count = len(self.problem.y0)
        values = [result[index].to(like.dtype) for result, like in zip(results, self.start)]
        return values[:count], values[count : count + len(self.integrals)]

    def tolerances(self) -> tuple[Any, Any]:
        """Returns the tolerances, one per part if quadratures have their own."""
        solver, own = self.solver, list(self.problem.tolerances.values())
        shared = Tolerance(solver.rtol, solver.atol)
        if solver.method in ADAPTIVE and (own or any(self.wanted)):
            bounds = [shared] * len(self.problem.y0) + [each or shared for each in own]
            bounds += [shared] * sum(self.wanted)
            return tuple(each.rtol for each in bounds), tuple(each.atol for each in bounds)
        foreign = [name for name, each in self.problem.tolerances.items() if each not in (None, shared)]
        if solver.method == "scipy_solver" and foreign:
            raise ValueError(
                f"TorchDiffEq('scipy_solver').solve(quadratures={self.problem.tolerances}): scipy has only "
                f"rtol={solver.rtol} and atol={solver.atol}; pass these for {foreign[0]!r}, or None."
            )
        return solver.rtol, solver.atol

    def options(self, method: str, times: list[float], sign: float) -> dict[str, Any]:
        """Returns torchdiffeq's options for a solve with a method; ``sign`` is -1 for a reversed time."""
        given = dict(self.solver.options or {})
        tensor = lambda values: sign * torch.tensor(values, dtype=torch.float64, device=self.problem.device)
        if method in FIXED:
            keep = {name: value for name, value in given.items() if name not in _GRID}
            if not method.endswith("adams"):
                keep = {}
            perturb = {"perturb": given["perturb"]} if "perturb" in given else {}
            return keep | perturb | {"grid_constructor": self._grid(times, tensor)}
        if method not in ADAPTIVE:
            return given if self.solver.method == method else {}
        if self.solver.method not in ADAPTIVE:
            given = {}
        read = lambda name: {float(value) for value in torch.as_tensor(given.pop(name, ())).flatten().tolist()}
        jumps, stops = read("jump_t"), read("step_t")
        norm = given.pop("norm", None)
        # torchdiffeq goes through each list in order, and a time that a step meets by chance blocks those after it:
        # the ends are in the other list if one list has times.
        stops = (stops | set(times[1:-1])) - jumps
        if stops:
            jumps |= {times[-1], times[0]}
        else:
            stops = {times[-1], times[0]} - jumps
        given["step_t"], given["jump_t"] = tensor(sorted(stops)), tensor(sorted(jumps - stops))
        given["norm"] = self._norm(norm)
        return given

    def _grid(self, times: list[float], tensor: Callable) -> Callable:
        """Builds torchdiffeq's grid constructor: a grid through all times, for any interval between two of them."""
        given = self.solver.options
        if "step_size" in given:
            length = times[-1] - times[0]
            steps = max(1, -int(-abs(length) / float(given["step_size"]) // 1))
            size = float(given["step_size"]) * (1 if length > 0 else -1)
            nodes = [times[0] + size * step for step in range(steps)] + [times[-1]]
            if abs(nodes[-1] - nodes[-2]) < 1e-6 * abs(length) and steps > 1:
                del nodes[-2]
        else:
            make = given["grid_constructor"]
            ends = torch.tensor(times, dtype=torch.float64, device=self.problem.device)
            nodes = [float(node) for node in torch.as_tensor(make(self.problem.f, self.problem.like, ends))]
            low, high = min(times[0], times[-1]), max(times[0], times[-1])
            nodes = [times[0], *[node for node in nodes if low < node < high], times[-1]]
        laid = tensor(through(nodes, times[1:-1]))

        def grid(f, y0, t: Tensor) -> Tensor:
            low, high = torch.minimum(t[0], t[-1]), torch.maximum(t[0], t[-1])
            slack = 1e-9 * (high - low)
            inside = laid[(laid > low + slack) & (laid < high - slack)]
            inside = inside.sort(descending=bool(t[0] > t[-1])).values
            return torch.cat((t[:1], inside, t[-1:]))

        return grid

    def _norm(self, given: Callable | None) -> Callable:
        """Builds the norm of the error over the tolerance, for the parts and for the integrals with a tolerance."""
        count = len(self.problem.y0)
        # Arguments are constant: they have no error, and the solve does not depend on their gradients.
        held = [count + index for index, each in enumerate(self.problem.tolerances.values()) if each is not None]
        size = lambda value: value.square().mean().sqrt()

        def norm(parts):
            parts = [parts] if isinstance(parts, Tensor) else parts
            if given is None:
                sizes = [size(part) for part in parts[:count]]
            else:
                sizes = [given(parts[0] if self.problem.single else tuple(parts[:count]))]
            worst = max([*sizes, *(size(parts[index]) for index in held)])
            # Gradients treat steps as constants, but torchdiffeq computes its first step from this norm of the state.
            return worst.detach() if isinstance(worst, Tensor) else worst

        return norm
