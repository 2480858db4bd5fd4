"""The contract of a field: its attributes and methods with defaults, and a view of networks without them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import EllipsisType
from typing import Any

from torch import Size, Tensor

from cflow import registry

__all__ = ["FieldContract", "Forwarding", "as_field", "no_closed_form"]


class FieldContract:
    """Declares the attributes and methods that the package reads from a field, with their defaults.

    Networks derive from :class:`cflow.fields.Field`, wrappers of a field from :class:`cflow.fields.FieldWrapper`, and
    callables that are not modules from this class. Code that receives a field from a user reads ``as_field(field)``.

    Attributes:
        event_shape: the shape of one sample; ``...`` if it is not declared.
        context_shape: the shape of one context: ``()`` for class labels, None for an unconditional field, a dict for a
            context of several parts; ``...`` if it is not declared.
        outputs: the number of returned tensors: 1 is a tensor like ``x``; more are ``[B, outputs, *event_shape]``, for
            paths that learn a velocity and a score (``paths.BrownianBridge``); ``...`` if it is not declared. A network
            on tokens returns their logits, ``[B, *event_shape, vocabulary]``.
        classes: the number of class labels; 0 if the context is not a label. Labels are 0 to ``classes - 1``, and the
            label ``classes`` means "no condition", so a table of labels has ``classes + 1`` rows.
        two_times: whether the field reads ``s`` and returns the average velocity from ``t`` to ``s``.
        interval: the first and the last time at which the field may be evaluated.
        converts: whether this field is the velocity that a path computes from a network's prediction (noise, score).
        reads_time: whether the result depends on ``t``; a sampler of tokens may use one call for several times if not.
        self_conditioned: whether the field takes the keyword ``previous``, the logits of an earlier call.

    Example:
        >>> class Shrink(FieldContract):
        ...     event_shape, context_shape, outputs = Size([2]), None, 1
        ...     def __call__(self, t, x, context=None, *, s=None):
        ...         return -x
        >>> Shrink().two_times, Shrink().interval
        (False, (0.0, 1.0))
    """

    event_shape: Size | dict[str, Size] | EllipsisType = ...
    context_shape: Size | dict[str, Size] | EllipsisType | None = ...
    outputs: int | EllipsisType = ...
    classes: int = 0
    two_times: bool = False
    interval: tuple[float, float] = (0.0, 1.0)
    converts: bool = False
    reads_time: bool = True
    self_conditioned: bool = False

    def null_context(self, context: Tensor) -> Tensor:
        """Returns a context that means "no condition", shaped like ``context``.

        Raises:
            ValueError: if the field does not define such a context.
        """
        raise ValueError(
            f'{_name(self)}.null_context: this network has no context for "no condition"; add a method '
            f"null_context(context), or wrap it as fields.Adapted(..., null=...)."
        )

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes ``(v, divergence)`` in closed form: the value of ``field(t, x, context)``, and its divergence in x.

        Shapes: those of a call; the divergence (the trace of the Jacobian) is ``[B]``, in float32 or better. Both are
        differentiable.

        Raises:
            TypeError: if there is no closed form.
        """
        reason = "it has no method value_and_divergence for its forward"
        raise no_closed_form(_name(self), reason)

    def with_two_times(self):
        """Builds the same network with a second time input and the same weights; see ``fields.two_times``."""
        return _rebuilt_for_two_times(self)


def _forwarded(name: str) -> property:
    return property(lambda self: getattr(as_field(self.field), name), doc=f"The inner field's ``{name}``.")


class Forwarding(FieldContract):
    """Forwards the whole contract to ``self.field``."""

    field: Callable

    event_shape = _forwarded("event_shape")
    context_shape = _forwarded("context_shape")
    outputs = _forwarded("outputs")
    classes = _forwarded("classes")
    two_times = _forwarded("two_times")
    interval = _forwarded("interval")
    converts = _forwarded("converts")
    reads_time = _forwarded("reads_time")
    self_conditioned = _forwarded("self_conditioned")

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        call = vars(cls).get("forward") or vars(cls).get("__call__")
        # A call without this argument cannot pass it to the field inside.
        if call and "self_conditioned" not in vars(cls) and "previous" not in inspect.signature(call).parameters:
            cls.self_conditioned = False

    def null_context(self, context: Tensor) -> Tensor:
        """Returns the inner field's context that means "no condition", shaped like ``context``."""
        return as_field(self.field).null_context(context)

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes the inner field's value and divergence in closed form, at ``(t, x, context)``."""
        return as_field(self.field).value_and_divergence(t, x, context)

    def with_two_times(self):
        """Builds the same wrapper around the inner field with two times."""
        new = registry.replace(self, field=as_field(self.field).with_two_times())
        if not new.two_times:
            raise TypeError(
                f"two_times({type(self).__name__}): this wrapper reads one time; apply two_times to the field inside, "
                f"then wrap it."
            )
        return new


def as_field(network: Any) -> FieldContract:
    """Returns an object with the whole contract: the field itself, or a view of another network.

    The view reads the attributes and methods of :class:`FieldContract` that the network has, and uses the defaults for
    the rest. It has no state, so names in ``state_dict`` and in saved files stay those of the network.

    Args:
        network: a field, or any network or function that is called as ``network(t, x)`` or ``network(t, x, context)``.

    Example:
        >>> import torch
        >>> as_field(torch.nn.Linear(2, 2)).two_times
        False
    """
    return network if isinstance(network, FieldContract) else _Foreign(network)


ATTRIBUTES = tuple(FieldContract.__annotations__)


class _Foreign(FieldContract):
    """A network, or any callable, that does not derive from the contract."""

    def __init__(self, network: Callable):
        self.network = network
        for name in ATTRIBUTES:
            declared = getattr(network, name, getattr(self, name))
            if declared is not None or name == "context_shape":  # only context_shape may be None
                setattr(self, name, declared)
        for name in ("null_context", "value_and_divergence", "with_two_times"):
            if (method := getattr(network, name, None)) is not None:
                setattr(self, name, method)

    def __call__(self, *args: Any, **keywords: Any) -> Tensor:
        return self.network(*args, **keywords)

    def with_two_times(self):
        return _rebuilt_for_two_times(self.network)


def no_closed_form(name: str, reason: str) -> TypeError:
    """Returns the error for a field without a divergence in closed form."""
    return TypeError(
        f"divergence.Analytic: {name} has no divergence in closed form ({reason}); use divergence.Exact(), "
        f"divergence.Hutchinson(), or another field such as fields.MLP."
    )


def _name(field: FieldContract) -> str:
    named = field.network if isinstance(field, _Foreign) else field
    return getattr(named, "__name__", type(named).__name__)


def _rebuilt_for_two_times(network: Any):
    """Builds a network again with ``two_times=True`` and the same weights; new weights start at zero."""
    name, arguments = type(network).__name__, registry.configuration(network)
    if "two_times" not in arguments:
        raise TypeError(f"two_times({name}): this network has no option two_times; use fields.MLP, UNet, DiT or MMDiT.")
    if arguments["two_times"]:
        raise ValueError(f"two_times({name}): this field already reads two times; use it unchanged.")
    reference = next(network.parameters())
    new = registry.build(type(network), {**arguments, "two_times": True}).to(reference.device, reference.dtype)
    missing, unexpected = new.load_state_dict(network.state_dict(), strict=False)
    if unexpected or any("span" not in each.split(".") for each in missing):
        raise TypeError(f"two_times({name}): weights do not fit: {missing[:3]}, {unexpected[:3]}.")
    return new.train(network.training)
