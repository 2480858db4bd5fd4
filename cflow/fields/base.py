"""The base class of fields: shapes, checks of a call, and the context that means "no condition"."""

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
"""The value of every entry of a context vector that means "no condition"."""


def null_like(context: Tensor, classes: int = 0) -> Tensor:
    """Returns a context like this one that means "no condition": index ``classes`` for labels, ``NULL`` for vectors."""
    if classes:
        return torch.full_like(context, classes)
    if not context.is_floating_point():
        raise TypeError(
            f'null_context(context of dtype {context.dtype}): this dtype cannot hold the value for "no condition"; '
            f"pass context.float()."
        )
    # The range of half precision ends at 65504, so only minus infinity is below the threshold of `is_null`.
    representable = torch.finfo(context.dtype).max > -NULL
    return torch.full_like(context, NULL if representable else -torch.inf)


def is_null(context: Tensor) -> Tensor:
    """Returns which rows of ``[B, width]`` mean "no condition", as ``[B, 1]``; rows with NaN do not."""
    return (context.float() < 0.1 * NULL).any(-1, keepdim=True)


class Field(FieldContract, nn.Module):
    """The base class of vector fields; a subclass writes ``forward`` and calls :meth:`check` first in it.

    A field is called as ``field(t, x, context=None, *, s=None)`` and returns a tensor like ``x``. For tokens, which are
    integers, it returns their logits ``[B, *event_shape, vocabulary]``. It draws no random numbers. The output for a
    sample depends only on this sample.

    A field with a divergence in closed form may also write ``value_and_divergence``, which ``divergence.Analytic``
    calls instead of ``forward``. A class that writes its own ``forward`` does not inherit this method, which would
    belong to another field.

    More attributes and methods, with their defaults, are listed in :class:`cflow.fields.FieldContract`.

    Args:
        event_shape: the shape of one sample: an int or a sequence of them.
        context_shape: the shape of one context, ``()`` for class labels; None for an unconditional field.

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
        # This check comes before any constructor: Python's own error would not suggest the correct keyword.
        taken = inspect.signature(cls.__init__).parameters
        if not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
            check_keywords(cls.__name__, options, known := list(taken)[1:], known)
        return super().__new__(cls)

    def __init__(self, event_shape: int | Sequence[int], context_shape: int | Sequence[int] | None = None):
        super().__init__()
        self.event_shape, self.context_shape = as_shape(event_shape), as_shape(context_shape)

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None, *, s: Tensor | None = None) -> Tensor:
        """Computes the velocity at time ``t`` and points ``x``; every subclass writes this method.

        Shapes: ``t`` ``[]`` or ``[B]``; ``x`` ``[B, *event_shape]``; ``context`` ``[B, *context_shape]``, or None if
        ``context_shape`` is None; ``s`` like ``t``, only for fields with ``two_times = True``. Such a field returns
        the average velocity from ``t`` to ``s``; if ``s`` is omitted, it returns the velocity at ``t``, as for
        ``s = t``. Returns a tensor like ``x``, or ``[B, outputs, *event_shape]`` for several outputs.
        """
        # An abstract method: nn.Module raises the same where a subclass has no forward.
        raise NotImplementedError(f"{type(self).__name__} has no forward(t, x, context=None, *, s=None); write it.")

    def check(
        self, t: Tensor | float, x: Tensor, context: Tensor | None = None, s: Tensor | float | None = None
    ) -> Tensor:
        """Checks the shapes of ``t``, ``x``, ``context`` and ``s``, and returns ``t`` as a tensor; reads no values.

        Raises:
            TypeError: if ``s`` is passed to a field of one time, or class labels are not integers.
            ValueError: if a shape does not fit, or a context is missing or not expected.
        """
        name = type(self).__name__
        if s is not None and not self.two_times:
            raise TypeError(
                f"{name}(t, x, s=...): this field reads one time (two_times is False); omit s, or use a field of two "
                f"times."
            )
        if x.dim() == 0 or (self.event_shape is not ... and x.shape[1:] != self.event_shape):
            raise ValueError(
                f"{name}(t, x) with x of shape {list(x.shape)}: event_shape is {tuple(self.event_shape)}; pass x of "
                f"shape {pattern(self.event_shape, 'B')}."
            )
        if not isinstance(t, Tensor):
            t = torch.as_tensor(t, dtype=self._time_dtype(x), device=x.device)
        if s is not None and not isinstance(s, Tensor):
            s = torch.as_tensor(s, dtype=self._time_dtype(x), device=x.device)
        for key, time in (("t", t), ("s", s)) if s is not None else (("t", t),):
            if time.dim() != 0 and time.shape != x.shape[:1]:
                raise ValueError(
                    f"{name}(t, x) with {key} of shape {list(time.shape)}: x has {x.shape[0]} samples; pass {key} of "
                    f"shape [] or [{x.shape[0]}]."
                )
        if context is None:
            if self.context_shape is not None and self.context_shape is not ...:
                raise ValueError(
                    f"{name}(t, x) without context: this field has context_shape={shown(self.context_shape)}; pass "
                    f"context of shape {pattern(self.context_shape, str(x.shape[0]))}, or "
                    f"field.null_context(context)."
                )
        elif self.context_shape is None:
            raise ValueError(
                f"{name}(t, x, context) with a context of shape {list(context.shape)}: this field is unconditional; "
                f"omit the context, or build it with classes=... or context=..."
            )
        elif isinstance(context, Tensor) and self.context_shape is not ...:
            if context.shape != x.shape[:1] + self.context_shape:
                raise ValueError(
                    f"{name}(t, x, context) with a context of shape {list(context.shape)}: x has {x.shape[0]} samples "
                    f"and context_shape is {tuple(self.context_shape)}; pass context of shape "
                    f"{[x.shape[0], *self.context_shape]}."
                )
            self._check_labels(context)
        return t

    def _time_dtype(self, x: Tensor) -> torch.dtype:
        """Returns the dtype of a time that was passed as a number; tokens are integers, times are not."""
        if x.is_floating_point():
            return x.dtype
        weights = next((each for each in self.parameters() if each.is_floating_point()), torch.empty(0))
        return torch.promote_types(weights.dtype, torch.float32)

    def _check_labels(self, context: Tensor) -> None:
        if self.classes and (context.is_floating_point() or context.is_complex() or context.dtype == torch.bool):
            raise TypeError(
                f"{type(self).__name__}: the context has dtype {context.dtype}, but class labels are integers from 0 "
                f"to {self.classes - 1}; pass context.long()."
            )

    def null_context(self, context: Tensor) -> Tensor:
        """Returns a context that means "no condition", shaped like ``context``.

        Class labels become the index ``classes``. Entries of a context vector become ``NULL`` (-1e30), which networks
        recognise and replace by a learned embedding.

        Raises:
            ValueError: if the field is unconditional.
        """
        if self.context_shape is None:
            raise ValueError(
                f"{type(self).__name__}.null_context: this field is unconditional; call it without a context."
            )
        self._check_labels(context)
        return null_like(context, self.classes)


def image_sides(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Returns height and width of an image from ``size``: one side, or both."""
    sides = as_shape(size)
    if len(sides) not in (1, 2):
        raise ValueError(f"{name}(size={size}): pass the side of an image, or (height, width).")
    return sides[0], sides[-1]


def check_outputs(name: str, outputs: int) -> None:
    """Raises if the number of outputs is not a positive integer."""
    why = "this is not a positive integer; pass 1 for a velocity, 2 for a velocity and a score."
    check_integer(name, "outputs", outputs, 1, why)
