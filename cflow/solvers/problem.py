"""The checked arguments of a solve, and how a solver evaluates the function."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cflow.solvers.solution import Solution, Stats, Status
from cflow.solvers.state import join, per_row, split, stack

__all__ = ["Problem"]


class Problem:
    """Holds the checked arguments of a solve, and evaluates ``f`` on the flat list of the state's tensors.

    :meth:`finished` and :meth:`nothing` build the result.

    Args:
        solver: the solver that solves the problem.

    The other arguments are those of :meth:`cflow.solvers.Solver.solve`.

    Attributes:
        f: the function; a solver may replace it before the first evaluation.
        like: the state as given; the result has its structure.
        y0: the tensors of the state in a list, in float32 at least.
        t0, t1: the ends, two Python numbers.
        at: the output times, or None.
        args, params, manifold, path, generator: as given.
        tolerances: maps the name of each quadrature to its tolerance, or to None.
        batch, device, dtype: the number of samples, their device, and the dtype of time.
        owner: the name of the solver, for messages.
        gradient: the gradient mode of the solver.
        calls, rows: the number of evaluations of ``f`` so far, and of rows in them.
    """

    def __init__(
        self, solver, f: Callable, y0: Any, t0: float | Tensor, t1: float | Tensor, *, args: Sequence[Any] = (),
        params: Sequence[Tensor] | None = None, quadratures: Mapping[str, Any] | None = None, manifold: Any = None,
        path: Any = None, generator: torch.Generator | None = None, at: Sequence[float] | Tensor | None = None,
    ):  # fmt: skip
        self.owner, self.gradient = type(solver).__name__, solver.gradient
        if manifold is not None and not solver.on_manifolds:
            raise ValueError(
                f"{self.owner}.solve(manifold={type(manifold).__name__}): this solver would leave the manifold; use "
                f"one such as GeodesicEuler(steps=50), or manifold=None for the ambient space."
            )
        self.f, self.like, self.args, self.params = f, y0, tuple(args), params
        self.manifold, self.path, self.generator = manifold, path, generator
        self.t0, self.t1 = _time(self.owner, "t0", t0), _time(self.owner, "t1", t1)
        self.at = None if at is None else _outputs(self.owner, at, self.t0, self.t1)
        self.tolerances = dict(quadratures or {})
        for name, bound in self.tolerances.items():
            if bound is not None and not (hasattr(bound, "rtol") and hasattr(bound, "atol")):
                raise TypeError(
                    f"{self.owner}.solve(quadratures={{{name!r}: {bound!r}}}): expected a tolerance; pass "
                    f"Tolerance(1e-5, 1e-5), or None to leave the integral out of step control."
                )
        parts = split(y0, y0)
        self._check(parts)
        self.batch, self.device = parts[0].shape[0], parts[0].device
        self.dtype = torch.float32
        for part in parts:
            self.dtype = torch.promote_types(self.dtype, part.dtype)
        self.shown = [part.dtype for part in parts]
        self.y0 = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
        self.converts = any(part.dtype != shown for part, shown in zip(self.y0, self.shown))
        self.single = isinstance(y0, Tensor)
        self.calls = self.rows = 0

    def _check(self, parts: list[Tensor]) -> None:
        """Raises unless the state and every tensor of ``args`` are rows of one batch."""
        if not parts:
            raise ValueError(f"{self.owner}.solve: the state has no tensors; pass at least one.")
        for part in parts:
            if not part.dtype.is_floating_point:
                raise ValueError(
                    f"{self.owner}.solve: a state of dtype {part.dtype} has no real derivative; pass floating-point "
                    f"tensors (for a complex state, its real and imaginary parts)."
                )
        arguments = [leaf for leaf in pytree.tree_leaves(self.args) if isinstance(leaf, Tensor)]
        for name, tensors in (("y0", parts), ("args", arguments)):
            for tensor in tensors:
                if tensor.dim() == 0 or parts[0].dim() == 0 or tensor.shape[0] != parts[0].shape[0]:
                    raise ValueError(
                        f"{self.owner}.solve: a tensor of shape {list(tensor.shape)} in {name} and a state of shape "
                        f"{list(parts[0].shape)} differ in the batch, their first dimension; expand it, or keep it "
                        f"inside f."
                    )

    def __call__(
        self, t: Tensor, parts: list[Tensor], args: tuple | None = None, integrals: bool = True
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Evaluates ``f`` at times ``t [B]`` and the state ``parts``: the derivative of each part, and the integrands.

        The integrands follow the order of ``tolerances``. ``args`` replaces the arguments of the solve. With
        ``integrals=False`` the integrands are None, and ``f.alone`` is called if ``f`` has this cheaper method.
        """
        if self.converts:
            parts_shown = [part.to(shown) for part, shown in zip(parts, self.shown)]
        else:
            parts_shown = parts
        y = parts_shown[0] if self.single else join(parts_shown, self.like)
        alone = None if integrals or not self.tolerances else getattr(self.f, "alone", None)
        result = (self.f if alone is None else alone)(t, y, *(self.args if args is None else args))
        integrands = [None] * len(self.tolerances)
        if self.tolerances and alone is None:
            result, integrands = self._integrands(result, t)
        if self.single and isinstance(result, Tensor):
            slopes = [result]
        else:
            slopes = split(result, self.like, "what f returned")
        if self.calls == 0:
            self._check_first(slopes, parts)
        self.calls += 1
        self.rows += t.shape[0]
        for index, part in enumerate(parts):
            if slopes[index].dtype is not part.dtype:
                slopes[index] = slopes[index].to(part.dtype)
        return slopes, integrands

    @property
    def plain(self) -> bool:
        """Whether the state is one tensor in its own dtype, without quadratures."""
        return self.single and not self.converts and not self.tolerances

    def slope(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns ``f`` for a plain state, with less overhead than calling the problem; the first result is checked.

        The caller adds its evaluations to ``calls`` and ``rows``, except for the first one.
        """
        f, args, dtype, first = self.f, self.args, self.dtype, [True]

        def slope(t: Tensor, y: Tensor) -> Tensor:
            if first:
                first.clear()
                return self(t, [y])[0][0]
            k = f(t, y, *args)
            return k if k.dtype is dtype else k.to(dtype)

        return slope

    def _check_first(self, slopes: list[Tensor], parts: list[Tensor]) -> None:
        for slope, part in zip(slopes, parts):
            if slope.shape != part.shape:
                raise ValueError(
                    f"{self.owner}.solve: f returned a derivative of shape {list(slope.shape)} for a state of shape "
                    f"{list(part.shape)}; return the shape of the state."
                )

    def _integrands(self, result: Any, t: Tensor) -> tuple[Any, list[Tensor]]:
        """Splits the result of ``f`` into the derivative and the integrands, in the order of the names."""
        names = list(self.tolerances)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
            raise ValueError(
                f"{self.owner}.solve(quadratures={names}): f returned a {type(result).__name__} without integrands; "
                f"return (dy, {{name: value}}) with these names."
            )
        slopes, values = result
        if values.keys() != self.tolerances.keys():
            raise ValueError(
                f"{self.owner}.solve(quadratures={names}): f returned the integrands {sorted(map(str, values))}; "
                f"return exactly these names."
            )
        integrands = []
        for name in names:
            value = values[name]
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{self.owner}.solve: f returned the integrand {name!r} as a {type(value).__name__}; return a "
                    f"tensor [B] or [B, k]."
                )
            if value.dim() not in (1, 2) or value.shape[0] != t.shape[0]:
                raise ValueError(
                    f"{self.owner}.solve: f returned the integrand {name!r} of shape {list(value.shape)} for a batch "
                    f"of {t.shape[0]}; return [B] or [B, k]."
                )
            integrands.append(value.to(torch.promote_types(value.dtype, self.dtype)))
        return slopes, integrands

    def status(self, parts: list[Tensor], integrals: Sequence[Tensor], status: Tensor | None = None) -> Tensor:
        """Returns ``status`` with ``NON_FINITE`` for samples with ``parts`` or ``integrals`` that are not finite."""
        finite = torch.stack([torch.isfinite(per_row(value)).all(1) for value in (*parts, *integrals)]).all(0)
        if status is None:
            status = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
        return torch.where((status == Status.SUCCESS) & ~finite, int(Status.NON_FINITE), status)

    def restore(self, parts: list[Tensor]) -> Any:
        """Returns ``parts`` in the structure and the dtypes of the given state."""
        return join([part.to(shown) for part, shown in zip(parts, self.shown)], self.like)

    def solution(self, parts, integrals, stats: Stats, status: Tensor, outputs: Sequence[list[Tensor]]) -> Solution:
        """Builds the solution from ``parts``, ``integrals``, ``stats``, ``status`` and the stored ``outputs``."""
        trajectory = None if self.at is None else self.restore(stack(outputs, parts))
        names = dict(zip(self.tolerances, integrals))
        return Solution(self.restore(parts), names, stats, status, trajectory)

    def finished(
        self,
        parts: list[Tensor],
        integrals: Sequence[Tensor] = (),
        steps: int = 1,
        outputs: Sequence[list[Tensor]] = (),
    ) -> Solution:
        """Builds the solution of a method that took the same number of ``steps`` for all samples and rejected none.

        ``parts`` and ``integrals`` are those at the end; ``outputs`` lists the parts at each output time.

        Raises:
            ValueError: if integrals or states at output times are missing that the problem requires.
        """
        for asked, given, name in ((self.tolerances, integrals, "quadratures"), (self.at or (), outputs, "at")):
            if len(asked) != len(given):
                raise ValueError(
                    f"{self.owner}.solve({name}={list(asked)}): the solver returned {len(given)} of {len(asked)}; "
                    f"compute all in _solve, or refuse them in _check."
                )
        taken = torch.full((self.batch,), steps, dtype=torch.int64, device=self.device)
        reached = torch.full((self.batch,), self.t1, dtype=self.dtype, device=self.device)
        stats = Stats(self.calls, self.rows, taken, taken.clone(), torch.zeros_like(taken), reached)
        return self.solution(parts, integrals, stats, self.status(parts, integrals), outputs)

    def nothing(self) -> Solution:
        """Builds the solution for an empty interval or batch: no evaluation of ``f``, integrals of zero."""
        zeros = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
        reached = torch.full((self.batch,), self.t1, dtype=self.dtype, device=self.device)
        stats = Stats(0, 0, zeros, zeros.clone(), zeros.clone(), reached)
        integrals = [torch.zeros(self.batch, dtype=self.dtype, device=self.device) for _ in self.tolerances]
        solution = self.solution(self.y0, integrals, stats, zeros.clone(), [self.y0] * len(self.at or ()))
        solution.y = self.like
        return solution


def _time(owner: str, name: str, value: float | Tensor) -> float:
    """Reads an end of the interval as a Python float."""
    if isinstance(value, Tensor):
        if value.dim() != 0 or (value.requires_grad and torch.is_grad_enabled()):
            raise ValueError(
                f"{owner}.solve({name}=tensor of shape {list(value.shape)}, requires_grad={value.requires_grad}): "
                f"{name} is one constant for the batch; pass a float (for learned ends, scale the field by the "
                f"interval's length)."
            )
        value = value.item()
    if not math.isfinite(value):
        raise ValueError(f"{owner}.solve({name}={value}): the interval must be finite; pass a finite number.")
    return float(value)


def _outputs(owner: str, at: Sequence[float] | Tensor, t0: float, t1: float) -> list[float]:
    """Reads the output times and checks that they lie in the interval and follow its direction."""
    times = [float(t) for t in (at.tolist() if isinstance(at, Tensor) else at)]
    if isinstance(at, Tensor) and at.is_floating_point():
        # The tensor may contain an end rounded to its dtype: use the exact end.
        ends = dict(zip(torch.tensor([t0, t1], dtype=at.dtype).tolist(), (t0, t1)))
        times = [ends.get(t, t) for t in times]
    forward = [t if t1 >= t0 else -t for t in (t0, *times, t1)]
    if any(not later >= earlier for earlier, later in itertools.pairwise(forward)):
        raise ValueError(
            f"{owner}.solve(at={times}): output times lie between t0={t0} and t1={t1} in the direction of integration; "
            f"sort them, and drop those outside."
        )
    return times
