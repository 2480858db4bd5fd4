import pytest
from members import UNIVARIATES, bijections

from cflow.testing import check_bijection, check_univariate

BIJECTIONS = bijections()


@pytest.mark.parametrize("name", UNIVARIATES)
def test_univariate_families_conform(name):
    family, arguments = UNIVARIATES[name]
    print(f"{name}: worst float32 round trip {check_univariate(family, **arguments):.2f} roundings")


@pytest.mark.parametrize("name", BIJECTIONS)
def test_bijections_conform(name):
    bijection, arguments = BIJECTIONS[name]
    print(f"{name}: worst float32 round trip {check_bijection(bijection, **arguments):.2f} roundings")
