"""Training and figures that the recipes of places and of angles share."""

import math
from pathlib import Path

import torch
from common import say, say_resumed

from cflow import training


def train(flow, objective, parts: dict[str, torch.Tensor], options, out: Path) -> training.Run:
    """Trains a flow of rows in degrees on the parts ``train`` and ``validation``."""
    validation = parts["validation"].float()
    if objective.coupling is not None:  # matching: a loss of random times needs many draws
        validation = validation.repeat(math.ceil(4096 / len(validation)), 1)
    run = training.fit(
        flow,
        objective,
        parts["train"].float(),
        steps=options.steps,
        batch_size=min(options.batch_size, len(parts["train"])),
        lr=options.lr,
        schedule=training.Cosine(warmup=min(200, options.steps // 5)),
        validation=validation,
        validate_every=max(1, options.steps // 20),
        patience=options.patience,
        checkpoint_every=max(1, options.steps // 10),
        seed=options.seed,
        out=out,
        resume=options.resume,
        progress=True,
    )
    if options.resume:
        say_resumed(run)
    say(f"trained {run.steps} steps in {run.seconds:.0f} s; the weights of step {run.best_step} are kept")
    return run


def estimate(scores: torch.Tensor) -> tuple[float, float]:
    """Returns mean and standard error."""
    return float(scores.mean()), float(scores.std() / math.sqrt(len(scores)))
