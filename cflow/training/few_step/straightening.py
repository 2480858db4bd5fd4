"""Reflow and distillation: a straighter flow, or one of few steps, from the pairs of a flow."""

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
    """Trains a straighter flow on pairs of a flow, from the weights of this flow.

    It can be repeated with pairs of the new flow. Every round keeps the distributions at both ends, up to its own
    error, and does not increase transport costs.

    Args:
        flow: the flow that made the pairs; it does not change.
        pairs: the pairs of :func:`generate_pairs`; several sets are joined (such as pairs from noise and from data).
        objective: the objective. Default: ``objectives.Reflow()``.
        steps: the number of optimizer steps.
        options: more arguments of :func:`fit`: ``batch_size``, ``lr``, ``out``, ``resume``, ``seed`` and so on.

    Returns:
        A :class:`cflow.ContinuousFlow` on ``paths.Linear()`` with the same base, transforms, prediction (velocity or
        ``x1``) and solver. ``FlowMap``, which does not fit this training, is replaced by ``Dopri5``.

    Raises:
        TypeError: for pairs that are not :class:`Pairs`, or another objective.
        ValueError: for a flow that predicts noise or a score, if the pairs do not have the flow's shape, and as
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
            f"reflow(objective={type(objective).__name__}(...)): pass an objectives.Reflow; for few steps, call "
            f"training.distill."
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
    """Trains a flow to reach the ends of its pairs in few Euler steps, from the weights of this flow.

    It works best after :func:`reflow`, on pairs of the straight flow.

    Args:
        flow: the flow that made the pairs; it does not change.
        pairs: as in :func:`reflow`; None if the objective has a teacher that makes them during training.
        evaluations: the number of Euler steps of the new flow. Default: that of the objective, or 1.
        objective: the objective. Default: ``objectives.Distillation(evaluations)``.
        steps: the number of optimizer steps.
        options: more arguments of :func:`fit`, and for a conditional flow with a teacher ``context``, the contexts
            ``[N, *context_shape]`` for its draws.

    Returns:
        A :class:`cflow.ContinuousFlow` with the solver ``Euler(steps=evaluations)``. Its samples have no density, since
        they no longer follow its velocity exactly.

    Raises:
        TypeError: for pairs that are not :class:`Pairs`, or another objective.
        ValueError: if there are neither pairs nor a teacher, or both, or the objective has another number of
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
            f"distill(objective={type(objective).__name__}(...)): pass an objectives.Distillation; for straight paths, "
            f"call training.reflow."
        )
    if evaluations not in (None, objective.evaluations):
        raise ValueError(
            f"distill(evaluations={evaluations}, objective=Distillation({objective.evaluations})): these differ; omit "
            f"evaluations."
        )
    if (pairs is None) == (objective.teacher is None):
        raise ValueError(
            f"distill(pairs={'None' if pairs is None else '...'}): pass either pairs or "
            f"objective=Distillation({objective.evaluations}, teacher=flow), not both."
        )
    student = _learn(flow, pairs, objective, steps, options, "distill")
    student.solver = Euler(steps=objective.evaluations)
    return student


def _learn(flow, pairs, objective, steps: int, options: dict, name: str):
    predicts = "velocity" if flow.path is None else flow.path.predict
    if predicts not in ("velocity", "x1") or (flow.path is not None and not flow.path.affine):
        raise ValueError(
            f"{name}: the flow is on {flow.path!r}, and only affine paths with velocities or x1 can continue; train a "
            f"new flow of velocities on the pairs: training.fit(new, objectives.{type(objective).__name__}(), pairs.x)."
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
    """Joins sets of pairs to data for ``fit``."""
    for each in sets:
        if not isinstance(each, Pairs):
            raise TypeError(
                f"{name}(pairs={type(each).__name__}): pass the Pairs of training.generate_pairs, "
                f"training.Pairs(folder), or a list of these."
            )
        if each.x.shape[2:] != flow.model_shape or (each.context is None) != (flow.context_shape is None):
            raise ValueError(
                f"{name}(pairs={each!r}): the flow's events are {tuple(flow.model_shape)} in model space and its "
                f"context_shape is {flow.context_shape}; pass pairs of these shapes."
            )
    x = torch.cat([each.x for each in sets])
    return x if sets[0].context is None else (x, torch.cat([each.context for each in sets]))
