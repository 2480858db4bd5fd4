"""Common preparation of every call of a flow: checks of options and shapes, and one batch dimension inside."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Size, Tensor, nn
from torch._C._functorch import is_batchedtensor

from cflow.arguments import plain
from cflow.draws import Source, check_generator
from cflow.keywords import advice
from cflow.modes import tell_training
from cflow.shapes import Shape, Value, as_shape, batch_of, broadcast, flatten, on_tensors, pattern

__all__ = ["Calls"]

KINDS = {
    **dict.fromkeys(("sample", "rsample"), ("sample",)),
    **dict.fromkeys(("log_prob", "log_prob_estimate"), ("log_prob",)),
    **dict.fromkeys(("sample_and_log_prob", "rsample_and_log_prob", "encode", "decode"), ("sample", "log_prob")),
}
"""The options that each method takes: those of sampling, of densities, or of both."""


class Calls(nn.Module):
    """Checks the arguments of a flow's methods and converts them to the flow's device, dtype and one batch dimension.

    This is the internal part of :class:`cflow.BaseFlow`. Its methods, and those that a subclass adds, start with
    :meth:`_check` and :meth:`_enter`, or with :meth:`_count` where they draw.
    """

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of events: the dtype of the module's first floating tensor, at least float32."""
        return torch.promote_types(self._reference.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """The device of the module's first floating tensor."""
        return self._reference.device

    @property
    def _reference(self) -> Tensor:
        tensors = itertools.chain(self.parameters(), self.buffers())
        return next((each for each in tensors if each.is_floating_point()), torch.empty(0))

    def options_of(self, method: str) -> tuple[str, ...]:
        """Lists the keywords that a method takes in addition to ``generator``.

        Args:
            method: name of the method, such as ``"sample"`` or ``"log_prob"``.

        Raises:
            ValueError: for the name of a method that takes no options.
        """
        if method not in KINDS:
            raise ValueError(
                f"flow.options_of({method!r}): no such method takes options; choose from {', '.join(KINDS)}."
            )
        return tuple(dict.fromkeys(name for kind in KINDS[method] for name in self.options.get(kind, ())))

    def _check(self, options: dict[str, Any], method: str, generator: Source = None) -> None:
        check_generator(f"flow.{method}", generator, by_row=True)
        tell_training(self, method)
        known = self.options_of(method) if options else ()
        for name in options:
            if name not in known:
                meant = advice(name, ("generator", "context", *known))
                takes = ", ".join(("generator", *known))
                raise TypeError(f"flow.{method}({name}=...): no such option; {meant}it takes {takes}.")
        if "log_prob" in method and self.likelihood == "none":
            base = getattr(self, "base", None)
            what = type(self).__qualname__ + ("" if base is None else f" from base {type(base).__name__}")
            mute = [
                type(each).__name__ for part in self._maps() for each in part.members() if each.likelihood == "none"
            ]
            if mute and getattr(base, "has_density", True):
                raise ValueError(
                    f"flow.{method}: behind {mute[0]} this {type(self).__qualname__} has no density; for tokens, build "
                    f"cflow.RelaxedFlow, or compare samples with cflow.metrics."
                )
            raise ValueError(
                f"flow.{method}: this {what} has no density; compare samples with cflow.metrics"
                + ("." if base is None else ", or build it with bases.Normal.")
            )

    def _context(self, context: Value | None, method: str) -> Size:
        if method == "forward":
            self._refuse_data(context)
        if self.context_shape is None:
            if context is not None:
                raise ValueError(
                    f"flow.{method}(context=...): this flow is unconditional; omit the context, or build the "
                    "flow with context_shape=...."
                )
            return Size()
        if context is None:
            what = f"labels from 0 to {self.classes - 1}" if self.classes else "a tensor"
            raise ValueError(
                f"flow.{method}(): the context is missing; pass context=..., {what} of shape "
                f"{pattern(self.context_shape)}."
            )
        batch = batch_of(context, self.context_shape, f"flow.{method}: context")
        # Only where reading does not wait for a device: an index outside the table would raise an unclear error.
        if self.classes and self._may_read(context):
            low, high = int(context.min()), int(context.max())
            if low < 0 or high > self.classes:
                raise ValueError(
                    f"flow.{method}: got class labels from {low} to {high}; pass 0 to {self.classes - 1}, or "
                    f"{self.classes} for no condition."
                )
            if high == self.classes:
                self._check_null(f"{method}: label {high}")
        return batch

    def _refuse_data(self, context: Value | None) -> None:
        """Raises where a flow is called with data; calling it with a context returns a distribution."""
        if not isinstance(context, Tensor) or isinstance(self.event_shape, dict):
            return
        ends_in = lambda shape: context.dim() >= len(shape) and context.shape[context.dim() - len(shape) :] == shape
        reads = self.context_shape is not None and not isinstance(self.context_shape, dict)
        label = self.classes > 0 and context.is_floating_point()  # labels are integers
        if ends_in(self.event_shape) and (label or not (reads and ends_in(self.context_shape))):
            raise ValueError(
                f"flow(x of shape {list(context.shape)}): a flow is called with a context; for data call "
                f"flow.log_prob(x) or flow.encode(x)."
            )

    @staticmethod
    def _may_read(context: Value) -> bool:
        """Returns whether the values of a context can be read: not on a device, in a compiled graph or under vmap."""
        if not isinstance(context, Tensor) or torch.compiler.is_compiling() or is_batchedtensor(context):
            return False
        return context.device.type == "cpu" and context.numel() > 0

    def _as_context(self, context: Any) -> Any:
        """Converts a number or a list of numbers to a tensor: ``context=3`` is a class label."""
        context = plain(context)
        if self.context_shape is None or not isinstance(context, int | float | list) or isinstance(context, bool):
            return context
        made = torch.as_tensor(context, device=self.device)
        # A vector of one entry is that number.
        return made.reshape(1) if made.dim() == 0 and self.context_shape == (1,) else made

    def cast(self, value: Value | None) -> Value | None:
        """Moves tensors to the flow's device and casts floating ones to its dtype.

        Integers (labels, pixels) stay integers.

        Args:
            value: a tensor, a dict of tensors, or None.
        """
        reference = self._reference
        device, dtype = reference.device, torch.promote_types(reference.dtype, torch.float32)
        return on_tensors(lambda each: each.to(device, dtype if each.is_floating_point() else each.dtype), value)

    def _enter(
        self, x: Value, context: Value | None, method: str, shape: Shape | None = None, name: str = "x"
    ) -> tuple:
        """Returns value, context and batch shape of a call. ``shape`` is the event shape by default."""
        shape, context = self.event_shape if shape is None else shape, self._as_context(context)
        own = batch_of(x, shape, f"flow.{method}: {name}")
        batch = broadcast(f"flow.{method}", own, self._context(context, method))
        if context is not None:
            context = flatten(self.cast(context), self.context_shape, batch)
        return self.cast(flatten(x, shape, batch)), context, batch

    def _count(self, shape, context: Value | None, method: str) -> tuple[Value | None, Size]:
        context = self._as_context(context)
        batch = Size((*as_shape(shape), *self._context(context, method)))
        if context is not None:
            context = flatten(self.cast(context), self.context_shape, batch)
        return context, batch
