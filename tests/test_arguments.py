import numpy
import pytest
import torch

from cflow.arguments import check_integer, is_integer


@pytest.mark.parametrize(
    "value", [True, False, 1.0, "1", None, torch.tensor(1), numpy.int64(1), numpy.float64(1), 0, -3]
)
def test_what_is_no_whole_number_of_one_or_more(value):
    assert not is_integer(value, 1)
    with pytest.raises(ValueError, match=r"^Heun\(steps=.*\): steps is an integer of at least 1; pass 20\.$"):
        check_integer("Heun", "steps", value, 1, "steps is an integer of at least 1; pass 20.")


def test_whole_numbers_pass():
    for value in (1, 7, 2**40):
        assert is_integer(value, 1)
        check_integer("Heun", "steps", value, 1, "no error")
    assert is_integer(-3)
    assert is_integer(numpy.int64(3), 1, numpy=True)
    assert not is_integer(numpy.bool_(True), numpy=True)
