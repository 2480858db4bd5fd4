"""Densities for scientists: estimators with scikit-learn's interface, around any flow.

``FlowDensity`` estimates p(x), ``ConditionalFlowDensity`` p(y | x), ``FlowOutlierDetector`` flags rows with a stated
rate of false alarms, ``compare`` sets models beside each other on held-out rows, and ``dequantise`` spreads values on a
lattice, which have no density as they are.
"""

from .comparison import Comparison, compare
from .conditional import ConditionalFlowDensity
from .density import FlowDensity
from .flows import FLOWS, make_flow, objective_of
from .lattice import dequantise
from .outliers import FlowOutlierDetector

__all__ = [
    "FLOWS",
    "Comparison",
    "ConditionalFlowDensity",
    "FlowDensity",
    "FlowOutlierDetector",
    "compare",
    "dequantise",
    "make_flow",
    "objective_of",
]
