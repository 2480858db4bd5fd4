"""Training of an estimator's flow, with held-out rows that choose the best weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cflow.flow import BaseFlow
from cflow.objectives import Objective
from cflow.training import Cosine, fit

__all__ = ["Learned", "Rows", "Settings", "learn"]

CHUNK = 4096  # rows evaluated at once
ENOUGH = 2048  # evaluations that a held-out loss with random draws averages over


@dataclass
class Rows:
    """Data ``[N, D]``, context ``[N, C]`` or None, and weights ``[N]`` that sum to N, or None for equal weights."""

    x: Tensor
    context: Tensor | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> Rows:
        """Returns the chosen rows; their weights are scaled to sum to their number."""
        weights = None if self.weights is None else self.weights[rows]
        weights = None if weights is None else weights * (len(rows) / weights.sum())
        return Rows(self.x[rows], None if self.context is None else self.context[rows], weights)


@dataclass
class Settings:
    """The training options of an estimator's constructor."""

    max_steps: int
    batch_size: int
    lr: float
    weight_decay: float
    validation_fraction: float
    check_every: int
    patience: int
    device: str
    seed: int
    verbose: bool


@dataclass
class Learned:
    """Results of training: rows of the history, number of steps, and the step whose weights were kept."""

    history: list[dict[str, Any]]
    steps: int
    best_step: int


@dataclass
class HeldOut:
    """The loss of a flow on held-out rows, as a ``validation`` of ``training.fit``."""

    rows: Rows
    objective: Objective
    seed: int

    @torch.no_grad()
    def __call__(self, flow: BaseFlow) -> float:
        """Computes the weighted mean loss, always with the same draws, and over several draws if the loss is random."""
        generator = torch.Generator(flow.device).manual_seed(self.seed)
        total = 0.0
        rounds = math.ceil(ENOUGH / len(self.rows)) if self.objective.draws else 1
        for _ in range(rounds):
            for part in torch.arange(len(self.rows)).split(CHUNK):
                x = self.rows.x[part]
                context = None if self.rows.context is None else self.rows.context[part]
                losses = self.objective(flow, x, context, generator=generator).double().cpu()
                total += float((losses if self.rows.weights is None else losses * self.rows.weights[part]).sum())
        return total / (rounds * len(self.rows))


def learn(flow: BaseFlow, objective: Objective, rows: Rows, settings: Settings) -> Learned:
    """Trains a flow in place with :func:`cflow.training.fit`, and keeps the best weights on the held-out rows.

    The seed draws the held-out rows, a share ``validation_fraction``. Their loss is computed before the first step and
    every ``check_every`` steps. Training ends after ``patience`` checks without improvement. Without held-out rows it
    takes all steps and keeps the last weights.
    """
    count = round(settings.validation_fraction * len(rows))
    count = min(max(count, 1), len(rows) - 1) if settings.validation_fraction > 0 else 0
    order = torch.from_numpy(np.random.default_rng(settings.seed).permutation(len(rows)))
    trained = rows.take(order[count:])
    batch_size = min(settings.batch_size, len(trained))
    data = trained.x if trained.context is None else (trained.x, trained.context)
    watched = {}
    if count:
        held = HeldOut(rows.take(order[:count]), objective, settings.seed)
        watched = {"validation": held, "validate_every": settings.check_every, "patience": settings.patience}
    run = fit(
        flow,
        objective,
        data,
        steps=settings.max_steps,
        weights=trained.weights,
        batch_size=batch_size,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        schedule=Cosine(warmup=min(100, settings.max_steps // 10)),
        ema=None,  # the checked weights are the kept weights
        log_every=settings.check_every,
        seed=settings.seed,
        device=settings.device,
        progress=settings.verbose,
        **watched,
    )
    return Learned([dict(row) for row in run.history], run.steps, run.steps if run.best_step is None else run.best_step)
