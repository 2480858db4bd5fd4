"""Riemannian manifolds: points, tangent vectors, geodesics, volumes and densities, as functions of plain tensors."""

from cflow.manifolds.laws import Uniform
from cflow.manifolds.lie_group import LieGroup
from cflow.manifolds.manifold import Manifold
from cflow.manifolds.mesh import Biharmonic, CommuteTime, Diffusion, Mesh
from cflow.manifolds.so3 import SO3
from cflow.manifolds.sphere import Sphere

__all__ = ["SO3", "Biharmonic", "CommuteTime", "Diffusion", "LieGroup", "Manifold", "Mesh", "Sphere", "Uniform"]
