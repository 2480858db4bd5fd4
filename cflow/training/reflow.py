"""From a flow and its pairs to a straighter flow, or to one of few steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from cflow import registry
from cflow.objectives import Distillation, Reflow
from cflow.paths import Linear
from cflow.solvers import Euler
from cflow.training.fit import fit
from cflow.training.pairs import Pairs

__all__ = ["distill", "reflow"]


def reflow(
    flow: Any, pairs: Pairs | Sequence[Pairs], *, objective: Reflow | None = None, steps: int = 5000, **options: Any
) -> Any:
    """Trains a straighter flow on the pairs that a flow has joined; it starts from that flow's weights.

    Repeated (pairs of the new flow, and again), every round keeps the ends' distributions, up to its own error, and
    costs that do not grow.

    Args:
        flow: the flow that made the pairs; it stays as it is.
        pairs: what :func:`generate_pairs` wrote; several sets are put together (forward and backward ones, say).
        objective: ``objectives.Reflow()`` unless given.
        steps: optimizer steps.
        options: the rest of :func:`fit`'s: ``batch_size``, ``lr``, ``out``, ``resume``, ``seed`` and so on.

    Returns:
        A :class:`cflow.ContinuousFlow` on ``paths.Linear()`` with the same base, transforms and solver.

    Raises:
        ValueError: where the pairs are not of the flow's shape, and as :func:`fit`.

    Source: Liu, Gong and Liu, Flow Straight and Fast, 2022, arXiv:2209.03003.

    Example:
        >>> import cflow, tempfile
        >>> from cflow import bases, fields, paths, solvers, training
        >>> flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
        >>> pairs = training.generate_pairs(flow, 64, tempfile.mkdtemp(), solver=solvers.Heun(steps=2))
        >>> straight = reflow(flow, pairs, steps=3, batch_size=32)
        >>> straight.sample((5,), solver=solvers.Euler(steps=1)).shape
        torch.Size([5, 2])
    """
    return _learn(flow, pairs, Reflow() if objective is None else objective, steps, options, "reflow")


def distill(
    flow: Any,
    pairs: Pairs | Sequence[Pairs] | None = None,
    evaluations: int = 1,
    *,
    objective: Distillation | None = None,
    steps: int = 5000,
    **options: Any,
) -> Any:
    """Trains a flow to reach the ends of its pairs in so many Euler steps; it starts from the flow's weights.

    Best after :func:`reflow`, on the straight flow's own pairs.

    Args:
        flow: the flow that made the pairs; it stays as it is.
        pairs: see :func:`reflow`; None where the objective has a teacher that makes them online.
        evaluations: how many steps the new flow is sampled with.
        objective: ``objectives.Distillation(evaluations)`` unless given.
        steps: optimizer steps.
        options: the rest of :func:`fit`'s; ``context``, contexts ``[N, *context_shape]`` to draw with, where there is a
            teacher and the flow is conditional.

    Returns:
        A :class:`cflow.ContinuousFlow` whose solver is ``Euler(steps=evaluations)``. Its samples have no density: it is
        no longer the flow of its velocity.

    Raises:
        ValueError: where pairs and teacher are both missing, or both given; and as :func:`fit`.

    Source: Liu, Gong and Liu, Flow Straight and Fast, 2022, arXiv:2209.03003, section 2.3.

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, paths, solvers
        >>> from cflow.objectives import Distillation
        >>> flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
        >>> online = Distillation(2, teacher=flow, solver=solvers.Heun(steps=4))
        >>> distill(flow, objective=online, steps=3, batch_size=32).solver
        Euler(steps=2)
    """
    objective = Distillation(evaluations) if objective is None else objective
    if (pairs is None) == (objective.teacher is None):
        raise ValueError(
            f"distill(pairs={'None' if pairs is None else '...'}): a sample to reach comes from pairs or from a "
            f"teacher; pass pairs, or objective=Distillation({evaluations}, teacher=flow), and not both."
        )
    student = _learn(flow, pairs, objective, steps, options, "distill")
    student.solver = Euler(steps=objective.evaluations)
    return student


def _learn(flow, pairs, objective, steps: int, options: dict, name: str):
    student = copy.deepcopy(flow)
    student.requires_grad_(True)
    if not isinstance(student.path, Linear) or student.path.predict != "velocity":
        if student.path is None:
            student = registry.replace(student, path=Linear())
        else:
            student = student.with_path(Linear())
    data = None
    if pairs is not None:
        data = _joined([pairs] if isinstance(pairs, Pairs) else list(pairs), student, name)
    elif "context" in options:
        data = options.pop("context")
    fit(student, objective, data, steps=steps, **options)
    return student.eval()


def _joined(sets: list[Pairs], flow, name: str):
    """Puts sets of pairs together, as data of ``fit``."""
    for each in sets:
        if each.x.shape[2:] != flow.event_shape or (each.context is None) != (flow.context_shape is None):
            raise ValueError(
                f"{name}(pairs={each!r}): the flow's events are {tuple(flow.event_shape)} and its context "
                f"{flow.context_shape}; pass pairs that this flow, or one of the same shapes, has made."
            )
    x = torch.cat([each.x for each in sets])
    return x if sets[0].context is None else (x, torch.cat([each.context for each in sets]))
