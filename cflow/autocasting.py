"""Autocast states, for backward passes that compute parts of the forward pass again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["autocast", "autocast_state"]


def autocast_state(device: str) -> list[tuple[str, bool, torch.dtype]]:
    """Returns, for this device and for the CPU, whether autocast is on and its dtype."""
    kinds = dict.fromkeys((device, "cpu"))
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]


@contextlib.contextmanager
def autocast(states: list[tuple[str, bool, torch.dtype]]) -> Iterator[None]:
    """Sets autocast to a state, without its cache: cached copies may have no graph and would stop the gradient."""
    with contextlib.ExitStack() as stack:
        for kind, enabled, dtype in states:
            stack.enter_context(torch.autocast(kind, enabled=enabled, dtype=dtype, cache_enabled=False))
        yield
