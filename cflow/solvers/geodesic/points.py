"""What a solver on a manifold asks of a problem."""

from __future__ import annotations

from cflow.solvers.problem import Problem

__all__ = ["check_points"]


def check_points(problem: Problem) -> None:
    """Raises unless the problem has a manifold, and its state is one tensor of points of it."""
    owner, manifold = problem.owner, problem.manifold
    if manifold is None:
        raise ValueError(
            f"{owner}.solve(manifold=None): this solver steps on a manifold, and there is none; pass manifold=, or "
            f"use a solver such as Heun(steps=20)."
        )
    if not problem.single:
        raise ValueError(
            f"{owner}.solve: the state has {len(problem.y0)} parts, and a manifold is that of one tensor; pass one "
            f"tensor of points, on a manifolds.Product for several."
        )
    event = problem.y0[0].shape[1:]
    if event != manifold.event_shape:
        raise ValueError(
            f"{owner}.solve: points of shape {list(event)} are not on {manifold!r}, whose points have shape "
            f"{list(manifold.event_shape)}; pass a state [B, *{list(manifold.event_shape)}]."
        )
