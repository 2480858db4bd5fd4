"""Conformance suites, one per contract, for the members of this package and for custom ones.

Each suite raises an ``AssertionError`` that states the property that fails. The suites run in float64 on the CPU, test
a copy of the object, and draw from fixed generators.
"""

from cflow.testing.bases import check_base
from cflow.testing.bijections import check_bijection, check_surjection, check_univariate
from cflow.testing.couplings import check_coupling
from cflow.testing.denoisers import check_denoiser
from cflow.testing.divergences import check_divergence
from cflow.testing.exact_denoiser import ExactDenoiser
from cflow.testing.fields import check_field
from cflow.testing.flows import check_flow
from cflow.testing.interpolants import GaussianBridgeField, check_interpolant
from cflow.testing.manifolds import check_manifold
from cflow.testing.objectives import check_objective
from cflow.testing.paths import GaussianField, check_path
from cflow.testing.relaxed import RelaxedTokenField
from cflow.testing.solvers import check_solver
from cflow.testing.times import check_times
from cflow.testing.token_flows import check_token_flow

__all__ = [
    "ExactDenoiser",
    "GaussianBridgeField",
    "GaussianField",
    "RelaxedTokenField",
    "check_base",
    "check_bijection",
    "check_coupling",
    "check_denoiser",
    "check_divergence",
    "check_field",
    "check_flow",
    "check_interpolant",
    "check_manifold",
    "check_objective",
    "check_path",
    "check_solver",
    "check_surjection",
    "check_times",
    "check_token_flow",
    "check_univariate",
]
