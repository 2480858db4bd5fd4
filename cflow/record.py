"""The record of a flow's training: training adds entries, and methods that depend on the training read them."""

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
    """Records what a flow learned in one training. ``flow.trained_by`` lists the entries, oldest first.

    ``training.fit`` adds an entry when it starts; in a custom training loop, call ``flow.record(objective)``. A flow
    without entries has an unknown training, so no method is refused because of it.

    Args:
        objective: the name of the objective's class.
        teaches: ``"velocity"``, the marginal velocity of the flow's path; ``"average velocity"``, the velocity and its
            averages over whole steps, which ``solvers.FlowMap`` needs; ``"density"``, a velocity or bijection from base
            to data without a given path (maximum likelihood, variational inference); ``"steps"``, the steps of a
            short grid, which have neither a velocity nor a density.
        coupling: the name of the coupling's class; None if base samples were not paired with data.
        independent: whether base and data samples were drawn independently of each other, so that the score follows
            from the velocity.
        condition_dropout: the fraction of items that were trained without their condition.
        both_ways: whether average velocities from the data to the base were taught too.

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
    both_ways: bool = False


def records_of(flow: nn.Module) -> dict[str, tuple[TrainingEntry, ...]]:
    """Returns the records of a flow and of the flows inside it, by module name (``""`` for the flow itself)."""
    return {name: part.trained_by for name, part in flow.named_modules() if hasattr(part, "trained_by")}


def recall(flow: nn.Module, records: dict[str, tuple[TrainingEntry, ...]]) -> None:
    """Sets the records that :func:`records_of` returned, in a flow and in the flows inside it."""
    for name, entries in records.items():
        flow.get_submodule(name).trained_by = entries
