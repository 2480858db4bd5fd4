"""Density estimators with scikit-learn's interface, for any flow.

``FlowDensity`` estimates p(x), and ``ConditionalFlowDensity`` p(y | x). ``FlowOutlierDetector`` flags rows at a chosen
rate of false alarms. ``compare`` compares models on held-out rows. ``dequantise`` adds noise to whole or rounded
numbers, which have no density otherwise.
"""

from cflow.density.comparison import Comparison, compare
from cflow.density.conditional import ConditionalFlowDensity
from cflow.density.density import FlowDensity
from cflow.density.flows import FLOWS, make_flow, objective_of
from cflow.density.lattice import dequantise, lattice_steps
from cflow.density.outliers import FlowOutlierDetector
from cflow.density.rows import copied_rows
from cflow.density.units import tails

__all__ = [
    "FLOWS",
    "Comparison",
    "ConditionalFlowDensity",
    "FlowDensity",
    "FlowOutlierDetector",
    "compare",
    "copied_rows",
    "dequantise",
    "lattice_steps",
    "make_flow",
    "objective_of",
    "tails",
]
