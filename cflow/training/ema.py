"""The exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cflow.registry import register

__all__ = ["EMA", "Average"]


@register
@dataclass(frozen=True)
class EMA:
    r"""Says how the weights are averaged over the steps.

    .. math:: \bar w_n = d_n \bar w_{n-1} + (1 - d_n) w_n, \qquad d_n = \min\bigl(d, (1 + n) / (10 + n)\bigr)

    Without ``warmup`` :math:`d_n = d` throughout, and the untrained weights are felt for about :math:`1 / (1 - d)`
    steps.

    Raises:
        ValueError: if ``decay`` is outside [0, 1).

    Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992, for averaging at all;
    the warm-up is the one of TensorFlow's ExponentialMovingAverage.

    Example:
        >>> EMA(0.999).at(1), EMA(0.999).at(10**6)
        (0.18181818181818182, 0.999)
    """

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(
                f"EMA(decay={self.decay}): the average would not follow the weights; pass a value in [0, 1)."
            )

    def at(self, update: int) -> float:
        """Gives the decay of an update; the first is number 1."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay


class Average:
    """Keeps the average of a module's trainable parameters and floating buffers, in float32 or better.

    Integer buffers, and floating ones that start with infinities (masks), are copied as they are. Frozen parameters
    are left alone. Sharded parameters (DTensor) are averaged shard by shard.

    Cost: one fused ``lerp`` over all tensors per update and one copy of the weights in memory.
    """

    def __init__(self, module: nn.Module, config: EMA) -> None:
        self.config, self.updates = config, 0
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # By place and not by value: a module may put another tensor into its buffer.
        places, seen = [], set()
        for part in module.modules():
            for name, value in part._buffers.items():
                if value is not None and id(value) not in seen:
                    seen.add(id(value))
                    places.append((part._buffers, name))
        averaged = [
            bool(buffers[name].is_floating_point() and buffers[name].isfinite().all()) for buffers, name in places
        ]
        self._averaged_buffers = [place for place, is_averaged in zip(places, averaged) if is_averaged]
        self._copied_buffers = [place for place, is_averaged in zip(places, averaged) if not is_averaged]
        self.shadow = [_wide(value.detach()).clone() for value in self._live()]
        self.copies = [value.detach().clone() for value in self._copied()]

    def _live(self) -> list[Tensor]:
        return [*self._parameters, *(buffers[name] for buffers, name in self._averaged_buffers)]

    def _copied(self) -> list[Tensor]:
        return [buffers[name] for buffers, name in self._copied_buffers]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the present weights."""
        self.updates += 1
        if self.shadow:
            torch._foreach_lerp_(
                self.shadow, [_wide(value) for value in self._live()], 1 - self.config.at(self.updates)
            )
        if self.copies:
            torch._foreach_copy_(self.copies, self._copied())

    @torch.no_grad()
    def copy_to_module(self) -> None:
        """Writes the average into the module."""
        for target, value in zip([*self._live(), *self._copied()], [*self.shadow, *self.copies]):
            target.copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Lends the module the average and gives it its own weights back, to the bit."""
        with torch.no_grad():
            raw = [value.clone() for value in [*self._live(), *self._copied()]]
        self.copy_to_module()
        try:
            yield
        finally:
            with torch.no_grad():
                for target, value in zip([*self._live(), *self._copied()], raw):
                    target.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Gives what a checkpoint keeps."""
        return {"updates": self.updates, "shadow": self.shadow, "copies": self.copies}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self.updates = state["updates"]
        for target, value in zip([*self.shadow, *self.copies], [*state["shadow"], *state["copies"]], strict=True):
            target.copy_(value)


def _wide(value: Tensor) -> Tensor:
    """Widens half precision, whose eight bits would lose steps of a thousandth; leaves other tensors as they are."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
