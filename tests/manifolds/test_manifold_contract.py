"""Every manifold of the package passes the suite."""

import pytest

from cflow import manifolds
from cflow.testing import check_manifold

MANIFOLDS = [
    manifolds.Sphere(1),
    manifolds.Sphere(2),
    manifolds.Sphere(3),
    manifolds.SO3(),
]


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_every_manifold_conforms(manifold):
    check_manifold(manifold)
