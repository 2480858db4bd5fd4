"""Guidance: changes a velocity field so that samples follow the condition more closely, or have better quality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cflow.fields.contract import Forwarding, as_field, no_closed_form
from cflow.fields.embedding import shared_time
from cflow.fields.wrapper import FieldWrapper
from cflow.registry import register
from cflow.shapes import expand_like, on_tensors, pattern, rows

__all__ = ["AutoGuidance", "CFGZeroStar", "ClassifierFree", "Guidance", "Guided"]


class Guidance:
    """The base class of guidances: called with a field, a guidance returns the guided field.

    A subclass implements ``__call__(field) -> Guided``, ``velocity(field, t, x, context) -> v``, and
    ``value_and_divergence`` with the same arguments if its divergence follows from that of the field.

    Attributes:
        reads_time: whether the result depends on the time also for a field that reads no time.

    Example:
        >>> class Faster(Guidance):
        ...     def __call__(self, field):
        ...         return Guided(self, field)
        ...
        ...     def velocity(self, field, t, x, context):
        ...         return 2 * field(t, x, context)
        >>> from cflow.fields import MLP
        >>> field, t, x = MLP(2), torch.tensor(0.5), torch.ones(3, 2)
        >>> torch.equal(Faster()(field)(t, x), 2 * field(t, x))
        True
    """

    scales_rates: ClassVar[bool] = False
    """Whether the guidance changes how fast the tokens of a token flow jump, not only to which tokens."""

    reads_time = True

    def value_and_divergence(self, field, t, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Computes the velocity of ``field`` under the guidance at ``(t, x)`` given ``context``, and its divergence.

        Raises:
            TypeError: unless a subclass overrides the method: only weighted sums of velocities have a closed form.
        """
        raise no_closed_form(type(self).__name__, "it is not a weighted sum of velocities with fixed weights")


