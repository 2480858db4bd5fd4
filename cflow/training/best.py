"""The weights of a run with the lowest validation loss: kept, and written back when the run ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cflow.registry import uncompiled_name
from cflow.training.ema import local

__all__ = ["Best"]


class Best:
    """Keeps the weights and buffers of a module from the step with the lowest validation loss.

    Every process keeps its own shard of sharded parameters. They are saved with every checkpoint, for resumed runs.

    Args:
        module: the module that is trained.
        patience: consecutive validations without improvement after which the run ends.
        every: steps between two validations.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> best, kept = Best(network, patience=3, every=100), network.weight.detach().clone()
        >>> best.look(100, 0.5)
        >>> nn.init.zeros_(network.weight) is network.weight
        True
        >>> best.look(200, 0.7)  # worse
        >>> best.copy_to_module()
        >>> best.step, bool((network.weight == kept).all()), best.is_over(300), best.is_over(400)
        (100, True, False, True)
    """

    def __init__(self, module: nn.Module, patience: int, every: int) -> None:
        self.patience, self.every = patience, every
        self.step, self.loss = 0, math.inf
        self._places = {
            uncompiled_name(f"{prefix}.{name}".removeprefix(".")): (holder, name)
            for prefix, part in module.named_modules()
            for holder in (part._parameters, part._buffers)
            for name, value in holder.items()
            if value is not None
        }
        self._kept = {name: each.detach().clone() for name, each in self._live().items()}

    def _live(self) -> dict[str, Tensor]:
        # By name, not by value: a module may replace the tensor of a buffer.
        return {name: holder[key] for name, (holder, key) in self._places.items()}

    @torch.no_grad()
    def look(self, step: int, loss: float) -> None:
        """Keeps the current weights of the module if the loss is the lowest so far; a loss of NaN never is."""
        if loss < self.loss:
            self.step, self.loss = step, loss
            for name, value in self._live().items():
                local(self._kept[name]).copy_(local(value))

    def is_over(self, step: int) -> bool:
        """Returns whether the last improvement is so long ago that the run ends."""
        return step - self.step >= self.patience * self.every

    @torch.no_grad()
    def copy_to_module(self) -> None:
        """Writes the best weights into the module."""
        for name, value in self._live().items():
            local(value).copy_(local(self._kept[name]))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the module the best weights in this context, then restores its own, bit for bit."""
        with torch.no_grad():
            own = {name: local(value).clone() for name, value in self._live().items()}
        self.copy_to_module()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self._live().items():
                    local(value).copy_(own[name])

    def state_dict(self) -> dict[str, Any]:
        """Returns the tensors for a checkpoint."""
        return dict(self._kept)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        for name, target in self._kept.items():
            local(target).copy_(local(state[name]))
