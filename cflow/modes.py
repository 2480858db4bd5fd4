"""Training and evaluation mode: kept, restored, and told where it changes what is computed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cflow.arguments import calling_line

__all__ = ["evaluating", "looks_at_batch", "modes_kept", "tell_training"]


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


def tell_training(module: nn.Module, method: str) -> None:
    """Warns where results would be those of training: drawn with dropout, or with the statistics of the batch at hand.

    Asked by what samples and evaluates without gradients: losses, which have them, are meant to be so.

    Example:
        >>> with torch.no_grad(), warnings.catch_warnings(record=True) as told:
        ...     tell_training(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), "sample")
        >>> str(told[0].message)[:63]
        'flow.sample: in training mode, in which 1 (Dropout) draws or ch'
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    for name, part in module.named_modules():
        if part.training and _differs(part, method):
            warnings.warn_explicit(
                f"flow.{method.removeprefix('r')}: in training mode, in which {name} ({type(part).__name__}) draws or "
                f"changes with the batch, so the result is not the trained flow's; call flow.eval() first.",
                UserWarning,
                **calling_line(),
            )
            return


def looks_at_batch(part: nn.Module) -> bool:
    """Says whether what a part computes for one row depends, in training mode, on the others of the batch.

    Example:
        >>> looks_at_batch(nn.BatchNorm1d(2)), looks_at_batch(nn.LayerNorm(2))
        (True, False)
    """
    inside = any(getattr(each, "changes", False) for each in part.children())
    return isinstance(part, nn.modules.batchnorm._BatchNorm) or (getattr(part, "changes", False) and not inside)


def _differs(part: nn.Module, method: str) -> bool:
    """Says whether a part computes something else in training mode."""
    if looks_at_batch(part):
        return method != "sample" or getattr(part, "turned", True)  # the other direction of a map does not
    if isinstance(part, nn.modules.instancenorm._InstanceNorm):
        return part.track_running_stats
    drops = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
    # Recurrent networks and attention drop by themselves.
    own = isinstance(part, nn.RNNBase | nn.MultiheadAttention) and part.dropout > 0
    return drops or own or isinstance(part, nn.RReLU)
