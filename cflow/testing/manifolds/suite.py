"""The suite."""

from __future__ import annotations

import torch

from cflow.manifolds import Manifold
from cflow.testing.manifolds.calculus import check_derivatives, check_divergence_of_fields, check_volume_elements
from cflow.testing.manifolds.form import check_copied, check_form
from cflow.testing.manifolds.geometry import check_geometry
from cflow.testing.manifolds.points import Sample
from cflow.testing.manifolds.volumes import check_uniform

__all__ = ["check_manifold"]


def check_manifold(manifold: Manifold, *, rounding: float = 64, saved: bool = True) -> None:
    """Checks that a manifold fulfils the contract of :class:`cflow.manifolds.Manifold`, in float32 and float64.

    The suite checks shapes, broadcasting, masks and copies. It compares ``exp``, ``log``, ``dist``, ``geodesic``,
    ``transport``, ``frame``, ``to_tangent`` and ``project`` with each other, at distances from zero and 1e-6 to the cut
    locus. Derivatives must be finite there in forward and reverse mode, twice, and agree. Volume elements, the
    determinant of ``exp`` and divergences are compared with derivatives, uniform draws with the volumes of balls.

    Points are uniform if the volume is finite; elsewhere they lie about one from the origin.

    Args:
        manifold: the manifold.
        rounding: the largest error, in units of the dtype's rounding and relative to the largest coordinate; what adds
            up errors (a transport and back, a determinant) may have 4 to 100 times more. Default: 64, which is 8e-6 in
            float32 and 1.4e-14 in float64.
        saved: whether the manifold can be saved.

    The comparison of draws and volumes fails for a correct manifold once in two million comparisons; the seed is fixed.

    Raises:
        AssertionError: if a property fails; the message states which.

    Example:
        >>> from cflow.manifolds import Sphere
        >>> check_manifold(Sphere(2))
    """
    for dtype in (torch.float64, torch.float32):
        sample = Sample(manifold, dtype, rounding)
        check_form(sample)
        check_geometry(sample)
        check_derivatives(sample)
    precise = Sample(manifold, torch.float64, rounding)
    check_divergence_of_fields(precise)
    check_volume_elements(precise)
    check_uniform(precise)
    check_copied(precise, saved)
