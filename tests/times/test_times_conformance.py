import pytest
import torch
from time_members import NESTED, PLAIN

from cflow.testing import check_times


@pytest.mark.parametrize("law", PLAIN + NESTED, ids=repr)
def test_every_law_conforms(law):
    check_times(law)


@pytest.mark.parametrize("law", PLAIN + NESTED, ids=repr)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_times_of_integers_are_refused(law, dtype):
    with pytest.raises(TypeError, match=rf"{type(law).__name__}\(\)\(4, dtype={dtype}\).*pass a floating-point dtype"):
        law(4, dtype=dtype)
