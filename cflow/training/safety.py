"""What stops a run in good order: numbers that are not finite, Ctrl-C, SIGTERM."""

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
    """Keeps non-finite losses and gradients out of the weights.

    On the CPU the verdict is read at every step. On an accelerator that would stall it: the flag stays there, makes the
    fused optimizer skip this and all later updates, and is read when rows are recorded. (That path has been tested with
    the CPU's fused optimizer; it has not run on a GPU yet.) Of several processes one bad loss stops all.
    """

    several = False  # processes

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, deferred: bool) -> None:
        self.optimizer, self.deferred = optimizer, deferred
        self.first = torch.full((), -1, device=device)

    def allows(self, step: int, loss: Tensor, norm: Tensor) -> bool:
        """Returns whether the update may go ahead, as far as the host knows."""
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
        """Reads the step of the first bad update, where there was one."""
        step = int(self.first) if self.deferred else -1
        return None if step < 0 else step


class Interrupt:
    """Turns Ctrl-C and SIGTERM into a flag that is read between steps; a second Ctrl-C interrupts at once.

    Launchers of several processes pass on what the terminal has sent already: there, repeats within ``patience``
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
        """Listens while the block runs; handlers that the caller has set are left alone."""
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
