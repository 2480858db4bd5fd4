"""The contract of samplers, and what they work on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from cflow.arguments import is_integer
from cflow.draws import Source

__all__ = ["Process", "Sampler", "require_steps"]


@dataclass
class Process:
    """A jump process that a sampler simulates.

    Attributes:
        path: the path, bound to its source.
        network: the denoiser with context and guidance, ``(t [B], x) -> logits``.
        start: the states at ``t = 0``, ``[B, *event]``.
        free: the positions that move, bool ``[B, *event]``. Default: None, all of them.
        generator: the source of random numbers, or a list with one for each row.
        reads_time: whether the network depends on the time. Otherwise logits are used again while no state changes.
        self_conditioned: whether the network also gets the logits of the call before.
    """

    path: Any
    network: Callable[..., Tensor]
    start: Tensor
    free: Tensor | None = None
    generator: Source = None
    reads_time: bool = True
    self_conditioned: bool = False
    _kept: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def predict(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluates the network at times ``t``, ``[]`` or ``[B]``, and states ``x [B, *event]``."""
        before = self._kept
        if self.self_conditioned:
            logits = self.network(t.expand(len(x)), x, previous=None if before is None else before[1])
        elif not self.reads_time and before is not None and torch.equal(before[0], x):
            return before[1]
        else:
            logits = self.network(t.expand(len(x)), x)
        if self.self_conditioned or not self.reads_time:
            self._kept = x, logits
        return logits

    def movable(self) -> Tensor:
        """Returns the positions that move, ``[B, *event]``."""
        return torch.ones_like(self.start, dtype=torch.bool) if self.free is None else self.free


class Sampler(ABC):
    """Simulates the jumps of a token flow: the base class of samplers.

    A subclass writes :meth:`states`. Samplers are frozen dataclasses, so that they can be compared, printed and saved.

    Attributes:
        scales: whether the sampler works with guidance that changes how fast tokens jump.
    """

    scales: ClassVar[bool] = False

    def needs_probs(self, path: Any) -> bool:
        """Returns whether the source's probabilities are used on a ``path``: base and data must then be independent."""
        return path.checked(getattr(self, "rate", None), path.sampling_rate).needs_probs

    @abstractmethod
    def states(self, process: Process) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields times, ``[]`` or ``[B]``, and states ``[B, *event]`` of a process after each step, up to ``t = 1``."""


def require_steps(owner: Any, name: str = "steps") -> None:
    """Raises unless the number of steps is a positive integer."""
    value = getattr(owner, name)
    if not is_integer(value, 1):
        raise ValueError(f"{type(owner).__name__}({name}={value!r}): pass a positive integer, such as 64.")
