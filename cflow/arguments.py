"""Checks of arguments that are counted, and the line that gave them."""

from __future__ import annotations

import numbers
import sys
from typing import Any

import numpy

__all__ = ["calling_line", "check_integer", "is_integer", "plain"]


def calling_line() -> dict[str, Any]:
    """Finds the line outside this package and torch that called it, as ``warnings.warn_explicit`` takes it."""
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
    """Returns whether a value is a whole number, ``least`` or more; ``True`` and ``False`` are not.

    NumPy's integers count with ``numpy=True`` only: see :func:`plain`.

    Example:
        >>> is_integer(3, 1), is_integer(0, 1), is_integer(True), is_integer(3.0)
        (True, False, False, False)
    """
    kind = numbers.Integral if numpy else int
    return isinstance(value, kind) and not isinstance(value, bool) and (least is None or value >= least)


def check_integer(owner: str, name: str, value: Any, least: int, advice: str, *, numpy: bool = False) -> None:
    """Raises a ValueError unless a value is a whole number, ``least`` or more.

    The error is ``owner(name=value): advice``; the advice says why the argument is counted and what to pass.

    Example:
        >>> check_integer("Heun", "steps", 0, 1, "a solve takes a step or more; pass 20.")
        Traceback (most recent call last):
        ...
        ValueError: Heun(steps=0): a solve takes a step or more; pass 20.
    """
    if not is_integer(value, least, numpy=numpy):
        raise ValueError(f"{owner}({name}={value!r}): {advice}")


def plain(value: Any) -> Any:
    """Returns Python's own number for one of NumPy's, and anything else as it is: what is kept can be written.

    Example:
        >>> plain(numpy.int64(3)), plain(numpy.float32(0.5)), plain("x")
        (3, 0.5, 'x')
    """
    return value.item() if isinstance(value, numpy.generic) else value
