"""What every field shares: its shapes, the checks of a call, and the context that means "no condition"."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cflow.arguments import check_integer
from cflow.fields.contract import FieldContract
from cflow.keywords import check_keywords
from cflow.shapes import as_shape, pattern, shown

__all__ = ["NULL", "Field", "check_outputs", "image_sides", "is_null", "null_like"]

NULL = -1e30
"""Every entry of a continuous context vector that means "no condition"."""


def null_like(context: Tensor, classes: int = 0) -> Tensor:
    """Fills a context with "no condition": the index ``classes`` for class labels, ``NULL`` for vectors."""
    if classes:
        return torch.full_like(context, classes)
    if not context.is_floating_point():
        raise TypeError(
            f'null_context(context of dtype {context.dtype}): "no condition" is a vector of numbers beyond all data, '
            f"which {context.dtype} cannot hold; pass context.float()."
        )
    # Half precision ends at 65504: its only number below the threshold of `is_null` is minus infinity.
    representable = torch.finfo(context.dtype).max > -NULL
    return torch.full_like(context, NULL if representable else -torch.inf)


def is_null(context: Tensor) -> Tensor:
    """Finds which rows of ``[B, width]`` mean "no condition", as ``[B, 1]``; a NaN is not one of them."""
    return (context.float() < 0.1 * NULL).any(-1, keepdim=True)


class Field(FieldContract, nn.Module):
    """Holds what every field promises; networks derive from it and call :meth:`check` first in ``forward``.

    A field is called ``field(t, x, context=None, *, s=None)`` and returns a tensor like ``x``. It draws no random
    numbers. Each sample's output depends on that sample alone.

    A field whose divergence is known in closed form may have one more method, which ``divergence.Analytic`` calls in
    the place of ``forward``: ``value_and_divergence(t, x, context=None) -> (v, divergence)``, the value that
    ``forward`` gives and the trace of its Jacobian in x, ``[B]`` in float32 at least, both differentiable. A class that
    writes its own ``forward`` does not inherit the method: it would be that of another field.

    Shapes: ``t`` ``[]`` or ``[B]``; ``x`` ``[B, *event_shape]``; ``context`` ``[B, *context_shape]``, or None when
    ``context_shape`` is None; ``s`` as ``t``, for fields with ``two_times = True`` only: such a field gives the average
    velocity from ``t`` to ``s``, and without ``s`` the velocity at ``t``, which is that for ``s = t``.

    Attributes and further methods, with their defaults: those of :class:`cflow.fields.FieldContract`.

    Example:
        >>> class Linear(Field):
        ...     def __init__(self, features):
        ...         super().__init__(event_shape=(features,))
        ...         self.features, self.matrix = features, nn.Linear(features, features)
        ...     def forward(self, t, x, context=None, *, s=None):
        ...         t = self.check(t, x, context, s)
        ...         return self.matrix(x)
        >>> Linear(3)(torch.tensor(0.5), torch.zeros(4, 3)).shape
        torch.Size([4, 3])
    """

    outputs = 1

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        if "forward" in vars(cls) and "value_and_divergence" not in vars(cls):
            cls.value_and_divergence = FieldContract.value_and_divergence

    def __new__(cls, *args, **options):
        # Before any constructor runs: Python's own error would not say which keyword was meant.
        taken = inspect.signature(cls.__init__).parameters
        if not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
            check_keywords(cls.__name__, options, known := list(taken)[1:], known)
        return super().__new__(cls)

    def __init__(self, event_shape: int | Sequence[int], context_shape: int | Sequence[int] | None = None):
        super().__init__()
        self.event_shape, self.context_shape = as_shape(event_shape), as_shape(context_shape)

    def check(
        self, t: Tensor | float, x: Tensor, context: Tensor | None = None, s: Tensor | float | None = None
    ) -> Tensor:
        """Checks the shapes of a call, without reading a value, and gives ``t`` as a tensor.

        Raises:
            TypeError: if ``s`` is given to a field of one time, or class labels are no integers.
            ValueError: if a shape does not fit, a context is missing, or there is one too many.
        """
        name = type(self).__name__
        if s is not None and not self.two_times:
            raise TypeError(
                f"{name}(t, x, s=...): this field reads one time (two_times is False), so a second time s means "
                f"nothing to it; leave s out, or use a field that was built for two times."
            )
        if x.dim() == 0 or (self.event_shape is not ... and x.shape[1:] != self.event_shape):
            raise ValueError(
                f"{name}(t, x) with x of shape {list(x.shape)}: this field was built for one batch dimension and "
                f"events of shape {tuple(self.event_shape)}; pass x of shape {pattern(self.event_shape, 'B')}."
            )
        if not isinstance(t, Tensor):
            t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        if s is not None and not isinstance(s, Tensor):
            s = torch.as_tensor(s, dtype=x.dtype, device=x.device)
        for key, time in (("t", t), ("s", s)) if s is not None else (("t", t),):
            if time.dim() != 0 and time.shape != x.shape[:1]:
                raise ValueError(
                    f"{name}(t, x) with {key} of shape {list(time.shape)}: x holds {x.shape[0]} samples, and a time is "
                    f"shared by all or one per sample; pass {key} of shape [] or [{x.shape[0]}]."
                )
        if context is None:
            if self.context_shape is not None and self.context_shape is not ...:
                raise ValueError(
                    f"{name}(t, x) without context: this field was built with context_shape="
                    f"{shown(self.context_shape)} and cannot guess a condition; pass context of shape "
                    f"{pattern(self.context_shape, str(x.shape[0]))}, or field.null_context(context) for no condition."
                )
        elif self.context_shape is None:
            raise ValueError(
                f"{name}(t, x, context) with a context of shape {list(context.shape)}: this field is unconditional and "
                f"would ignore it; leave the context out, or build the field with classes=... or context=...."
            )
        elif isinstance(context, Tensor) and self.context_shape is not ...:
            if context.shape != x.shape[:1] + self.context_shape:
                raise ValueError(
                    f"{name}(t, x, context) with a context of shape {list(context.shape)}: x holds {x.shape[0]} "
                    f"samples and the field was built with context_shape={tuple(self.context_shape)}; pass context of "
                    f"shape {[x.shape[0], *self.context_shape]}."
                )
            self._check_labels(context)
        return t

    def _check_labels(self, context: Tensor) -> None:
        if self.classes and (context.is_floating_point() or context.is_complex() or context.dtype == torch.bool):
            raise TypeError(
                f"{type(self).__name__}: a context of dtype {context.dtype} was given, but this field reads class "
                f"labels 0 to {self.classes - 1} by index; pass integers, for example context.long()."
            )

    def null_context(self, context: Tensor) -> Tensor:
        """Gives a context of the same shape that means "no condition".

        Class labels become the index ``classes``, entries of a context vector become ``NULL`` (-1e30), which the
        networks recognise and replace by a learned embedding.

        Raises:
            ValueError: if the field is unconditional.
        """
        if self.context_shape is None:
            raise ValueError(
                f"{type(self).__name__}.null_context: this field is unconditional, so there is no condition to leave "
                f"out; call it without a context, or build it with classes=... or context=...."
            )
        self._check_labels(context)
        return null_like(context, self.classes)


def image_sides(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Reads the size of an image: its side, or height and width."""
    sides = as_shape(size)
    if len(sides) not in (1, 2):
        raise ValueError(f"{name}(size={size}): an image has a side, or a height and a width; pass one or two numbers.")
    return sides[0], sides[-1]


def check_outputs(name: str, outputs: int) -> None:
    """Raises unless the number of outputs is a positive integer."""
    why = "a network returns one output or more; pass 1 for a velocity, 2 for a velocity and a score."
    check_integer(name, "outputs", outputs, 1, why)
