"""Conformance suites: one per contract, for the members shipped here and for yours.

Each raises an ``AssertionError`` that names the property which fails. They run in float64 on the CPU, take a copy of
what they are given, and draw from fixed generators.
"""

from cflow.solvers.conformance import check_solver
from cflow.testing.bijections import check_bijection, check_surjection, check_univariate
from cflow.testing.couplings import check_coupling
from cflow.testing.flows import check_flow
from cflow.testing.interpolants import GaussianBridgeField, check_interpolant
from cflow.testing.paths import GaussianField, check_path

__all__ = [
    "GaussianBridgeField",
    "GaussianField",
    "check_bijection",
    "check_coupling",
    "check_flow",
    "check_interpolant",
    "check_path",
    "check_solver",
    "check_surjection",
    "check_univariate",
]
