"""The contract of a solver: what it is called with, what it says about itself, and what a new one has to write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution, Tolerance

if TYPE_CHECKING:
    from cflow.solvers.gradients.modes import Gradient

__all__ = ["Solver", "check_is_solver"]


class Solver(ABC):
    """Integrates ``dy/dt = f(t, y, *args)`` from ``t0`` to ``t1``, sample by sample of a batch.

    A method writes :meth:`_solve`, which computes the solution of a :class:`Problem`, and :meth:`_check` where it
    refuses something. :meth:`solve` is final: it reads and checks what all solvers are given. What others need to know
    of a solver is said by the attributes and methods below, never by its class, so that a solver around another one
    (:class:`Wrapper`, or any object that forwards attributes) is used as the one inside.

    Attributes:
        gradient: how gradients pass through a solve, an option object; None where there is no choice, and training
            through the solver is refused.
        needs_score: whether ``f`` gives a pair ``(velocity, score)``, as an SDE with the marginals of a flow needs. No
            integrals are defined along its paths.
        takes_whole_steps: whether ``f`` is called for the average velocity of a whole step, ``f(t, y, *args, s=...)``.
            No closed form stands in for such a step.
        fitted_times: the times of all calls of ``f``, where they were fitted to one flow; such a solver goes over all
            of its interval or not at all. None otherwise.
        step_tolerance: the tolerance by which steps are accepted; integrals that count, such as a log-determinant, are
            held to it as well. None without error control: such a solve fails by numbers that are not finite alone.
        shares_steps: whether samples of a batch take common steps, so that a result depends on the others.
        why_no_graph: why no CUDA graph or traced program can hold the solve, or for a solver with error control some
            of its attempts (see :meth:`attempts`); None where one can.

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
    fitted_times: tuple[float, ...] | None = None
    step_tolerance: Tolerance | None = None
    shares_steps: bool = False
    why_no_graph: str | None = "whether it looks at values between its steps is not known"

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "solve" in vars(cls):
            raise TypeError(
                f"class {cls.__name__}: it defines solve(), which reads and checks the arguments in the same way for "
                f"every solver; define _solve(self, problem) -> Solution instead, and _check(self, problem) to refuse."
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
            f: ``f(t, y, *args) -> dy``, or ``(dy, {name: value})`` when ``quadratures`` names integrals to keep beside
                the state (``f.alone(t, y, *args) -> dy``, where there is such a method, is called where no integral
                counts: at stages without weight, and where a state is computed again). ``t`` is a ``[B]`` tensor in the
                state's real dtype (float32 at least). What it returns is read again later: it must not be written into
                (clone what a CUDA graph returns).
            y0: a tensor, or a nested tuple, list or dict of tensors, all with the same first dimension ``B``.
                States in half precision are kept in float32 between evaluations, shown to ``f`` and returned in theirs.
            t0, t1: the two ends; where they are equal, nothing is evaluated and ``y0`` is returned.
            args: more arguments of ``f``. The first dimension of every tensor in them is the batch, whose rows a
                solver may drop; whatever varies with the sample goes here, never through a closure.
            params: tensors to which gradients must flow besides ``y0`` and ``args``. Solvers that backpropagate
                through their own operations find them by themselves.
            quadratures: maps each integral that ``f`` returns to the tolerance with which it joins step acceptance, or
                to None to leave it out. Each value is ``[B]`` or ``[B, k]``.
            manifold: where the state lives, for solvers that step along geodesics.
            path: the schedule, for solvers that are fitted to one.
            generator: source of noise, for solvers that draw.
            at: times, in the direction of integration, at which the state is kept in ``Solution.trajectory``.

        Raises:
            ValueError: if an argument cannot be honoured.
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
                f"{type(self).__name__}._solve returned a {type(solution).__name__}: a solve ends in a Solution with "
                f"statistics and a status per sample; return problem.finished(parts, steps=...)."
            )
        return solution

    @abstractmethod
    def _solve(self, problem: Problem) -> Solution:
        """Computes the solution of a problem whose interval has a length."""

    def _check(self, problem: Problem) -> None:  # noqa: B027 (most solvers refuse nothing)
        """Raises where the solver cannot honour a problem, also one whose interval has no length."""

    def nodes(self, t0: float, t1: float) -> list[float] | None:
        """Gives the times from ``t0`` to ``t1``, both included, between which it steps; None without a fixed grid."""
        return None

    def on(self, nodes: Sequence[float]) -> Solver:
        """Gives the same solver on a grid of other times, which increase or decrease; the ends of a solve are added.

        Raises:
            ValueError: where the solver has no fixed grid (:meth:`nodes` gives None).
        """
        raise ValueError(
            f"{type(self).__name__}.on(...): this solver lays no grid beforehand, so it cannot be put on another one; "
            f"take a solver such as Heun(grid=(0.0, 0.3, 1.0))."
        )

    def attempts(self, problem: Problem) -> Any:
        """Begins a solve that CUDA graphs hold by attempts: see :class:`cflow.solvers.adaptive.attempts.Attempts`.

        It is called for solvers that have a ``step_tolerance`` and whose ``why_no_graph`` is None.
        """
        raise ValueError(
            f"{type(self).__name__}.attempts(...): this solver does not say how a CUDA graph holds its attempts; take "
            f"a solver on a fixed grid such as Heun, or an adaptive one such as Dopri5."
        )

    def for_tracing(self) -> Solver:
        """Gives the same solver for ``torch.export``: what is computed on the host is kept from the first solve on."""
        return self


CONTRACT = (*(name for name in vars(Solver) if not name.startswith("_")), "_check", "_solve")


def check_is_solver(what: str, value: Any) -> None:
    """Raises unless an object derives from :class:`Solver`, or forwards all that a solver says of itself.

    Raises:
        TypeError: naming the first attribute that is missing.
    """
    if isinstance(value, Solver):
        return
    missing = next((name for name in CONTRACT if not hasattr(value, name)), None)
    if missing is not None or isinstance(value, type):
        if isinstance(value, str):
            raise TypeError(
                f"{what}={value!r} is a name, and options are objects, since they have options of their own; pass "
                f"solvers.Heun(steps=20), solvers.Dopri5(rtol=1e-5), or solvers.by_name({value!r}, ...)."
            )
        why = "" if isinstance(value, type) or not hasattr(value, "solve") else f", which has no {missing!r}"
        raise TypeError(
            f"{what}={value!r} is a {type(value).__name__}{why}; options are objects, such as solvers.Heun(steps=20), "
            f"and a solver of your own derives from solvers.Solver, or from solvers.Wrapper around another."
        )
