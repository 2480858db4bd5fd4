"""What a flow was trained with: training adds to it, and whatever depends on how a flow was trained reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from cflow.registry import register

__all__ = ["Teaches", "TrainingEntry", "recall", "records_of"]

Teaches = Literal["velocity", "average velocity", "density", "steps"]


@register("record.TrainingEntry")
@dataclass(frozen=True)
class TrainingEntry:
    """Records what one training taught a flow. ``flow.trained_by`` lists these, oldest first.

    ``training.fit`` adds one when it begins; in a training loop of your own, call ``flow.record(objective)``. Without
    entries nothing is known of the training, and nothing is refused for it.

    Args:
        objective: the name of the objective's class.
        teaches: ``"velocity"``, the marginal velocity of the flow's path; ``"average velocity"``, that and the averages
            over whole steps which ``solvers.FlowMap`` takes; ``"density"``, a velocity or bijection that carries the
            base to the data along no given path (maximum likelihood, variational inference); ``"steps"``, the steps of
            a short grid, which follow no velocity and have no density.
        coupling: the name of the coupling's class; None where no base samples were paired with data.
        independent: whether base and data samples were drawn independently of each other, so that the score follows
            from the velocity.
        condition_dropout: the share of items that were trained without their condition.

    Example:
        >>> import cflow
        >>> from cflow import bases, couplings, fields, objectives, paths
        >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
        >>> flow.record(objectives.FlowMatching(couplings.OptimalTransport()))
        >>> flow.trained_by[-1].coupling, flow.trained_by[-1].independent
        ('couplings.OptimalTransport', False)
    """

    objective: str
    teaches: Teaches = "velocity"
    coupling: str | None = None
    independent: bool = True
    condition_dropout: float = 0.0


def records_of(flow: nn.Module) -> dict[str, tuple[TrainingEntry, ...]]:
    """Lists the records of a flow and of the flows inside it, by the names of the modules (its own is ``""``)."""
    return {name: part.trained_by for name, part in flow.named_modules() if hasattr(part, "trained_by")}


def recall(flow: nn.Module, records: dict[str, tuple[TrainingEntry, ...]]) -> None:
    """Sets the records that :func:`records_of` listed, in a flow and in the flows inside it."""
    for name, entries in records.items():
        flow.get_submodule(name).trained_by = entries
