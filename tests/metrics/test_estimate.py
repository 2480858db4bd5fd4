import pytest

from cflow.metrics import Estimate


def test_is_a_number_with_an_error_bar():
    estimate = Estimate(1.23456, 0.0123)
    assert float(estimate) == 1.23456
    assert str(estimate) == "1.235 ± 0.012"
    with pytest.raises(AttributeError):
        estimate.value = 2.0
