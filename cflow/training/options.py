"""The options of ``fit`` as one object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cflow.training.ema import EMA

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """The arguments of ``training.fit``, which describes them."""

    steps: int
    batch_size: int
    lr: float
    seed: int
    out: Path | None
    resume: bool
    validate_every: int
    patience: int | None
    weight_decay: float
    betas: tuple[float, float]
    clip: float | None
    schedule: Callable[[int, int], float]
    ema: EMA | None
    precision: str
    accumulate: int
    pool: int
    across_processes: bool
    prefetch: int | None
    workers: int | None
    checkpoint_every: int
    keep: int
    save_model: bool
    log_every: int
    device: torch.device | str | None
    progress: bool
    log_with: tuple[Any, ...]
    callbacks: tuple[Callable[[int, Any, dict[str, Any] | None], Any], ...]
