"""Training: the loop, its batches, schedules, moving average, checkpoints and records."""

from cflow.training.bespoke import fit_bespoke
from cflow.training.ema import EMA
from cflow.training.fitting import Run, fit
from cflow.training.pairs import Pairs, generate_pairs
from cflow.training.processes import is_main
from cflow.training.schedules import Constant, Cosine, Polynomial
from cflow.training.straightening import distill, reflow

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
