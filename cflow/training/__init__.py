"""Training: the loop, its batches, schedules, moving average, checkpoints and records."""

from cflow.training.bespoke import fit_bespoke
from cflow.training.ema import EMA
from cflow.training.fit import Run, fit
from cflow.training.processes import is_main
from cflow.training.schedules import Constant, Cosine, Polynomial

__all__ = ["EMA", "Constant", "Cosine", "Polynomial", "Run", "fit", "fit_bespoke", "is_main"]
