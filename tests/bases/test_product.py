"""Different bases for the columns of a table."""

import pytest
import torch

from cflow import bases, discrete
from cflow.bases import Empirical, Normal, Product, StudentT, Uniform
from cflow.testing import check_flow


def test_densities_are_those_of_the_columns(generator, float64):
    base = Product(Uniform(1, -1.0, 1.0), StudentT((), df=3.0), Normal(2, loc=1.0))
    x = torch.randn(50, 4, generator=generator) / 3
    laws = torch.distributions
    expected = laws.StudentT(3.0).log_prob(x[:, 1]) + laws.Normal(1.0, 1.0).log_prob(x[:, 2:]).sum(1)
    expected += torch.where(x[:, 0].abs() <= 1, -torch.tensor(2.0).log(), -torch.inf)
    torch.testing.assert_close(base.log_prob(x), expected)
    assert base.log_prob(torch.tensor([1.5, 0.0, 0.0, 0.0])) == -torch.inf
    drawn = base.sample((4000,), generator=generator)
    assert drawn[:, 0].abs().max() <= 1
    assert float(drawn[:, 2].mean()) == pytest.approx(1.0, abs=0.1)  # six standard errors


def test_a_flow_of_an_angle_and_a_heavy_tail():
    torch.manual_seed(0)
    layer = discrete.Autoregressive(discrete.Affine(), 2, hidden=(8,))
    check_flow(discrete.NormalizingFlow(layer, Product(Normal(1), StudentT(1, df=6.0))))


def test_a_part_without_a_density_leaves_none(generator):
    base = Product(Empirical(torch.zeros(3, 2)), Normal(1))
    assert not base.has_density
    assert base.sample((5,), generator=generator).shape == (5, 3)
    with pytest.raises(ValueError, match="no density"):
        base.log_prob(torch.zeros(3))
    assert Product(Normal(1), Normal(1)).has_density


@pytest.mark.parametrize(
    ("parts", "message"),
    [((), "at least one"), ((Normal((2, 2)),), r"events \(n,\)"), (([Normal(1)],), "not a base")],
)
def test_parts_that_are_not_columns_are_refused(parts, message):
    with pytest.raises((TypeError, ValueError), match=message):
        bases.Product(*parts)
