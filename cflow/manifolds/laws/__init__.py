"""Distributions on manifolds, with densities against the Riemannian volume."""

from cflow.manifolds.laws.dirichlet import Dirichlet
from cflow.manifolds.laws.igso3 import IGSO3
from cflow.manifolds.laws.uniform import Uniform
from cflow.manifolds.laws.wrapped_normal import WrappedNormal

__all__ = ["IGSO3", "Dirichlet", "Uniform", "WrappedNormal"]
