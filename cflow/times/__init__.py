"""Distributions of training times, and grids of sampling times; t = 0 is the base (noise), t = 1 the data."""

from cflow.times.argmax_clock import ArgmaxClock
from cflow.times.grids import cosine_grid, edm_grid, power_grid, quantile_grid, shifted_grid, uniform_grid
from cflow.times.law import Times
from cflow.times.laws import Beta, CosMap, Ends, Exponential, LogitNormal, Mode, Uniform
from cflow.times.nested import Antithetic, Shifted, Stratified, shift_times

__all__ = [
    "Antithetic",
    "ArgmaxClock",
    "Beta",
    "CosMap",
    "Ends",
    "Exponential",
    "LogitNormal",
    "Mode",
    "Shifted",
    "Stratified",
    "Times",
    "Uniform",
    "cosine_grid",
    "edm_grid",
    "power_grid",
    "quantile_grid",
    "shift_times",
    "shifted_grid",
    "uniform_grid",
]
