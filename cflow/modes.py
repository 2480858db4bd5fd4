"""Training and evaluation mode, kept and restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating", "modes_kept"]


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Restores the mode that every part of a module had, whatever happens in between."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode for a while; every part has its own mode afterwards.

    Example:
        >>> network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2).eval())
        >>> with evaluating(network):
        ...     inside = [part.training for part in network]
        >>> inside, [part.training for part in network]
        ([False, False], [True, False])
    """
    with modes_kept(module):
        module.eval()
        yield
