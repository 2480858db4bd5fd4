"""Samplers of token flows."""

from cflow.ctmc.samplers.corrected import PredictorCorrector
from cflow.ctmc.samplers.exact import FirstHitting, Thinning
from cflow.ctmc.samplers.names import SAMPLERS, sampler_by_name
from cflow.ctmc.samplers.ordered import Ordered
from cflow.ctmc.samplers.remasking import Remasking
from cflow.ctmc.samplers.sampler import Process, Sampler
from cflow.ctmc.samplers.stepping import Analytic, Euler, Stepping, TauLeaping

__all__ = [
    "SAMPLERS",
    "Analytic",
    "Euler",
    "FirstHitting",
    "Ordered",
    "PredictorCorrector",
    "Process",
    "Remasking",
    "Sampler",
    "Stepping",
    "TauLeaping",
    "Thinning",
    "sampler_by_name",
]
