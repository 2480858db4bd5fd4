"""The exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cflow.registry import register, uncompiled_name

__all__ = ["EMA", "Average"]


@register("training.EMA")
@dataclass(frozen=True)
class EMA:
    r"""The settings of the exponential moving average of the weights.

    .. math:: \bar w_n = d_n \bar w_{n-1} + (1 - d_n) w_n, \qquad d_n = \min\bigl(d, (1 + n) / (10 + n)\bigr)

    Args:
        decay: the decay :math:`d`, in [0, 1); the average is over about :math:`1 / (1 - d)` steps.
        warmup: whether early steps have a smaller decay. Without it :math:`d_n = d`, and the untrained weights
            contribute for about :math:`1 / (1 - d)` steps.

    Raises:
        ValueError: if ``decay`` is outside [0, 1).

    Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992, for averaging; the
    warm-up is that of TensorFlow's ExponentialMovingAverage.

    Example:
        >>> EMA(0.999).at(1), EMA(0.999).at(10**6)
        (0.18181818181818182, 0.999)
    """

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"EMA(decay={self.decay}): this is not a decay; pass a value in [0, 1).")

    def at(self, update: int) -> float:
        """Returns the decay of an update; the first ``update`` is number 1."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay


class Average:
    """Keeps the average of a module's trainable parameters and floating buffers, in float32 or better.

    Integer buffers, and floating ones that start with infinities (masks), are copied, not averaged. Frozen parameters
    are omitted, and buffers of modules with ``fixed_buffers`` (bases with many given samples). Every process averages
    its own shard of sharded parameters (DTensor), without communication.

    Cost: one fused ``lerp`` over all tensors per update and one copy of the weights in memory.
    """

    def __init__(self, module: nn.Module, config: EMA) -> None:
        self.config, self.updates = config, 0
        trained = {name: each for name, each in module.named_parameters() if each.requires_grad}
        self._parameters = list(trained.values())
        # By name, not by value: a module may replace the tensor of a buffer.
        places, seen = {}, set()
        for prefix, part in module.named_modules():
            if getattr(part, "fixed_buffers", False):
                continue
            for name, value in part._buffers.items():
                if value is not None and id(value) not in seen:
                    seen.add(id(value))
                    places[f"{prefix}.{name}".removeprefix(".")] = (part._buffers, name)
        averaged = {
            name: place
            for name, place in places.items()
            if place[0][place[1]].is_floating_point() and place[0][place[1]].isfinite().all()
        }
        copied = {name: place for name, place in places.items() if name not in averaged}
        self._averaged_buffers, self._copied_buffers = list(averaged.values()), list(copied.values())
        self._names = [uncompiled_name(name) for name in (*trained, *averaged)], [*map(uncompiled_name, copied)]
        self.shadow = [_wide(value.detach()).clone() for value in self._live()]
        self.copies = [value.detach().clone() for value in self._copied()]

    def _live(self) -> list[Tensor]:
        return [*self._parameters, *(buffers[name] for buffers, name in self._averaged_buffers)]

    def _copied(self) -> list[Tensor]:
        return [buffers[name] for buffers, name in self._copied_buffers]

    @torch.no_grad()
    def update(self) -> None:
        """Updates the average with the current weights."""
        self.updates += 1
        if self.shadow:
            torch._foreach_lerp_(
                [local(value) for value in self.shadow],
                [_wide(local(value)) for value in self._live()],
                1 - self.config.at(self.updates),
            )
        if self.copies:
            torch._foreach_copy_(self.copies, self._copied())

    @torch.no_grad()
    def copy_to_module(self) -> None:
        """Writes the average into the module."""
        for target, value in zip([*self._live(), *self._copied()], [*self.shadow, *self.copies]):
            local(target).copy_(local(value))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the module the average in this context, then restores its own weights, bit for bit."""
        with torch.no_grad():
            raw = [local(value).clone() for value in [*self._live(), *self._copied()]]
        self.copy_to_module()
        try:
            yield
        finally:
            with torch.no_grad():
                for target, value in zip([*self._live(), *self._copied()], raw):
                    local(target).copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Returns the tensors for a checkpoint, by the names of the module's tensors."""
        averaged, copied = self._names
        return {
            "updates": torch.tensor(self.updates),
            "shadow": dict(zip(averaged, self.shadow, strict=True)),
            "copies": dict(zip(copied, self.copies, strict=True)),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.updates = int(state["updates"])
        for part, own in self.state_dict().items():
            if part != "updates":
                for name, target in own.items():
                    local(target).copy_(local(state[part][name]))


def local(value: Tensor) -> Tensor:
    """Returns the shard of this process of a sharded tensor (DTensor), and other tensors unchanged."""
    return value.to_local() if hasattr(value, "to_local") else value


def _wide(value: Tensor) -> Tensor:
    """Converts half precision, too coarse for steps of a thousandth, to float32; other tensors stay unchanged."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
