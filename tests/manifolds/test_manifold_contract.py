"""Every manifold of the package passes the suite."""

import pytest

from cflow.manifolds import SO3, Euclidean, FlatTorus, Lorentz, Poincare, Power, Product, Simplex, Sphere
from cflow.testing import check_manifold

MANIFOLDS = [
    Sphere(1),
    Sphere(2),
    Sphere(3),
    Euclidean((2, 2)),
    FlatTorus(2),
    FlatTorus(1, 360.0),
    Lorentz(1),
    Lorentz(3),
    Poincare(2),
    Simplex(2),
    Simplex(4),
    Product({"place": Sphere(2), "angle": FlatTorus(1), "frame": Euclidean((2, 2))}, {"place": 2.0}),
    Product({"direction": Sphere(1), "angles": FlatTorus(2, 5.0)}, {"direction": 0.5}),
    Power(Sphere(2), 3),
    Power(FlatTorus(1), (2, 2)),
    SO3(),
]


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=lambda manifold: repr(manifold)[:40])
def test_every_manifold_conforms(manifold):
    check_manifold(manifold)
