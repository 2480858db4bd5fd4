"""Reflow and distillation: training on pairs that a flow has generated."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from cflow.arguments import check_integer
from cflow.couplings import Paired
from cflow.objectives.matching.flow_matching import MatchingBatch
from cflow.objectives.matching.rectified_flow import RectifiedFlow
from cflow.registry import register
from cflow.times import Uniform

__all__ = ["Distillation", "Reflow"]


@register("objectives.Reflow")
class Reflow(RectifiedFlow):
    r"""Trains a flow on the straight lines between pairs that another flow has generated.

    .. math:: L = \ell\bigl(v_\theta(t, (1 - t) x_0 + t x_1),\; x_1 - x_0\bigr), \qquad (x_0, x_1) \text{ of one pair}

    The new flow has the same marginals at both ends, and trajectories that cross less: transport costs do not increase,
    and few steps are sufficient. Data are :class:`cflow.training.Pairs` (``[B, 2, *event]`` in model space: transforms
    are not applied again).

    Args:
        times: the distribution of the training times. Default: None, ``times.Uniform()``. ``times.Ends()`` prefers both
            ends, where velocities of a second round are hardest to learn.
        error, weight, condition_dropout: see :class:`RectifiedFlow`.

    Cost: one function evaluation.

    Raises:
        ValueError: for a flow whose path is not ``paths.Linear()`` with predictions of velocities or of ``x1``, and for
            data that are not pairs.

    Source: Liu, Gong and Liu, Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow,
    2022, arXiv:2209.03003; times after Lee et al., Improving the Training of Rectified Flows, 2024, arXiv:2405.20320.

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, paths
        >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
        >>> Reflow()(flow, torch.randn(16, 2, 2)).shape
        torch.Size([16])
    """

    in_model_space = True

    def __init__(self, times=None, error=None, weight=None, condition_dropout: float = 0.0):
        super().__init__(Uniform() if times is None else times, error, weight, condition_dropout)
        self.coupling = Paired()


@register("objectives.Distillation")
class Distillation(Reflow):
    r"""Trains a flow to reach the end of a pair from every node of a short grid in one step.

    .. math:: L = \ell\bigl(x_t + (1 - t)\, v_\theta(t, x_t),\; x_1\bigr) / (1 - t)^2,
        \qquad t \in \bigl\lbrace 0, \tfrac1k, \dots, \tfrac{k-1}k \bigr\rbrace

    Sample with exactly ``solvers.Euler(steps=evaluations)``: the steps do not follow a velocity, and the flow has no
    density. The pairs are the data, or a teacher generates new ones in every training step.

    Args:
        evaluations: k, the number of steps for sampling.
        error, condition_dropout: see :class:`Reflow`.
        teacher: a flow; a copy of it generates new pairs in every training step, and the data are then the contexts
            alone, or None. Default: None, the data are pairs.
        solver: the teacher's solver. Default: None, its own.
        guidance: the teacher's guidance. Default: None.

    Cost: one function evaluation; with a teacher, also one solve of it.

    Raises:
        TypeError: if the teacher is not a flow with a velocity.
        ValueError: if ``evaluations`` is not a positive integer, a solver is given without a teacher, the teacher has
            other shapes, and as :class:`Reflow`.

    Source: Liu, Gong and Liu, 2022, arXiv:2209.03003, section 2.3 (distillation of k-rectified flows).

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, paths
        >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
        >>> Distillation(evaluations=1)(flow, torch.randn(16, 2, 2)).shape
        torch.Size([16])
    """

    teaches = "steps"

    def __init__(
        self, evaluations: int = 1, error=None, condition_dropout: float = 0.0, *, teacher: nn.Module | None = None,
        solver=None, guidance=None,
    ):  # fmt: skip
        super().__init__(None, error, None, condition_dropout)
        why = "a sample takes at least one evaluation; pass 1."
        check_integer("Distillation", "evaluations", evaluations, 1, why)
        if teacher is not None and not hasattr(teacher, "transport"):
            raise TypeError(
                f"Distillation(teacher={type(teacher).__name__}): a teacher is a flow; pass the whole ContinuousFlow, "
                f"not its field."
            )
        if teacher is None and (solver is not None or guidance is not None):
            raise ValueError(
                "Distillation(solver=..., guidance=...): both are options of the teacher; pass teacher=flow too."
            )
        self.evaluations, self.solver, self.guidance = evaluations, solver, guidance
        # A copy, since the given flow may be trained further and must not be frozen.
        self.teacher = None if teacher is None else copy.deepcopy(teacher).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Distillation:
        """Sets the training ``mode`` of the objective; a teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @property
    def samples_per_item(self) -> int:
        return 2 if self.teacher is None else 0

    def prepare(self, base: nn.Module, x: Tensor, context=None, generator=None) -> MatchingBatch:
        if self.teacher is None:
            batch = super().prepare(base, x, context, generator)
        else:
            x0 = base.sample((len(x),), generator=generator)
            drop = self.draw_dropped(len(x), generator, x0.device)
            batch = MatchingBatch(x0, x0, x0.new_empty(len(x)), context, drop)
        index = torch.randint(self.evaluations, (len(x),), generator=generator, device=batch.x0.device)
        batch.t = (index / self.evaluations).to(batch.x0.dtype)
        return batch

    def loss(self, flow: Any, batch: MatchingBatch) -> Tensor:
        if self.teacher is not None:
            shapes = [(each.model_shape, each.context_shape) for each in (flow, self.teacher)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"Distillation(teacher=...): the flow has event and context shapes {shapes[0]}, the teacher "
                    f"{shapes[1]}; pass a teacher with the same shapes."
                )
            # Without autocast: rounding above the solver's tolerance would look like error and cost many steps.
            with torch.no_grad(), torch.autocast(batch.x0.device.type, enabled=False):
                solution = self.teacher.transport(
                    batch.x0, 0.0, 1.0, batch.context, solver=self.solver, guidance=self.guidance
                )
            batch = MatchingBatch(batch.x0, solution.require_success().y, batch.t, batch.context, batch.drop)
        return super().loss(flow, batch)
