"""Numbers computed on the host, as tensors on the device: copied for every solve, or once for a captured solve."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

__all__ = ["keeping_uploads", "upload"]

_kept: ContextVar[dict[tuple, Tensor] | None] = ContextVar("uploads that are kept", default=None)


def upload(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns numbers, or nested sequences of them, as a tensor that must not be overwritten.

    A CUDA graph cannot hold a copy from the host; within :func:`keeping_uploads` each copy is made only once.
    """
    table = _kept.get()
    if table is None:
        return torch.tensor(values, dtype=dtype, device=device)
    key = (repr(values), dtype, device)
    if key not in table:
        table[key] = torch.tensor(values, dtype=dtype, device=device)
    return table[key]


@contextlib.contextmanager
def keeping_uploads(table: dict[tuple, Tensor]) -> Iterator[None]:
    """Stores the uploaded tensors in ``table``, and uses them again for equal numbers."""
    token = _kept.set(table)
    try:
        yield
    finally:
        _kept.reset(token)
