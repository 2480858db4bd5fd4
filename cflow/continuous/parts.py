"""Checks that the parts of a continuous flow fit together."""

from __future__ import annotations

from typing import Any

from torch import Size, nn

from cflow.fields import as_field
from cflow.shapes import shown

__all__ = ["check_parts"]


def check_parts(flow: Any) -> None:
    """Raises if field, base or path of a continuous flow has the wrong type, or they do not fit together."""
    if not isinstance(flow.field, nn.Module) or hasattr(flow.field, "log_prob"):
        raise TypeError(
            f"ContinuousFlow(field={type(flow.field).__name__}, base={type(flow.base).__name__}): pass first the "
            f"network, called as field(t, x, context), then the base."
        )
    if isinstance(flow.path, type) or not (flow.path is None or callable(getattr(flow.path, "velocity", None))):
        raise TypeError(
            f"ContinuousFlow(path={flow.path!r}): not a path with a velocity; pass an object such as paths.Linear()."
        )
    _check_manifold(flow)
    field = as_field(flow.field)
    event = field.event_shape
    if event is not ... and Size(event) != flow.model_shape:
        raise ValueError(
            f"ContinuousFlow: the field has events {tuple(event)} and the base {tuple(flow.model_shape)}; give both "
            f"the same shape."
        )
    reads = field.context_shape
    if reads not in (..., flow.context_shape):
        raise ValueError(
            f"ContinuousFlow(context_shape={shown(flow.context_shape)}): the field has another one; pass "
            f"context_shape={shown(reads)}."
        )
    wanted, outputs = 1 if flow.path is None else flow.path.outputs, field.outputs
    if outputs not in (..., wanted):
        raise ValueError(
            f"ContinuousFlow: the field returns {outputs} outputs and {flow.path!r} needs {wanted}; build the field "
            f"with outputs={wanted}" + (", or choose predict='velocity'." if wanted == 2 else ".")
        )
    if flow.path is not None:
        flow.path.check_base(flow.base)


def _check_manifold(flow: Any) -> None:
    """Raises if the manifold is not one, has points of another shape, or differs from that of the base."""
    manifold, base = flow.manifold, flow.base
    own, name = getattr(base, "manifold", None), type(base).__name__
    is_on = getattr(base, "is_on", lambda manifold: True)
    if manifold is None:
        if not is_on(None):
            raise ValueError(
                f"ContinuousFlow(base={name}, manifold=None): its parts are on manifolds; pass "
                f"manifold=manifolds.Product({{...}}) with the manifolds of all parts."
            )
        return
    if isinstance(manifold, type) or not callable(getattr(manifold, "to_tangent", None)):
        raise TypeError(
            f"ContinuousFlow(manifold={manifold!r}): not a manifold; pass an object such as manifolds.Sphere(2)."
        )
    if Size(manifold.event_shape) != flow.model_shape:
        raise ValueError(
            f"ContinuousFlow(manifold={manifold!r}): its points have shape {tuple(manifold.event_shape)}, and the "
            f"base has events {tuple(flow.model_shape)}; give both the same shape."
        )
    if own is not None and own is not manifold and own != manifold:
        raise ValueError(
            f"ContinuousFlow(manifold={manifold!r}): the base lies on {own!r}; omit manifold, or choose another base."
        )
    lengths = [getattr(each, "period", None) for each in (flow.field, manifold)]
    if None not in lengths and lengths[0] != lengths[1]:
        raise ValueError(
            f"ContinuousFlow(manifold={manifold!r}): the field has the period {lengths[0]:.6g} and would jump where an "
            f"angle turns over; build it with period={lengths[1]:.6g}."
        )
    if not is_on(manifold):
        raise ValueError(
            f"ContinuousFlow(base={name}, manifold={manifold!r}): "
            + (
                "the density of the base is not with respect to the volume of the manifold; use manifolds.Uniform, "
                "WrappedNormal, or bases.Empirical."
                if getattr(base, "has_density", True)
                else "the points of the base are not on the manifold; project them by manifold.project(x)."
            )
        )
