"""Riemannian manifolds: points, tangent vectors, geodesics, volumes and densities, as functions of plain tensors."""

from cflow.manifolds.laws import Uniform
from cflow.manifolds.manifold import Manifold
from cflow.manifolds.sphere import Sphere

__all__ = ["Manifold", "Sphere", "Uniform"]
