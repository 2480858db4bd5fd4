"""Whether the parts of a continuous flow fit one another."""

from __future__ import annotations

from typing import Any

from torch import Size, nn

from cflow.fields import as_field
from cflow.shapes import shown

__all__ = ["check_parts"]


def check_parts(flow: Any) -> None:
    """Raises unless field, base and path of a continuous flow are of their kind and fit one another."""
    if not isinstance(flow.field, nn.Module) or hasattr(flow.field, "log_prob"):
        raise TypeError(
            f"ContinuousFlow(field={type(flow.field).__name__}, base={type(flow.base).__name__}): the first "
            f"argument is the network, a torch.nn.Module called as field(t, x, context); the second is the base."
        )
    if isinstance(flow.path, type) or not (flow.path is None or callable(getattr(flow.path, "velocity", None))):
        raise TypeError(
            f"ContinuousFlow(path={flow.path!r}): a continuous flow follows a velocity; pass an object such as "
            f"paths.Linear()."
        )
    field = as_field(flow.field)
    event = field.event_shape
    if event is not ... and Size(event) != flow.model_shape:
        raise ValueError(
            f"ContinuousFlow: the field works on events {tuple(event)} and the base draws "
            f"{tuple(flow.model_shape)}; give both the same shape."
        )
    reads = field.context_shape
    if reads not in (..., flow.context_shape):
        raise ValueError(
            f"ContinuousFlow(context_shape={shown(flow.context_shape)}): the field's context_shape is "
            f"{shown(reads)}; pass context_shape={shown(reads)}."
        )
    wanted, outputs = 1 if flow.path is None else flow.path.outputs, field.outputs
    if outputs not in (..., wanted):
        raise ValueError(
            f"ContinuousFlow: the field returns {outputs} outputs and the path ({flow.path!r}) reads "
            f"{wanted}; build the field with outputs={wanted}"
            + (", or choose predict='velocity'." if wanted == 2 else ".")
        )
    affine = flow.path is not None and flow.path.affine
    if affine and flow.path.predict == "score" and not getattr(flow.base, "is_standard", False):
        raise ValueError(
            f"ContinuousFlow(path={flow.path!r}): a score is converted to a velocity for a standard normal base, "
            f"not {type(flow.base).__name__}; use bases.Normal(event_shape), or predict 'velocity', 'x1' or "
            "'noise'."
        )
