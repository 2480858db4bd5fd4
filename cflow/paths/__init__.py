"""Probability paths between base and data, and what the network is asked to predict on them.

:class:`Path` is what flows of every kind are trained on, :class:`VelocityPath` one whose marginals a velocity carries.
:class:`AffinePath` and its schedules mix a base and a data sample; :class:`Interpolant` adds noise on the way, which
gives every pair of ends a score (:class:`BrownianBridge` is the one of Schroedinger bridges).
"""

from .affine import AffinePath
from .gammas import BrownianGamma, Gamma, QuadraticGamma, SigmoidGamma, SineGamma
from .interpolant import BrownianBridge, Interpolant
from .path import Path, PathSample, VelocityPath
from .reschedule import Rescheduled
from .schedules import Cosine, Linear, Polynomial, VariancePreserving

__all__ = [
    "AffinePath",
    "BrownianBridge",
    "BrownianGamma",
    "Cosine",
    "Gamma",
    "Interpolant",
    "Linear",
    "Path",
    "PathSample",
    "Polynomial",
    "QuadraticGamma",
    "Rescheduled",
    "SigmoidGamma",
    "SineGamma",
    "VariancePreserving",
    "VelocityPath",
]
