"""Safe ends of a run: for numbers that are not finite, Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Interrupt", "Watch"]


class Watch:
    """Prevents updates of the weights with non-finite losses and gradients.

    On the CPU the result is read at every step. On an accelerator this would stall it, so the flag stays on the device,
    makes the fused optimizer skip this and all later updates, and is read when rows are recorded. (This path has been
    tested with the CPU's fused optimizer; it has not run on a GPU yet.) One non-finite loss stops all processes.
    """

    several = False  # whether there are several processes

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, deferred: bool) -> None:
        self.optimizer, self.deferred = optimizer, deferred
        self.first = torch.full((), -1, device=device)

    def allows(self, step: int, loss: Tensor, norm: Tensor) -> bool:
        """Returns whether the update is allowed, as far as the host knows."""
        fine = loss.isfinite() & norm.isfinite()
        if self.several:
            verdict = fine.to(torch.int32)
            torch.distributed.all_reduce(verdict, torch.distributed.ReduceOp.MIN)
            fine = verdict.bool()
        if not self.deferred:
            return bool(fine)
        self.first = torch.where((self.first < 0) & ~fine, step, self.first)
        self.optimizer.grad_scale, self.optimizer.found_inf = None, (self.first >= 0).float()
        return True

    def failed_at(self) -> int | None:
        """Returns the step of the first non-finite update, or None."""
        step = int(self.first) if self.deferred else -1
        return None if step < 0 else step


class Interrupt:
    """Turns Ctrl-C and SIGTERM into a flag that is read between steps; a second Ctrl-C interrupts immediately.

    Launchers of several processes repeat a signal that the terminal has already sent, so repeats within ``patience``
    seconds count as one.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self.name: str | None = None
        self.patience, self._since = patience, 0.0

    def _note(self, number: int, frame: Any) -> None:
        if self.name is None:
            self.name, self._since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() >= self._since + self.patience:
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles signals while the block runs; handlers that the caller has set stay active."""
        defaults = ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL))
        taken = []
        if threading.current_thread() is threading.main_thread():
            taken = [(number, usual) for number, usual in defaults if signal.getsignal(number) == usual]
        for number, _ in taken:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, usual in taken:
                signal.signal(number, usual)
