"""Probability paths between base and data, and what the network is asked to predict on them.

:class:`Path` is what flows of every kind are trained on, :class:`VelocityPath` one whose marginals a velocity carries.
:class:`AffinePath` and its schedules mix a base and a data sample; :class:`Interpolant` adds noise on the way, which
gives every pair of ends a score (:class:`BrownianBridge` is the one of Schroedinger bridges).
"""

from cflow.paths.affine import AffinePath
from cflow.paths.gammas import BrownianGamma, Gamma, QuadraticGamma, SigmoidGamma, SineGamma
from cflow.paths.interpolant import BrownianBridge, Interpolant
from cflow.paths.path import Path, PathSample, VelocityPath
from cflow.paths.reschedule import Rescheduled
from cflow.paths.schedules import Cosine, Linear, Polynomial, VariancePreserving

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
