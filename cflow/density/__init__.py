"""Densities for scientists: estimators with scikit-learn's interface, around any flow.

``FlowDensity`` estimates p(x), ``ConditionalFlowDensity`` p(y | x), ``FlowOutlierDetector`` flags rows with a stated
rate of false alarms, ``compare`` sets models beside each other on held-out rows, and ``dequantise`` spreads values on a
lattice, which have no density as they are.
"""

from cflow.density.comparison import Comparison, compare
from cflow.density.conditional import ConditionalFlowDensity
from cflow.density.density import FlowDensity
from cflow.density.flows import FLOWS, make_flow, objective_of
from cflow.density.lattice import dequantise, lattice_steps
from cflow.density.outliers import FlowOutlierDetector

__all__ = [
    "FLOWS",
    "Comparison",
    "ConditionalFlowDensity",
    "FlowDensity",
    "FlowOutlierDetector",
    "compare",
    "dequantise",
    "lattice_steps",
    "make_flow",
    "objective_of",
]
