"""Token flows: discrete-state flow matching by continuous-time Markov chains.

A :class:`TokenFlow` is a denoiser, a source of tokens and a path. The path is a :class:`Mixture`: every token is one of
the source or, with the probability of a schedule, one of the data. From the posterior that the network predicts and a
rate follow the loss, the samplers and the bound on the likelihood.
"""

from cflow.ctmc.flow import TokenFlow
from cflow.ctmc.mixture import Mixture
from cflow.ctmc.posterior import Posterior, Sharpen
from cflow.ctmc.rates import (
    CampbellRate,
    Coefficients,
    Corrector,
    DetailedBalance,
    MinimalJump,
    Moment,
    Rate,
    TimeReversal,
)
from cflow.ctmc.samplers import (
    SAMPLERS,
    Analytic,
    Euler,
    FirstHitting,
    Ordered,
    PredictorCorrector,
    Process,
    Remasking,
    Sampler,
    Stepping,
    TauLeaping,
    Thinning,
    sampler_by_name,
)
from cflow.ctmc.schedules import Cosine, Linear, LogLinear, Polynomial, Schedule
from cflow.ctmc.sources import Given, Marginal, Mask, MaskAndUniform, Source, Uniform

__all__ = [
    "SAMPLERS",
    "Analytic",
    "CampbellRate",
    "Coefficients",
    "Corrector",
    "Cosine",
    "DetailedBalance",
    "Euler",
    "FirstHitting",
    "Given",
    "Linear",
    "LogLinear",
    "Marginal",
    "Mask",
    "MaskAndUniform",
    "MinimalJump",
    "Mixture",
    "Moment",
    "Ordered",
    "Polynomial",
    "Posterior",
    "PredictorCorrector",
    "Process",
    "Rate",
    "Remasking",
    "Sampler",
    "Schedule",
    "Sharpen",
    "Source",
    "Stepping",
    "TauLeaping",
    "Thinning",
    "TimeReversal",
    "TokenFlow",
    "Uniform",
    "sampler_by_name",
]
