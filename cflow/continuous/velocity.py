"""The marginal velocity and the score at one point, from a network and its path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cflow.fields.contract import Forwarding, as_field, no_closed_form
from cflow.shapes import on_tensors

__all__ = ["Prediction", "Tangent", "VelocityAndScore", "VelocityField"]

HALF = (torch.bfloat16, torch.float16)


def _no_closed_form_on(manifold: Any) -> TypeError:
    return no_closed_form(repr(manifold), "the network's own divergence does not know the manifold")


class Prediction(Forwarding):
    """The output of a flow's network, as a callable ``(t, x, context)``: ``[B, *event]`` or ``[B, 2, *event]``.

    The field is evaluated in the dtype of its parameters, and the result has the dtype of ``x``. States and
    log-densities so stay in float32 or better around a network in bf16.
    """

    event_shape = context_shape = outputs = ...  # set from the flow, since a foreign network may not define them

    def __init__(self, flow):
        self.field, self.path, self.manifold = flow.field, flow.path, flow.manifold
        self.event_shape, self.context_shape = flow.model_shape, flow.context_shape
        self.null_context = flow.null_context
        self.outputs = self.wanted = 1 if self.path is None else self.path.outputs
        parameter = next((each for each in self.field.parameters() if each.is_floating_point()), None)
        self.half = parameter.dtype if parameter is not None and parameter.dtype in HALF else None

    def __eq__(self, other) -> bool:
        """Returns whether the two evaluate the same network in the same way: a flow makes a new one for every solve."""
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.field))

    def __call__(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        second = {} if s is None else {"s": s}  # foreign networks with one time may not accept it
        x = x if self.path is None else self.path.retract(x)
        if self.manifold is None:
            return self._checked(self.field(t, *self._halved(x, context), **second), x)
        # The trace of the ambient Jacobian is then the divergence on the manifold.
        x = self.manifold.project(x)
        answer = self._checked(self.field(t, *self._halved(x, context), **second), x)
        return self.manifold.to_tangent(x if self.wanted == 1 else x.unsqueeze(1), answer)

    def _halved(self, x: Tensor, context):
        """Returns the network's inputs in the dtype of its parameters."""
        if self.half is None:
            return x, context
        halve = lambda each: each.to(self.half) if each.is_floating_point() else each
        return x.to(self.half), on_tensors(halve, context)

    def _checked(self, prediction: Tensor, x: Tensor) -> Tensor:
        """Returns the network's output in the dtype of ``x``."""
        wanted = x.shape if self.wanted == 1 else (x.shape[0], self.wanted, *self.event_shape)
        if prediction.shape != wanted:
            raise ValueError(
                f"the field returned {tuple(prediction.shape)} for x {tuple(x.shape)}; "
                + (
                    "return one value per entry of x."
                    if self.wanted == 1
                    else f"{self.path!r} needs two outputs, {tuple(wanted)}; build it with outputs=2."
                )
            )
        return prediction if prediction.dtype == x.dtype else prediction.to(x.dtype)


