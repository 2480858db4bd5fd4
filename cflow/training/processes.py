"""Communication between the processes of a run: failures, stops, and results of the main process."""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Processes", "is_main"]

FINE, INTERRUPTED, FAILED = range(3)


class Processes:
    """The processes of a run; all of them call every method at the same place.

    With one process everything is local. Decisions are exchanged over gloo, between hosts: a tiny collective (about 20
    microseconds on one machine) that does not wait for an accelerator.
    """

    def __init__(self, accelerator: Any, group_was_there: bool) -> None:
        self.accelerator = accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.is_main = accelerator.is_main_process
        self.several = self.world > 1
        self.group = None
        # True when all processes stop for the same reason at the same place, so collectives are safe at the end.
        self.together_out = not self.several
        if self.several:
            import torch.distributed as dist

            self.group = dist.group.WORLD if dist.get_backend() == "gloo" else _hosts(dist.group.WORLD)
            if not group_was_there:
                # This code opened the group, so it closes it; otherwise there is a warning when Python ends.
                atexit.register(_close)

    def maxima(self, *numbers: int) -> tuple[int, ...]:
        """Returns the maximum of each number over the processes."""
        if not self.several:
            return numbers
        import torch.distributed as dist

        shared = torch.tensor(numbers)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.group)
        return tuple(shared.tolist())

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """Returns the sum of each number over the processes."""
        if not self.several:
            return numbers
        import torch.distributed as dist

        shared = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(shared, group=self.group)
        return tuple(shared.tolist())

    def mean(self, value: Tensor) -> Tensor:
        """Returns the mean of a tensor, on any device, over the processes."""
        if not self.several:
            return value
        import torch.distributed as dist

        shared = value.to("cpu", torch.float64)
        dist.all_reduce(shared, group=self.group)
        return shared / self.world

    @contextmanager
    def together(self) -> Iterator[None]:
        """Runs a part that may fail on some processes; then all stop, and the others report which one failed."""
        if not self.several:
            yield
            return
        problem: BaseException | None = None
        try:
            yield
        except BaseException as error:  # raised again below, after all processes know
            problem = error
        kind = FINE if problem is None else INTERRUPTED if isinstance(problem, KeyboardInterrupt) else FAILED
        (worst,) = self.maxima(kind)
        if worst == FINE:
            return
        import torch.distributed as dist

        messages: list[str | None] = [None] * self.world
        dist.all_gather_object(
            messages, None if kind == FINE else f"{type(problem).__name__}: {problem}", group=self.group
        )
        self.together_out = True
        if kind == worst:
            raise problem
        rank, message = next((rank, each) for rank, each in enumerate(messages) if each is not None)
        if worst == INTERRUPTED:
            raise KeyboardInterrupt
        raise RuntimeError(f"fit: process {rank} of {self.world} failed, so all stop. {message}")

    def from_main(self, make: Callable[[], Any]) -> Any:
        """Returns or raises on every process what ``make`` does on the main one, the only one that calls it."""
        if not self.several:
            return make()
        import torch.distributed as dist

        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = make()
            except Exception as error:  # raised below on all processes, since the others wait for the broadcast
                outcome[1] = error
        dist.broadcast_object_list(outcome, 0, group=self.group)
        if outcome[1] is not None:
            self.together_out = True
            raise outcome[1]
        return outcome[0]


@functools.cache
def _hosts(world: Any) -> Any:
    """Opens a second group, between hosts, once."""
    return torch.distributed.new_group(backend="gloo")


def is_main() -> bool:
    """Returns whether this process is the main one of those that a launcher started, or the only one.

    It works before a process group is open, so scripts can decide early which process prints and writes.

    Example:
        >>> is_main()
        True
    """
    return os.environ.get("RANK", "0") == "0"


def group_is_open() -> bool:
    """Returns whether a process group already exists."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _close() -> None:
    if group_is_open():
        torch.distributed.destroy_process_group()
