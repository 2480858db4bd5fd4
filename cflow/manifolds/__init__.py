"""Riemannian manifolds: points, tangent vectors, geodesics, volumes and densities, as functions of plain tensors."""

from cflow.manifolds.euclidean import Euclidean
from cflow.manifolds.flat_torus import FlatTorus
from cflow.manifolds.laws import Uniform
from cflow.manifolds.lie_group import LieGroup
from cflow.manifolds.manifold import Manifold
from cflow.manifolds.mesh import Biharmonic, CommuteTime, Diffusion, Mesh
from cflow.manifolds.power import Power
from cflow.manifolds.product import Product
from cflow.manifolds.se3 import SE3
from cflow.manifolds.so3 import SO3
from cflow.manifolds.spd import SPD
from cflow.manifolds.sphere import Sphere

__all__ = [
    "SE3",
    "SO3",
    "SPD",
    "Biharmonic",
    "CommuteTime",
    "Diffusion",
    "Euclidean",
    "FlatTorus",
    "LieGroup",
    "Manifold",
    "Mesh",
    "Power",
    "Product",
    "Sphere",
    "Uniform",
]
