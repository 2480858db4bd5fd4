"""Training: the loop, its batches, schedules, moving average, checkpoints and records."""

from cflow.training.ema import EMA
from cflow.training.few_step.bespoke import fit_bespoke
from cflow.training.few_step.pairs import Pairs, generate_pairs
from cflow.training.few_step.straightening import distill, reflow
from cflow.training.fitting import Run, fit
from cflow.training.processes import is_main
from cflow.training.schedules import Constant, Cosine, Polynomial

__all__ = [
    "EMA",
    "Constant",
    "Cosine",
    "Pairs",
    "Polynomial",
    "Run",
    "distill",
    "fit",
    "fit_bespoke",
    "generate_pairs",
    "is_main",
    "reflow",
]
