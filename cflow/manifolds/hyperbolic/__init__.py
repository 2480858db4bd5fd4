"""Hyperbolic spaces of curvature -1, in two charts."""

from cflow.manifolds.hyperbolic.lorentz import Lorentz
from cflow.manifolds.hyperbolic.poincare import Poincare

__all__ = ["Lorentz", "Poincare"]
