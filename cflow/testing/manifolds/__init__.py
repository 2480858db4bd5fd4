"""Conformance of manifolds: geometry, derivatives, volumes and the form of every method."""

from cflow.testing.manifolds.suite import check_manifold

__all__ = ["check_manifold"]
