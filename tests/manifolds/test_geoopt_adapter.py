"""Manifolds of geoopt behind the contract; and as an oracle, in float64, for those of the package."""

import warnings

import pytest
import torch

from cflow.manifolds import Geoopt, Lorentz, Poincare, Sphere
from cflow.testing.manifolds.form import check_copied, check_form
from cflow.testing.manifolds.points import Sample

with warnings.catch_warnings():
    warnings.simplefilter("error")  # its import is quiet
    PAIRS = [
        (Sphere(2), Geoopt("Sphere", 3)),
        (Poincare(3), Geoopt("PoincareBall", 3)),
        (Lorentz(2), Geoopt("Lorentz", 3)),
    ]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda each: type(each).__name__)
def test_geoopt_agrees(ours, theirs):
    sample = Sample(ours, torch.float64, rounding=1e5)
    x, y = sample.points(20), sample.points(20)
    u, v = sample.tangents(x), sample.tangents(x)
    assert theirs.dim == ours.dim
    for name, arguments in (
        ("exp", (x, 0.3 * u)),
        ("log", (x, y)),
        ("dist", (x, y)),
        ("inner", (x, u, v)),
        ("to_tangent", (x, torch.sin(u + v))),
        ("log_volume_element", (x,)),
        *([("transport", (x, y, u))] if theirs.manifold != "Sphere" else []),
    ):
        found = getattr(theirs, name)(*arguments)
        assert type(found) is torch.Tensor
        sample.same(found, getattr(ours, name)(*arguments), name)


def test_the_adapter_has_the_form_of_a_manifold():
    """Shapes, masks, copies and saving; not the whole suite, since geoopt's distances start at 1e-7 in float64."""
    sample = Sample(Geoopt("PoincareBall", 2, {"c": 0.5}), torch.float64, rounding=1e5)
    check_form(sample)
    check_copied(sample, saved=True)


def test_projection_has_the_orthogonal_derivative_also_where_geoopt_has_another(float64):
    lorentz = Geoopt("Lorentz", 3)
    x = lorentz.exp(lorentz.origin(), torch.tensor([0.0, 1.0, -0.5]))
    frame = lorentz.frame(x)
    jacobian = torch.func.jacfwd(lorentz.project)(x)
    torch.testing.assert_close(jacobian, frame.mT @ frame)
    other = torch.func.jacfwd(lorentz._geoopt.projx)(x)
    assert (other - jacobian).abs().max() > 0.1


def test_unknown_names_are_refused():
    for name in ("Torus", "ManifoldTensor"):
        with pytest.raises(ValueError, match="geoopt has no manifold of this name"):
            Geoopt(name, 3)