class Guided(FieldWrapper):
    """A velocity field under guidance: the result of ``guidance(field)``.

    It is called like the field, ``(t, x, context=None, *, s=None)``. Shapes, ``null_context`` and the rest of a field's
    contract are those of the field.

    The average velocities of a field with two times are combined like velocities. For long steps this is an
    approximation, since the two belong to different trajectories (``objectives.MeanFlow(guidance=...)`` learns the
    guided average velocities instead).

    Args:
        guidance: the guidance, such as ``ClassifierFree(2.0)``.
        field: the velocity field.

    Example:
        >>> from cflow.fields import MLP
        >>> guided = ClassifierFree(2.0)(MLP(2, classes=3))
        >>> guided.guidance, guided.classes
        (ClassifierFree(scale=2.0, interval=(0.0, 1.0)), 3)
    """

    def __init__(self, guidance: Guidance, field):
        super().__init__(field)
        self.guidance = guidance

    @property
    def reads_time(self) -> bool:
        """Whether the guided field depends on the time."""
        return as_field(self.field).reads_time or self.guidance.reads_time

    def __eq__(self, other) -> bool:
        """Returns whether the two guide the same field in the same way: a flow makes a new one for every solve."""
        return type(self) is type(other) and self.guidance == other.guidance and self.field == other.field

    def __hash__(self) -> int:
        return hash((type(self), self.field))

    def forward(
        self, t: Tensor | float, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None
    ) -> Tensor:
        """Computes the guided velocity at ``(t, x)`` given ``context``; with ``s``, the average velocity to ``s``."""
        return self.guidance.velocity(self.field if s is None else _Until(self.field, s), t, x, context)

    def value_and_divergence(self, t, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes the guided velocity at ``(t, x)`` given ``context``, and its divergence in closed form.

        Raises:
            TypeError: for a guidance that is not a weighted sum of velocities, and for a field without a closed form.
        """
        return self.guidance.value_and_divergence(self.field, t, x, context)


class _Until(Forwarding):
    """A field with two times, the second one fixed: called like a field with one time, also with the batch doubled."""

    two_times = False

    def __init__(self, field, s: Tensor):
        self.field, self.s = field, s

    def __call__(self, t: Tensor | float, x: Tensor, context: Tensor | None = None) -> Tensor:
        s = self.s.repeat(len(x) // len(self.s)) if self.s.dim() and len(self.s) else self.s
        return self.field(t, x, context, s=s)


def _conditional(guidance, field) -> Guided:
    """Wraps a conditional field; raises for an unconditional one."""
    if as_field(field).context_shape is None:
        raise ValueError(
            f"{type(guidance).__name__}(field): this field is unconditional; use a field with a context, or "
            f"AutoGuidance."
        )
    return Guided(guidance, field)


def _with_and_without(guidance, field, t, x: Tensor, context: Tensor | None) -> tuple:
    """Returns the inputs ``(t, x, context)`` with twice the batch: with the condition, then without it."""
    context = _present(guidance, field, context)
    if isinstance(t, Tensor) and t.dim():
        shared = shared_time(t)
        t = shared.expand(2 * x.shape[0]) if shared.shape[0] == 1 else torch.cat([t, t])
    null = as_field(field).null_context(context)
    return t, torch.cat([x, x]), on_tensors(lambda *pair: torch.cat(pair), context, null)


def _present(guidance, field, context: Tensor | None) -> Tensor:
    if context is None:
        shape = as_field(field).context_shape
        raise ValueError(
            f"{type(guidance).__name__}: called without a context; pass one of shape {pattern(shape, 'B')}."
        )
    return context


def _inside(t: Tensor | float, low: float, high: float, x: Tensor) -> bool | Tensor:
    """Returns which samples have a time in ``[low, high]``: a mask ``[B, 1, ...]`` that broadcasts against ``x``.

    If all samples agree and the host can know it without waiting for a device, it returns a bool.
    """
    if not isinstance(t, Tensor):
        return low <= t <= high
    inside = (t >= low) & (t <= high)
    if t.device.type == "cpu" and not torch.compiler.is_compiling():
        if inside.all():
            return True
        if not inside.any():
            return False
    return inside.reshape(-1, *[1] * (x.dim() - 1))


@register("guidance.ClassifierFree")
@dataclass(frozen=True)
class ClassifierFree(Guidance):
    r"""Extrapolates from the velocity without the condition to the velocity with it.

    .. math:: v = u + w (c - u), \qquad c = v(t, x, \text{context}), \quad u = v(t, x, \varnothing)

    A scale of 0 omits the condition, 1 follows it as learned, and more than 1 exaggerates it. Outside ``interval`` the
    velocity with the condition is used unchanged.

    Args:
        scale: the weight ``w``.
        interval: the first and the last time at which the guidance acts (0 is noise, 1 is data).

    Shapes: as the field's. Cost: one function evaluation with twice the batch. It has the normal batch if the scale is
    0 or 1, and outside the interval if the time is a number or a tensor on the CPU.

    Raises:
        ValueError: if the scale is not finite, the interval is empty, the field is unconditional or the context is
            missing.

    Source: Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598 (there the weight is
    ``w - 1``); Kynkäänniemi et al., Applying Guidance in a Limited Interval Improves Sample and Distribution
    Quality in Diffusion Models, 2024, arXiv:2404.07724 (there in noise levels; here in times, 1 is data).

    Example:
        >>> from cflow.fields import MLP
        >>> field = MLP(2, classes=3)
        >>> guided = ClassifierFree(2.0, interval=(0.1, 0.9))(field)
        >>> guided(torch.tensor(0.5), torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])).shape
        torch.Size([4, 2])
    """

    scale: float
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        object.__setattr__(self, "interval", tuple(self.interval))
        _check_scale(self)
        if len(self.interval) != 2 or not self.interval[0] < self.interval[1]:
            raise ValueError(
                f"{type(self).__name__}(interval={self.interval}): pass two increasing times, such as (0.1, 0.9)."
            )

    @property
    def reads_time(self) -> bool:
        """Whether the guidance acts only on a part of the times."""
        return self.interval[0] > 0 or self.interval[1] < 1

    def __call__(self, field) -> Guided:
        """Returns ``field`` under this guidance."""
        return _conditional(self, field)

    def velocity(self, field, t: Tensor | float, x: Tensor, context: Tensor | None) -> Tensor:
        """Computes the guided velocity of ``field`` at ``(t, x)`` given ``context``."""
        return self._mix(lambda *inputs: (field(*inputs),), field, t, x, context)[0]

    def value_and_divergence(self, field, t, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Computes the guided velocity of ``field`` at ``(t, x)`` given ``context``, and its divergence."""
        return self._mix(as_field(field).value_and_divergence, field, t, x, context)

    def _mix(self, ask: Callable, field, t, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """Combines the results of ``ask(t, x, context)`` with and without the condition."""
        context = _present(self, field, context)
        low, high = self.interval
        everywhere = low <= 0.0 and high >= 1.0
        inside = everywhere or (self.scale != 1 and _inside(t, low, high, x))
        if self.scale == 1 or inside is False:
            return ask(t, x, context)
        if self.scale == 0 and inside is True:
            return ask(t, x, as_field(field).null_context(context))
        mixed = []
        for both in ask(*_with_and_without(self, field, t, x, context)):
            c, u = both.unflatten(0, (2, x.shape[0])).unbind(0)
            guided = torch.lerp(u, c, self.scale)
            mixed.append(guided if inside is True else torch.where(expand_like(inside.flatten(), c), guided, c))
        return tuple(mixed)


@register("guidance.CFGZeroStar")
@dataclass(frozen=True)
class CFGZeroStar(Guidance):
    r"""Extrapolates from the best multiple of the velocity without the condition; the velocity is zero at first.

    .. math:: v = s u + w (c - s u), \qquad s = \frac{\langle c, u \rangle}{\lVert u \rVert^2},
        \qquad v = 0 \text{ for } t < t_0

    The multiple ``s``, one per sample, corrects an undertrained ``u``. Near the noise the learned velocity is worse
    than none, so the sample does not move there. The velocity is discontinuous at ``zero_until``: prefer solvers with
    fixed steps, and let a step end there.

    Args:
        scale: the weight ``w``; 1 is the velocity with the condition.
        zero_until: the time ``t_0`` before which the velocity is zero; 0 for never.

    Shapes: as the field's. Cost: one function evaluation with twice the batch, or with the normal batch for scale 1;
    none before ``zero_until`` if the time is a number or a tensor on the CPU.

    Raises:
        ValueError: if the scale is not finite, ``zero_until`` is outside [0, 1) or is used with whole steps
            (``solvers.FlowMap``), the field is unconditional or the context is missing.

    Source: Fan et al., CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models, 2025, arXiv:2503.18886,
    sections 4.1 and 4.2 (there the first 4 percent of the steps are zero; here a time, the same on uniform steps).

    Example:
        >>> from cflow.fields import MLP
        >>> guided = CFGZeroStar(2.0)(MLP(2, classes=3))
        >>> guided(0.01, torch.ones(1, 2), torch.tensor([0]))
        tensor([[0., 0.]])
    """

    scale: float
    zero_until: float = 0.04

    def __post_init__(self):
        _check_scale(self)
        if not 0 <= self.zero_until < 1:
            raise ValueError(f"CFGZeroStar(zero_until={self.zero_until}): the time is in [0, 1); pass 0.04.")

    def __call__(self, field) -> Guided:
        """Returns ``field`` under this guidance."""
        if hasattr(field, "states"):
            raise TypeError("CFGZeroStar(field): this guides velocities; use guidance.ClassifierFree for tokens.")
        return _conditional(self, field)

    def velocity(self, field, t: Tensor | float, x: Tensor, context: Tensor | None) -> Tensor:
        """Computes the guided velocity of ``field`` at ``(t, x)`` given ``context``."""
        if self.zero_until and isinstance(field, _Until):
            raise ValueError(
                f"CFGZeroStar(zero_until={self.zero_until}): a whole step from noise would not move samples; pass "
                f"zero_until=0 with solvers.FlowMap."
            )
        context = _present(self, field, context)
        moving = True if self.zero_until == 0 else _inside(t, self.zero_until, torch.inf, x)
        if moving is False:
            return torch.zeros_like(x)
        if self.scale == 1:
            guided = field(t, x, context)
        else:
            c, u = field(*_with_and_without(self, field, t, x, context)).unflatten(0, (2, x.shape[0])).unbind(0)
            precise = torch.promote_types(u.dtype, torch.float32)
            bare, along = rows(u).to(precise), rows(c).to(precise)
            # A velocity of zero has no best multiple and stays zero.
            norm = bare.square().sum(-1).clamp_min(torch.finfo(precise).tiny)
            best = ((bare * along).sum(-1) / norm).to(u.dtype)
            guided = torch.lerp(u * best.reshape(-1, *[1] * (x.dim() - 1)), c, self.scale)
        return guided if moving is True else torch.where(moving, guided, 0.0)


@register("guidance.AutoGuidance")
class AutoGuidance(Guidance, nn.Module):
    r"""Extrapolates from the velocity of a weak model to that of a good one.

    .. math:: v = v_{\text{weak}} + w (v_{\text{good}} - v_{\text{weak}})

    The weak model is smaller or less trained, on the same data and the same path. The condition is never omitted, so
    unconditional fields can be guided too.

    Args:
        weak_field: the weak flow, or a field that predicts velocities, with the same event shape. It receives the
            context if it has a ``context_shape``.
        scale: the weight ``w``; 1 is the good model alone, 0 the weak one.

    Shapes: as the field's. Cost: one evaluation of each field; for scale 0 or 1, of one field.

    Raises:
        ValueError: if the scale is not finite or the shapes of the two fields differ.

    Source: Karras et al., Guiding a Diffusion Model with a Bad Version of Itself, 2024, arXiv:2406.02507.

    Example:
        >>> from cflow.fields import MLP
        >>> guided = AutoGuidance(MLP(2, hidden=(8,)), 2.0)(MLP(2))
        >>> guided(torch.tensor(0.5), torch.zeros(4, 2)).shape
        torch.Size([4, 2])
    """

    def __init__(self, weak_field, scale: float):
        super().__init__()
        self.weak_field, self.scale = weak_field, scale
        _check_scale(self)

    def weak(self):
        """Returns the velocity field of the weak model."""
        flow = hasattr(self.weak_field, "velocity_field")
        return self.weak_field.velocity_field() if flow else self.weak_field

    def forward(self, field) -> Guided:
        """Returns ``field`` under this guidance."""
        guided, weak, name = as_field(field), as_field(self.weak()), type(self.weak_field).__name__
        if guided.converts and not weak.converts and self.weak() is self.weak_field:
            raise ValueError(
                f"AutoGuidance(weak_field={name}): a field does not convert its prediction to a velocity; pass the "
                f"weak flow itself."
            )
        if weak.outputs not in (..., 1):
            raise ValueError(
                f"AutoGuidance(weak_field={name}): a field with {weak.outputs} outputs is not a velocity; pass the "
                f"weak flow itself."
            )
        alike = weak.event_shape == guided.event_shape or ... in (weak.event_shape, guided.event_shape)
        if not alike or weak.context_shape not in (None, ..., guided.context_shape):
            raise ValueError(
                f"AutoGuidance: the weak field has event_shape={weak.event_shape} and "
                f"context_shape={weak.context_shape}, the field {guided.event_shape} and {guided.context_shape}; pass "
                f"one with equal shapes, or an unconditional one."
            )
        if guided.two_times and not weak.two_times:
            raise ValueError(
                f"AutoGuidance(weak_field={name})(field): the weak field has one time; pass a weak flow with two times."
            )
        return Guided(self, field)

    def velocity(self, field, t: Tensor | float, x: Tensor, context: Tensor | None) -> Tensor:
        """Computes the guided velocity of ``field`` at ``(t, x)`` given ``context``."""
        return self._mix(lambda asked, *inputs: (asked(*inputs),), field, t, x, context)[0]

    def value_and_divergence(self, field, t, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Computes the guided velocity of ``field`` at ``(t, x)`` given ``context``, and its divergence."""
        return self._mix(lambda asked, *inputs: as_field(asked).value_and_divergence(*inputs), field, t, x, context)

    def _mix(self, ask: Callable, field, t, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """Combines the results of ``ask(field, t, x, context)`` for the weak and the good model."""
        if self.scale == 1:
            return ask(field, t, x, context)
        weak = _Until(self.weak(), field.s) if isinstance(field, _Until) else self.weak()
        weak = ask(weak, t, x, None if as_field(weak).context_shape is None else context)
        if self.scale == 0:
            return weak
        return tuple(torch.lerp(*pair, self.scale) for pair in zip(weak, ask(field, t, x, context)))


def _check_scale(guidance) -> None:
    if not -float("inf") < guidance.scale < float("inf"):
        raise ValueError(f"{type(guidance).__name__}(scale={guidance.scale}): the weight is a finite number; pass 2.0.")
