"""Riemannian manifolds: points, tangent vectors, geodesics, volumes and densities, as functions of plain tensors."""

from cflow.manifolds.body_frame import BodyFrame
from cflow.manifolds.euclidean import Euclidean
from cflow.manifolds.flat_torus import FlatTorus
from cflow.manifolds.geoopt import Geoopt
from cflow.manifolds.hyperbolic import Lorentz, Poincare
from cflow.manifolds.laws import IGSO3, Dirichlet, Uniform, WrappedNormal
from cflow.manifolds.lie_group import LieGroup
from cflow.manifolds.manifold import Manifold
from cflow.manifolds.mesh import Biharmonic, CommuteTime, Diffusion, Mesh
from cflow.manifolds.power import Power
from cflow.manifolds.product import Product
from cflow.manifolds.se3 import SE3
from cflow.manifolds.simplex import Simplex
from cflow.manifolds.so3 import SO3
from cflow.manifolds.spd import SPD
from cflow.manifolds.sphere import Sphere

__all__ = [
    "IGSO3",
    "SE3",
    "SO3",
    "SPD",
    "Biharmonic",
    "BodyFrame",
    "CommuteTime",
    "Diffusion",
    "Dirichlet",
    "Euclidean",
    "FlatTorus",
    "Geoopt",
    "LieGroup",
    "Lorentz",
    "Manifold",
    "Mesh",
    "Poincare",
    "Power",
    "Product",
    "Simplex",
    "Sphere",
    "Uniform",
    "WrappedNormal",
]
