"""Probability paths between base and data, and what the network predicts on them.

:class:`Path` is the contract for flows of every kind. A :class:`VelocityPath` has marginals that move with a velocity.
:class:`Dirichlet` leads to tokens on the simplex, and :class:`Fisher` on a sphere.
:class:`Geodesic` follows the shortest curves of a manifold, and :class:`Premetric` needs only a distance on it.
:class:`AffinePath` and its schedules are weighted sums of a base and a data sample. An :class:`Interpolant` also adds
noise between the ends, so that the score exists for any two distributions (:class:`BrownianBridge` is the path of
Schroedinger bridges).
"""

from cflow.paths.affine import AffinePath
from cflow.paths.dirichlet import Dirichlet
from cflow.paths.fisher import Fisher
from cflow.paths.gammas import BrownianGamma, Gamma, QuadraticGamma, SigmoidGamma, SineGamma
from cflow.paths.geodesic import Geodesic
from cflow.paths.interpolant import BrownianBridge, Interpolant
from cflow.paths.path import Path, PathSample, VelocityPath
from cflow.paths.premetric import Premetric
from cflow.paths.reschedule import Rescheduled
from cflow.paths.schedules import Cosine, Linear, Polynomial, VariancePreserving

__all__ = [
    "AffinePath",
    "BrownianBridge",
    "BrownianGamma",
    "Cosine",
    "Dirichlet",
    "Fisher",
    "Gamma",
    "Geodesic",
    "Interpolant",
    "Linear",
    "Path",
    "PathSample",
    "Polynomial",
    "Premetric",
    "QuadraticGamma",
    "Rescheduled",
    "SigmoidGamma",
    "SineGamma",
    "VariancePreserving",
    "VelocityPath",
]
