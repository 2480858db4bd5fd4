import pytest
from divergence_members import MEMBERS

from cflow.testing import check_divergence


@pytest.mark.parametrize("divergence", MEMBERS, ids=repr)
def test_every_divergence_conforms(divergence):
    check_divergence(divergence)
