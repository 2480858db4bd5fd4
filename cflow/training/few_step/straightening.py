"""From a flow and its pairs to a straighter flow, or to one of few steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from cflow import registry
from cflow.objectives import Distillation, Reflow
from cflow.paths import Linear
from cflow.solvers import Dopri5, Euler
from cflow.training.few_step.pairs import Pairs
from cflow.training.fitting import fit

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
        A :class:`cflow.ContinuousFlow` on ``paths.Linear()`` with the same base, transforms and solver (in the place of
        ``FlowMap``, whose whole steps are not what is trained, ``Dopri5``). It predicts what the flow does, velocities
        or ``x1``.

    Raises:
        TypeError: for pairs that are no :class:`Pairs`, or another objective.
        ValueError: for a flow that predicts noise or a score, where the pairs are not of the flow's shape, and as
            :func:`fit`.

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
    objective = Reflow() if objective is None else objective
    if not isinstance(objective, Reflow) or isinstance(objective, Distillation):
        raise TypeError(
            f"reflow(objective={type(objective).__name__}(...)): straight lines are learned by objectives.Reflow; for "
            f"steps that lead to the end, call training.distill."
        )
    return _learn(flow, pairs, objective, steps, options, "reflow")


def distill(
    flow: Any,
    pairs: Pairs | Sequence[Pairs] | None = None,
    evaluations: int | None = None,
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
        evaluations: how many steps the new flow is sampled with; the objective's, or 1, unless given.
        objective: ``objectives.Distillation(evaluations)`` unless given.
        steps: optimizer steps.
        options: the rest of :func:`fit`'s; ``context``, contexts ``[N, *context_shape]`` to draw with, where there is a
            teacher and the flow is conditional.

    Returns:
        A :class:`cflow.ContinuousFlow` whose solver is ``Euler(steps=evaluations)``. Its samples have no density: it is
        no longer the flow of its velocity.

    Raises:
        TypeError: for pairs that are no :class:`Pairs`, or another objective.
        ValueError: where pairs and teacher are both missing, or both given, or the objective is for another number of
            evaluations; and as :func:`reflow`.

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
    objective = Distillation(1 if evaluations is None else evaluations) if objective is None else objective
    if not isinstance(objective, Distillation):
        raise TypeError(
            f"distill(objective={type(objective).__name__}(...)): steps are learned by objectives.Distillation; for "
            f"straight lines, call training.reflow."
        )
    if evaluations not in (None, objective.evaluations):
        raise ValueError(
            f"distill(evaluations={evaluations}, objective=Distillation({objective.evaluations})): the two disagree on "
            f"the number of steps; leave one out."
        )
    if (pairs is None) == (objective.teacher is None):
        raise ValueError(
            f"distill(pairs={'None' if pairs is None else '...'}): a sample to reach comes from pairs or from a "
            f"teacher; pass pairs, or objective=Distillation({objective.evaluations}, teacher=flow), and not both."
        )
    student = _learn(flow, pairs, objective, steps, options, "distill")
    student.solver = Euler(steps=objective.evaluations)
    return student


def _learn(flow, pairs, objective, steps: int, options: dict, name: str):
    predicts = "velocity" if flow.path is None else flow.path.predict
    if predicts not in ("velocity", "x1") or (flow.path is not None and not flow.path.affine):
        raise ValueError(
            f"{name}: the flow is on {flow.path!r}, and few steps start at t = 0, where its prediction gives no "
            f"velocity; train a new flow of velocities on the pairs: training.fit(new, objectives."
            f"{type(objective).__name__}(), pairs.x), or (pairs.x, pairs.context)."
        )
    student = copy.deepcopy(flow)
    if student.path is None:
        student = registry.replace(student, path=Linear())
    elif not student.path.straight:
        student = student.with_path(Linear(predicts))
    if student.solver.takes_whole_steps:
        student.solver = Dopri5(rtol=1e-5, atol=1e-6)
    data = None
    if pairs is not None:
        data = _joined([pairs] if isinstance(pairs, Pairs | torch.Tensor) else list(pairs), student, name)
    elif "context" in options:
        data = options.pop("context")
    fit(student, objective, data, steps=steps, **options)
    return student.eval()


def _joined(sets: list[Pairs], flow, name: str):
    """Puts sets of pairs together, as data of ``fit``."""
    for each in sets:
        if not isinstance(each, Pairs):
            raise TypeError(
                f"{name}(pairs={type(each).__name__}): pairs are read from their folder; pass what "
                f"training.generate_pairs returned, training.Pairs(folder), or a list of these."
            )
        if each.x.shape[2:] != flow.model_shape or (each.context is None) != (flow.context_shape is None):
            raise ValueError(
                f"{name}(pairs={each!r}): the flow's events are {tuple(flow.model_shape)} inside and its context "
                f"{flow.context_shape}; pass pairs that this flow, or one of the same shapes, has made."
            )
    x = torch.cat([each.x for each in sets])
    return x if sets[0].context is None else (x, torch.cat([each.context for each in sets]))