class VelocityField(Prediction):
    """The marginal velocity of a field and its path, as a callable ``(t, x, context) -> v``.

    For a field with two times that is called with ``s``, it is the average velocity from ``t`` to ``s``.
    """

    converts = False

    def __init__(self, flow):
        super().__init__(flow)
        self.outputs = 1
        self.converts = self.path is not None and self.path.predict != "velocity"

    @property
    def two_times(self) -> bool:
        return as_field(self.field).two_times and not self.converts

    @property
    def interval(self) -> tuple[float, float]:
        """The times at which both the field and its conversion are well conditioned."""
        (low, high), whole = as_field(self.field).interval, self.path is None
        return (low, high) if whole else (max(low, self.path.interval[0]), min(high, self.path.interval[1]))

    def __call__(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        prediction = super().__call__(t, x, context, s=s)
        return self.path.velocity(prediction, x, t) if self.converts else prediction

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes the velocity and its divergence in closed form (``divergence.Analytic``).

        Raises:
            TypeError: if the field has no closed form, or the velocity is not a weighted sum of the prediction and x.
        """
        if self.manifold is not None:
            raise _no_closed_form_on(self.manifold)
        if self.converts and not self.path.linear:
            raise no_closed_form(repr(self.path), "its velocity is not a weighted sum of one prediction and x")
        prediction, trace = as_field(self.field).value_and_divergence(t, *self._halved(x, context))
        prediction = self._checked(prediction, x)
        if not self.converts:
            return prediction, trace
        size = self.event_shape.numel()
        return self.path.velocity(prediction, x, t), self.path.velocity_trace(trace, size, t)


@dataclass(frozen=True)
class Tangent(Forwarding):
    """A guided velocity on a manifold, as a tangent vector: guidance may mix in others, as those of a weak field.

    Attributes:
        field: the guided velocity.
        manifold: the manifold.
    """

    field: Any
    manifold: Any

    def __call__(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        x = self.manifold.project(x)
        second = {} if s is None else {"s": s}
        return self.manifold.to_tangent(x, self.field(t, x, context, **second))

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Raises: the divergence of a network in closed form does not know the manifold."""
        raise _no_closed_form_on(self.manifold)


class VelocityAndScore:
    """The marginal velocity and score of a flow, as a callable ``(t, x, context) -> (v, s)``.

    Cost: one function evaluation.

    Raises:
        ValueError: on construction, if the flow has no score: without a path; on an affine path with a base that is not
            normal or a coupling that is not independent; on an interpolant that predicts velocities alone, or under
            guidance.
    """

    def __init__(self, flow, method: str, guidance=None):
        path, base = flow.path, flow.base
        if path is None:
            raise ValueError(f"flow.{method}: this flow has no path, so no schedule; build it with path=...")
        last = flow.trained_by[-1] if flow.trained_by else None
        if last is not None and last.teaches in ("density", "steps"):
            instead = "differentiate flow.log_prob" if last.teaches == "density" else "use the flow that it came from"
            raise ValueError(
                f"flow.{method}: the flow was last trained by {last.objective}, so it has no score on {path!r}; train "
                f"it by objectives.FlowMatching, or {instead}."
            )
        if flow.manifold is not None and not flow.manifold.flat:
            raise ValueError(
                f"flow.{method}: there is no score on {path!r}, whose density is known at the base alone; "
                f"differentiate flow.log_prob, and use an ODE solver."
            )
        self.path, self.adds_noise = path, path.adds_noise
        if self.adds_noise:
            if path.outputs != 2:
                raise ValueError(
                    f"flow.{method}: {path!r} learns the velocity alone; train with predict='score', or use an ODE "
                    f"solver."
                )
            if guidance is not None:
                raise ValueError(
                    f"flow.{method}(guidance={guidance!r}): guidance does not apply to the score of {path!r}; use an "
                    f"ODE solver, or omit guidance."
                )
            self.field = Prediction(flow)
            return
        paired = [entry.coupling for entry in flow.trained_by if not entry.independent]
        if paired:
            raise ValueError(
                f"flow.{method}: the score on {path!r} needs couplings.Independent(), and the flow was trained with "
                f"{paired[-1]}; train with it, or by objectives.BridgeMatching."
            )
        if not getattr(base, "is_gaussian", False):
            raise ValueError(
                f"flow.{method}: the score on {path!r} needs bases.Normal, and the base is a {type(base).__name__}; "
                f"use paths.BrownianBridge() for other bases."
            )
        self.field, self.loc, self.scale = flow.velocity_field(guidance), base.loc, base.scale
        self.direct = guidance is None and path.predict != "velocity"
        if self.direct:  # expected ends from the prediction itself: the velocity may vanish
            self.field = Prediction(flow)

    def __call__(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        answer = self.field(t, x, context)
        if self.adds_noise:
            return self.path.velocity(answer, x, t), self.path.score(answer, x, t)
        x1, x0 = self.path.ends(answer, x, t) if self.direct else self.path.velocity_ends(answer, x, t)
        velocity = self.path.combine(x1, x0, t) if self.direct else answer
        return velocity, self.path.score(x0, t, self.loc, self.scale)
