"""The contract of a field: what the package reads from it, with defaults, and a view of networks that lack some."""

from __future__ import annotations

from collections.abc import Callable
from types import EllipsisType
from typing import Any

from torch import Size, Tensor

from cflow import registry

__all__ = ["FieldContract", "Forwarding", "as_field", "no_closed_form"]


class FieldContract:
    """Declares all that the package reads from a field beside calling it.

    Networks derive from :class:`cflow.fields.Field`, wrappers of a field from :class:`cflow.fields.FieldWrapper`, and
    callables that are not modules from this class. Code that is given a field by a user reads ``as_field(field)``.

    Attributes:
        event_shape: the shape of one sample; ``...`` where the field does not say.
        context_shape: the shape of one context, ``()`` for class labels, None for an unconditional field, a dict for a
            context of several parts; ``...`` where the field does not say.
        outputs: how many tensors are returned: 1 is a tensor like ``x``, more are ``[B, outputs, *event_shape]``, for
            paths that learn a velocity and a score (``paths.BrownianBridge``); ``...`` where the field does not say.
        classes: how many class labels there are; 0 where the context is not a label.
        two_times: whether the field reads ``s``, and gives the average velocity from ``t`` to ``s``.
        interval: the times at which the field may be evaluated, from the first to the second.
        converts: whether this is a velocity that a path makes of what a network predicts (its noise, its score).

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

    def null_context(self, context: Tensor) -> Tensor:
        """Gives a context of the same shape that means "no condition".

        Raises:
            ValueError: where the field does not say what means that.
        """
        raise ValueError(
            f'{_name(self)}.null_context: this network does not say what context means "no condition"; give it '
            f"a method null_context(context), or wrap it as fields.Adapted(..., null=...)."
        )

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes ``(v, divergence)``: the value of a call, and the trace of its Jacobian in x, in closed form.

        Shapes: the divergence is ``[B]``, in float32 at least. Both are differentiable.

        Raises:
            TypeError: where no closed form is known.
        """
        reason = "it has no method value_and_divergence, or replaced the forward that it belongs to"
        raise no_closed_form(_name(self), reason)

    def with_two_times(self):
        """Builds the same network with a second time to read and the same weights; see ``fields.two_times``."""
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

    def null_context(self, context: Tensor) -> Tensor:
        """Gives the inner field's context of "no condition"."""
        return as_field(self.field).null_context(context)

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes the inner field's value and divergence in closed form."""
        return as_field(self.field).value_and_divergence(t, x, context)

    def with_two_times(self):
        """Builds the same wrapper around the inner field with two times."""
        new = registry.replace(self, field=as_field(self.field).with_two_times())
        if not new.two_times:
            raise TypeError(
                f"two_times({type(self).__name__}): this wrapper reads one time whatever is inside it; give two times "
                f"to the field inside, before it is wrapped."
            )
        return new


def as_field(network: Any) -> FieldContract:
    """Returns an object with the whole contract: the field itself, or a view of a foreign network.

    The view holds nothing of its own: the network stays the module that it is, with its
    names in ``state_dict`` and in saved files. What the network declares by the names of :class:`FieldContract` is
    read from it, the rest has the defaults there. No other place probes for attributes.

    Example:
        >>> import torch
        >>> as_field(torch.nn.Linear(2, 2)).two_times
        False
    """
    return network if isinstance(network, FieldContract) else _Foreign(network)


class _Foreign(FieldContract):
    """A network, or any callable, that does not derive from the contract."""

    def __init__(self, network: Callable):
        self.network = network
        for name in ("event_shape", "context_shape", "outputs", "classes", "two_times", "interval", "converts"):
            said = getattr(network, name, getattr(self, name))
            if said is not None or name == "context_shape":  # None has a meaning for the last alone
                setattr(self, name, said)
        for name in ("null_context", "value_and_divergence", "with_two_times"):
            if (method := getattr(network, name, None)) is not None:
                setattr(self, name, method)

    def __call__(self, *args: Any, **keywords: Any) -> Tensor:
        return self.network(*args, **keywords)

    def with_two_times(self):
        return _rebuilt_for_two_times(self.network)


def no_closed_form(name: str, reason: str) -> TypeError:
    """Makes the error for what has no divergence in closed form."""
    return TypeError(
        f"divergence.Analytic: {name} gives no divergence in closed form ({reason}); take divergence.Exact() or "
        f"divergence.Hutchinson(), or a field with that method, such as fields.MLP."
    )


def _name(field: FieldContract) -> str:
    named = field.network if isinstance(field, _Foreign) else field
    return getattr(named, "__name__", type(named).__name__)


def _rebuilt_for_two_times(network: Any):
    """Builds a network anew with ``two_times=True`` and the weights that it has; what is new starts at zero."""
    name, arguments = type(network).__name__, registry.configuration(network)
    if "two_times" not in arguments:
        raise TypeError(
            f"two_times({name}): this network has no option two_times; use fields.MLP, UNet, DiT or "
            f"MMDiT, or write a field with one."
        )
    if arguments["two_times"]:
        raise ValueError(f"two_times({name}): this field reads two times already; use it as it is.")
    reference = next(network.parameters())
    new = registry.build(type(network), {**arguments, "two_times": True}).to(reference.device, reference.dtype)
    missing, unexpected = new.load_state_dict(network.state_dict(), strict=False)
    if unexpected or any("span" not in each.split(".") for each in missing):
        raise TypeError(f"two_times({name}): weights do not fit: {missing[:3]}, {unexpected[:3]}.")
    return new.train(network.training)
