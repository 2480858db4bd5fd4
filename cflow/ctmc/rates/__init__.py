"""Rates of jumps; all of them lead through the same marginals."""

from cflow.ctmc.rates.campbell import CampbellRate
from cflow.ctmc.rates.rate import Coefficients, Moment, Rate
from cflow.ctmc.rates.replacing import Corrector, DetailedBalance, MinimalJump, Replacing
from cflow.ctmc.rates.time_reversal import TimeReversal

__all__ = [
    "CampbellRate",
    "Coefficients",
    "Corrector",
    "DetailedBalance",
    "MinimalJump",
    "Moment",
    "Rate",
    "Replacing",
    "TimeReversal",
]
