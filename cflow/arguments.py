"""Checks of integer arguments and of tokens, and the line of the caller for warnings."""

from __future__ import annotations

import numbers
import sys
from typing import Any

import numpy
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

__all__ = ["calling_line", "check_integer", "check_tokens", "is_integer", "plain"]


def calling_line() -> dict[str, Any]:
    """Finds the calling line outside this package and torch, as the arguments of ``warnings.warn_explicit``."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("cflow", "torch"):
        frame = frame.f_back
    return {
        "filename": frame.f_code.co_filename,
        "lineno": frame.f_lineno,
        "module": frame.f_globals.get("__name__"),
        "registry": frame.f_globals.setdefault("__warningregistry__", {}),
    }


def is_integer(value: Any, least: int | None = None, *, numpy: bool = False) -> bool:
    """Returns whether a value is an integer, ``least`` or more. ``True`` and ``False`` are not integers here.

    NumPy's integers count only with ``numpy=True``; see :func:`plain`.

    Example:
        >>> is_integer(3, 1), is_integer(0, 1), is_integer(True), is_integer(3.0)
        (True, False, False, False)
    """
    kind = numbers.Integral if numpy else int
    return isinstance(value, kind) and not isinstance(value, bool) and (least is None or value >= least)


def check_integer(owner: str, name: str, value: Any, least: int, advice: str, *, numpy: bool = False) -> None:
    """Raises a ValueError unless a value is an integer, ``least`` or more.

    The error is ``owner(name=value): advice``. The advice states the valid values and what to pass.

    Example:
        >>> check_integer("Heun", "steps", 0, 1, "steps is an integer of at least 1; pass 20.")
        Traceback (most recent call last):
        ...
        ValueError: Heun(steps=0): steps is an integer of at least 1; pass 20.
    """
    if not is_integer(value, least, numpy=numpy):
        raise ValueError(f"{owner}({name}={value!r}): {advice}")


def check_tokens(who: str, x: Tensor, size: int, hint: str = "") -> Tensor:
    """Returns tokens as int64; raises if one is not an integer from 0 to ``size - 1``.

    Integers of every dtype and whole floating numbers are accepted. Values are read only where the data are on the CPU.

    Raises:
        TypeError: for a complex or boolean tensor.
        ValueError: for a number that is not whole, or a token outside the vocabulary; the first one is named.
    """
    if x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{who}: tokens of dtype {x.dtype}; pass integers from 0 to {size - 1}.")
    readable = x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_functorch_wrapped_tensor(x)
    if readable and x.numel():
        bad = (x < 0) | (x > size - 1)
        if x.is_floating_point():
            bad = bad | (x != x.floor())
        if bool(bad.any()):
            row, *place = bad.nonzero()[0].tolist()
            value = x[(row, *place)].item()
            at = f"row {row}" + (f", position {place[0] if len(place) == 1 else place}" if place else "")
            more = int(bad.sum()) - 1
            raise ValueError(
                f"{who}: token {value:.10g} ({at}{f', and {more} more' if more else ''}) is not an integer from 0 to "
                f"{size - 1}; {hint or 'encode the data with this vocabulary'}."
            )
    return x.long()


def plain(value: Any) -> Any:
    """Converts a NumPy number to a Python number, which can be saved; returns anything else unchanged.

    Example:
        >>> plain(numpy.int64(3)), plain(numpy.float32(0.5)), plain("x")
        (3, 0.5, 'x')
    """
    return value.item() if isinstance(value, numpy.generic) else value
