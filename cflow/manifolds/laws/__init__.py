"""Distributions on manifolds, with densities against the Riemannian volume."""

from cflow.manifolds.laws.uniform import Uniform

__all__ = ["Uniform"]
