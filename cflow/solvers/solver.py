"""The contract of a solver: its arguments, its attributes, and the methods that a new solver defines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, final

import torch
from torch import Tensor

from cflow.solvers.gradients.modes import Gradient
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution, Tolerance

__all__ = ["Solver", "check_is_solver"]


class Solver(ABC):
    """Integrates ``dy/dt = f(t, y, *args)`` from ``t0`` to ``t1``, for every sample of a batch.

    A new solver defines :meth:`_solve`, which computes the solution of a :class:`Problem`, and :meth:`_check` if it
    refuses some problems. :meth:`solve` is final: it reads and checks the arguments for every solver. Other code reads
    the attributes and methods below and never asks for the class. So a solver around another one (:class:`Wrapper`, or
    any object that forwards attributes) can replace the inner solver.

    Attributes:
        gradient: how gradients pass through a solve, an option object. None: there is no choice, and training through
            the solver is refused.
        needs_score: whether ``f`` must return a pair ``(velocity, score)``, for an SDE with the marginals of a flow.
            Such a solver computes no integrals.
        takes_whole_steps: whether ``f`` is evaluated for the average velocity over a step, ``f(t, y, *args, s=...)``.
            No closed form replaces such a step.
        on_manifolds: whether the solver steps on a manifold, which ``manifold=`` must then pass. The state is one
            tensor of points, and ``f`` returns tangent vectors. Others integrate in the ambient space, and refuse one.
        fitted_times: the times of all evaluations of ``f``, if they were fitted to one flow. Such a solver integrates
            over its whole interval or not at all. None: not fitted.
        step_tolerance: the tolerance for accepting steps. Integrals that must be accurate, such as a log-determinant,
            are held to it too. None: no error control, and a solve fails only if numbers are not finite.
        shares_steps: whether all samples of a batch take the same steps, so that a result depends on the other samples.
        why_no_graph: the reason why a CUDA graph or a traced program cannot hold the solve (with error control: some of
            its attempts, see :meth:`attempts`). None: it can.

    Example:
        >>> class Leapfrog(Solver):  # y'' = -y, in one state of positions and speeds
        ...     def _solve(self, problem):
        ...         (y,), h = problem.y0, (problem.t1 - problem.t0) / 100
        ...         t = torch.zeros(problem.batch)
        ...         for _ in range(100):
        ...             half = y + torch.tensor([0.0, h / 2]) * problem(t, [y])[0][0]
        ...             y = half + torch.tensor([h, 0.0]) * problem(t, [half])[0][0]
        ...             y = y + torch.tensor([0.0, h / 2]) * problem(t, [y])[0][0]
        ...         return problem.finished([y])
        >>> turn = lambda t, y: torch.stack((y[:, 1], -y[:, 0]), 1)
        >>> Leapfrog().solve(turn, torch.tensor([[1.0, 0.0]]), 0.0, torch.pi).y
        tensor([[-1.0000e+00,  ...]])
    """

    gradient: Gradient | None = None
    needs_score: bool = False
    takes_whole_steps: bool = False
    on_manifolds: bool = False
    fitted_times: tuple[float, ...] | None = None
    step_tolerance: Tolerance | None = None
    shares_steps: bool = False
    why_no_graph: str | None = "it may read values between its steps"

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "solve" in vars(cls):
            raise TypeError(
                f"class {cls.__name__} defines solve(), which is final; define _solve(self, problem) and _check(self, "
                f"problem)."
            )

    def __repr__(self) -> str:
        """Shows the options that differ from their defaults."""
        if not is_dataclass(self):
            return super().__repr__()
        given = [(each.name, getattr(self, each.name)) for each in fields(self)]
        defaults = {each.name: each.default for each in fields(self)}
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in given if v != defaults[n])})"

    @final
    def solve(
        self,
        f: Callable,
        y0: Any,
        t0: float | Tensor,
        t1: float | Tensor,
        *,
        args: Sequence[Any] = (),
        params: Sequence[Tensor] | None = None,
        quadratures: Mapping[str, Tolerance | None] | None = None,
        manifold: Any = None,
        path: Any = None,
        generator: torch.Generator | None = None,
        at: Sequence[float] | Tensor | None = None,
    ) -> Solution:
        """Solves the initial value problem; ``t1 < t0`` integrates backward.

        Args:
            f: ``f(t, y, *args) -> dy``, or ``(dy, {name: value})`` if ``quadratures`` lists integrals. ``t`` is a
                ``[B]`` tensor in the real dtype of the state (float32 at least). The tensors that ``f`` returns are
                read again later, so they must not be overwritten (clone the output of a CUDA graph). If ``f`` has a
                method ``f.alone(t, y, *args) -> dy``, it is called where no integral counts: at stages without weight,
                and where a state is computed again.
            y0: a tensor, or a nested tuple, list or dict of tensors, all with the same first dimension ``B``. A state
                in half precision is kept in float32 between evaluations; ``f`` and the result have the dtype of ``y0``.
            t0, t1: the two ends. If they are equal, ``f`` is not evaluated and ``y0`` is returned.
            args: more arguments of ``f``. The first dimension of every tensor in them is the batch, and a solver may
                drop rows. So pass what varies with the sample here, never through a closure.
            params: tensors that receive gradients besides ``y0`` and ``args``. Solvers that backpropagate through their
                own operations do not need it.
            quadratures: maps the name of each integral that ``f`` returns to the tolerance with which it takes part in
                step control, or to None to leave it out. Each value is ``[B]`` or ``[B, k]``.
            manifold: the manifold of the state, for solvers that step on it (``on_manifolds``).
            path: the schedule, for solvers that depend on one.
            generator: source of noise, for solvers that draw.
            at: times, in the direction of integration, at which the state is stored in ``Solution.trajectory``.

        Raises:
            ValueError: if the solver does not support an argument.
        """
        problem = Problem(
            self, f, y0, t0, t1, args=args, params=params, quadratures=quadratures, manifold=manifold, path=path,
            generator=generator, at=at,
        )  # fmt: skip
        self._check(problem)
        if problem.t0 == problem.t1:
            return problem.nothing()
        solution = self._solve(problem)
        if not isinstance(solution, Solution):
            raise TypeError(
                f"{type(self).__name__}._solve returned a {type(solution).__name__}, not a Solution; return "
                f"problem.finished(parts, steps=...)."
            )
        return solution

    @abstractmethod
    def _solve(self, problem: Problem) -> Solution:
        """Computes the solution of a problem with ``t0 != t1``."""

    def _check(self, problem: Problem) -> None:  # noqa: B027 (most solvers refuse nothing)
        """Raises if the solver does not support a problem; called for ``t0 == t1`` too."""

    def nodes(self, t0: float, t1: float) -> list[float] | None:
        """Returns the times of the steps from ``t0`` to ``t1``, both included; None without a fixed grid."""
        return None

    def on(self, nodes: Sequence[float]) -> Solver:
        """Returns the same solver on another grid: times ``nodes`` that increase or decrease; a solve adds its ends.

        Raises:
            ValueError: if the solver has no fixed grid (:meth:`nodes` returns None).
        """
        raise ValueError(
            f"{type(self).__name__}.on(...): this solver has no fixed grid; use one that has, such as Heun(grid=(0.0, "
            f"0.3, 1.0))."
        )

    def attempts(self, problem: Problem) -> Any:
        """Starts a solve of ``problem`` whose attempts a CUDA graph can hold: see ``cflow.solvers.adaptive.attempts``.

        It is called only for solvers with a ``step_tolerance`` and without a ``why_no_graph``.
        """
        raise ValueError(
            f"{type(self).__name__}.attempts(...): this solver defines no attempts for a CUDA graph; use one such as "
            f"Heun or Dopri5."
        )

    def for_tracing(self) -> Solver:
        """Returns the same solver for ``torch.export``: it keeps the numbers that its first solve makes on the host."""
        return self


CONTRACT = (*(name for name in vars(Solver) if not name.startswith("_")), "_check", "_solve")


def check_is_solver(what: str, value: Any) -> None:
    """Raises unless an object derives from :class:`Solver`, or forwards all its attributes and methods.

    Raises:
        TypeError: with the first attribute that is missing.
    """
    if isinstance(value, Solver):
        return
    missing = next((name for name in CONTRACT if not hasattr(value, name)), None)
    if missing is not None or isinstance(value, type):
        if isinstance(value, str):
            raise TypeError(
                f"{what}={value!r}: a solver is an object, not a name; pass solvers.Heun(steps=20), or "
                f"solvers.by_name({value!r}, ...)."
            )
        why = "" if isinstance(value, type) or not hasattr(value, "solve") else f" without {missing!r}"
        raise TypeError(
            f"{what}={value!r}: a {type(value).__name__}{why} is not a solver; pass one such as "
            f"solvers.Heun(steps=20), or derive your class from solvers.Solver."
        )
