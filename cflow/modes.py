"""Modes: training and evaluation, with a warning where training mode changes the result; and states of autocast."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from cflow.arguments import calling_line

__all__ = ["autocast", "autocast_state", "evaluating", "looks_at_batch", "modes_kept", "tell_training"]


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Restores the mode of every part of a module when the block ends, also after an error."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode during the block, and restores the mode of every part afterwards.

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


def tell_training(module: nn.Module, method: str) -> None:
    """Warns where training mode changes the result: with dropout, or with statistics of the current batch.

    Only calls without gradients warn. Losses need gradients and are meant to be computed in training mode.

    Example:
        >>> with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        ...     tell_training(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), "sample")
        >>> print(caught[0].message)
        flow.sample: the flow is in training mode, in which 1 (Dropout) changes the result; call flow.eval() first.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    for name, part in module.named_modules():
        if part.training and _differs(part, method):
            warnings.warn_explicit(
                f"flow.{method.removeprefix('r')}: the flow is in training mode, in which {name} "
                f"({type(part).__name__}) changes the result; call flow.eval() first.",
                UserWarning,
                **calling_line(),
            )
            return


def looks_at_batch(part: nn.Module) -> bool:
    """Returns whether the result of a part for one row depends, in training mode, on the other rows of the batch.

    Example:
        >>> looks_at_batch(nn.BatchNorm1d(2)), looks_at_batch(nn.LayerNorm(2))
        (True, False)
    """
    inside = any(getattr(each, "changes", False) for each in part.children())
    return isinstance(part, nn.modules.batchnorm._BatchNorm) or (getattr(part, "changes", False) and not inside)


def _differs(part: nn.Module, method: str) -> bool:
    """Returns whether a part computes something else in training mode."""
    if looks_at_batch(part):
        return method != "sample" or getattr(part, "turned", True)  # for a map, only one direction depends on the batch
    if isinstance(part, nn.modules.instancenorm._InstanceNorm):
        return part.track_running_stats
    drops = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
    # Recurrent networks and attention contain their own dropout.
    own = isinstance(part, nn.RNNBase | nn.MultiheadAttention) and part.dropout > 0
    return drops or own or isinstance(part, nn.RReLU)


def autocast_state(device: str) -> list[tuple[str, bool, torch.dtype]]:
    """Returns, for this device and for the CPU, whether autocast is on and its dtype."""
    kinds = dict.fromkeys((device, "cpu"))
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]


@contextmanager
def autocast(states: list[tuple[str, bool, torch.dtype]]) -> Iterator[None]:
    """Sets autocast to a state, without its cache: cached copies may have no graph and would stop the gradient."""
    with ExitStack() as stack:
        for kind, enabled, dtype in states:
            stack.enter_context(torch.autocast(kind, enabled=enabled, dtype=dtype, cache_enabled=False))
        yield
