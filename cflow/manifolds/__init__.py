"""Riemannian manifolds: points, tangent vectors, geodesics, volumes and densities, as functions of plain tensors."""

from cflow.manifolds.laws import Uniform
from cflow.manifolds.manifold import Manifold
from cflow.manifolds.mesh import Biharmonic, CommuteTime, Diffusion, Mesh
from cflow.manifolds.sphere import Sphere

__all__ = ["Biharmonic", "CommuteTime", "Diffusion", "Manifold", "Mesh", "Sphere", "Uniform"]
